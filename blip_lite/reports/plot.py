"""The curves of runs together: `blip-lite plot runs/a runs/b`, a page; or with `--output curves.png` a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from blip_lite.errors import ConfigError
from blip_lite.reports.charts import best_step, curves
from blip_lite.reports.page import render
from blip_lite.storage import read_metrics, write_text

CURVES = {
    "loss": "training loss",
    "val_loss": "validation loss",
    "val_loss_other_image": "validation loss beside other images",
    "val_bleu": "validation sacreBLEU",
    "val_cider": "validation CIDEr",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_second": "images a second",
}


def plot(runs: list[Path], output: Path) -> None:
    """Draw `metrics.jsonl` of each run: loss, validation, learning rate, gradient norm, speed, against the step.

    Raises:
        ConfigError: a run has no readable metrics.jsonl, or `output` ends in nothing that can be drawn.
    """
    if output.suffix not in (".html", ".png", ".svg", ".pdf"):
        raise ConfigError(f"--output {output}: expected a name that ends in .html, .png, .svg or .pdf")
    if output.suffix != ".html":
        import matplotlib

        matplotlib.use("Agg")
    logs: dict[str, list[dict[str, Any]]] = {}
    above = os.path.commonpath([run.resolve().parent for run in runs])
    for run in runs:  # their names may be the same in different folders
        logs[os.path.relpath(run.resolve(), above)] = lines = read_metrics(run)
        if not lines:
            raise ConfigError(f"{run}: no metrics.jsonl here, or no line of it can be read")
    if output.suffix == ".html":
        write_text(output, page(logs))
    else:
        picture(logs, output)


def page(logs: dict[str, list[dict[str, Any]]]) -> str:
    """A page of charts, one for each number, with all runs, and a table of their best validations."""
    charts = [curves(title, {run: (lines, name) for run, lines in logs.items()}) for name, title in CURVES.items()]
    rows = []
    for run, lines in logs.items():
        step = best_step(lines)
        best = next((line for line in lines if line["step"] == step and "val_bleu" in line), None)
        numbers = [step, f"{best['val_bleu']:.1f}", f"{best['val_loss']:.3f}"] if best else ["–"] * 3
        rows.append([run, lines[-1]["step"], *numbers])
    return render(
        "curves.html",
        title=" and ".join(logs) if len(logs) < 3 else f"{len(logs)} runs",
        charts=[chart for chart in charts if chart],
        columns=["run", "steps", "best step", "validation sacreBLEU there", "validation loss there"],
        rows=rows,
    )


def picture(logs: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """The same charts for a paper, by matplotlib."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(17, 6.5))
    for run, lines in logs.items():
        for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axis.plot(
                *zip(*points, strict=True) if points else ((), ()), marker="." if len(points) < 30 else "", label=run
            )
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step", fontsize=8)
            axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
