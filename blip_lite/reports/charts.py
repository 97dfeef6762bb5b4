"""Numbers -> charts, as the data that `templates/charts.js` gives to uPlot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Points = Mapping[Any, float]  # x, a number, -> y


def chart(title: str, x: str, series: Mapping[str, Points], kind: str = "line") -> dict[str, Any]:
    """A chart of `series` on one x axis.

    Args:
        title: what is on the y axis.
        x: what is on the x axis.
        series: points by the name of the series.
        kind: line, bars, or points.

    Returns:
        `at`, every x of any series, in order; and for each series `y`, as long as `at`, with None where it has no
        point.
    """
    at = sorted({place for points in series.values() for place in points})
    rows = [
        {"label": label, "y": [points.get(place) for place in at], "colour": i, "mark": False}
        for i, (label, points) in enumerate(series.items())
    ]
    return {"title": title, "x": x, "kind": kind, "at": at, "series": rows}


def curves(title: str, logs: Mapping[str, tuple[Sequence[dict[str, Any]], str]]) -> dict[str, Any] | None:
    """Numbers against the step, with the best step of validation's marked; None if none was logged. A log that never
    has the number gets no curve.

    Args:
        logs: (lines of a `metrics.jsonl`, a name in them) by the name of the curve.
    """
    logs = {at: (log, name) for at, (log, name) in logs.items() if any(line.get(name) is not None for line in log)}
    series = {}
    for label, (lines, name) in logs.items():
        found = {line["step"]: line[name] for line in lines if line.get(name) is not None}
        series[label] = {step: value for step, value in found.items() if math.isfinite(value)}
    made = chart(title, "step", series)
    for i, (label, (lines, name)) in enumerate(logs.items()):
        step = best_step(lines)
        if step in series[label] and name.startswith("val_"):
            y = [series[label][step] if place == step else None for place in made["at"]]
            made["series"].append({"label": f"{label}, best: step {step}", "y": y, "colour": i, "mark": True})
    return made if made["at"] else None


def best_step(lines: Sequence[dict[str, Any]]) -> int | None:
    """The step of `best/`, from a run's log."""
    return next((line["step"] for line in reversed(lines) if line.get("val_best_so_far")), None)


def lengths(captions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Percent of captions by their number of words, for each name."""
    counts = {name: Counter(len(caption.split()) for caption in texts) for name, texts in captions.items()}
    shares = {
        name: {words: 100 * n / count.total() for words, n in sorted(count.items())} for name, count in counts.items()
    }
    return chart("captions by length, %", "words", shares, "bars")
