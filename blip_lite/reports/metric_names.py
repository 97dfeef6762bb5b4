"""The metrics by the names they have in our files: one table for the report, the card, the summary and the sweep."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is shown.

    Attributes:
        title: in the model card.
        hub_type: the Hub's name for it; None where it is left out of the card's metadata.
        mean_of_images: whether the number is the mean of per-image scores, so that these can be drawn from for an
        interval.
        headline: whether it stands in short tables.
    """

    title: str
    hub_type: str | None = None
    mean_of_images: bool = False
    headline: bool = True


METRICS = {
    "sacrebleu": Metric("sacreBLEU", "sacrebleu"),
    "Bleu_1": Metric("BLEU-1", headline=False),
    "Bleu_2": Metric("BLEU-2", headline=False),
    "Bleu_3": Metric("BLEU-3", headline=False),
    "Bleu_4": Metric("BLEU-4", "bleu"),
    "METEOR": Metric("METEOR", "meteor"),
    "ROUGE_L": Metric("ROUGE-L", "rouge", mean_of_images=True),
    "CIDEr": Metric("CIDEr", "cider", mean_of_images=True),
    "SPICE": Metric("SPICE", "spice", mean_of_images=True, headline=False),
}
HEADLINES = tuple(name for name, metric in METRICS.items() if metric.headline)
