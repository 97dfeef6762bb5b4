"""The metrics by the names they have in our files: one table for the report, the card, the summary and the sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is shown.

    Attributes:
        title: in the model card.
        hub_type: the Hub's name for it; None where it is left out of the card's metadata.
        mean_of_images: whether the number is the mean of per-image scores, so that these can be drawn from for an
        interval.
        headline: whether it stands in short tables.
        factor: from the scale in our files, that of `pycocoevalcap`, to the one that people are shown: hundredths,
        as in papers.
    """

    title: str
    hub_type: str | None = None
    mean_of_images: bool = False
    headline: bool = True
    factor: int = 100


METRICS = {
    "sacrebleu": Metric("sacreBLEU", "sacrebleu", factor=1),
    "Bleu_1": Metric("BLEU-1", headline=False),
    "Bleu_2": Metric("BLEU-2", headline=False),
    "Bleu_3": Metric("BLEU-3", headline=False),
    "Bleu_4": Metric("BLEU-4", "bleu"),
    "METEOR": Metric("METEOR", "meteor"),
    "ROUGE_L": Metric("ROUGE-L", "rouge", mean_of_images=True),
    "CIDEr": Metric("CIDEr", "cider", mean_of_images=True),
    "SPICE": Metric("SPICE", "spice", mean_of_images=True, headline=False),
}
# What is scored beside the model, by its name in `baselines` of our files.
SYSTEMS = {
    "human": "one human against the others",
    "most_common_caption": "one caption for every image",
    "base": "the untouched base",
    "compare": "compared with",
}
HEADLINES = tuple(name for name, metric in METRICS.items() if metric.headline)


def digits(name: str, intervals: Mapping[str, Sequence[float]]) -> int:
    """How many decimals of a metric's hundredths are known: so many that its 95% interval's width has two digits.

    Args:
        name: of the metric.
        intervals: `intervals_95` of our files. A metric without one has the digits of sacreBLEU's, which is of the same
            images, and in hundredths on the same scale.
    """
    of = name if name in intervals else "sacrebleu"
    width = METRICS[of].factor * (intervals[of][1] - intervals[of][0])
    return min(2, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 1


def hundredths(name: str, value: float | None, decimals: int = 0) -> str:
    """A metric's value, on the scale of our files, as people are shown it: in hundredths."""
    return "–" if value is None else f"{METRICS[name].factor * value:.{decimals}f}"
