"""An evaluation -> a page of its numbers and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from blip_lite.processing.picture import Picture
from blip_lite.processing.text import normalize_caption
from blip_lite.reports.charts import curves, lengths
from blip_lite.reports.metric_names import METRICS, digits, shown
from blip_lite.reports.page import picture, render

IMAGES = 1000
# Of photographs, 1,000 of these are some 8 MB.
THUMBNAIL = {"size": 224, "quality": 60}
SYSTEMS = {
    "human": "one human against the others",
    "most_common_caption": "one caption for every image",
    "base": "the untouched base",
    "compare": "compared with",
}
ABOUT = (
    "checkpoint", "checkpoint_sha256", "dataset", "split", "num_images", "num_references", "data_fingerprint", "dtype",
    "decoding", "sacrebleu_signature",
)  # fmt: skip

Row = tuple[Picture, str, dict[str, float]]  # an image, its caption, scores by metric


def page(result: dict[str, Any], rows: Sequence[Row], lines: Sequence[dict[str, Any]]) -> str:
    """One self-contained HTML page, to be searched, filtered and sorted; under 10 MB for 1,000 images.

    Args:
        result: content of `coco_metrics.json`.
        rows: of all images; the worst and the best are shown.
        lines: of `metrics.jsonl`, for the curves.
    """
    captions = [caption for _, caption, _ in rows]
    references = [reference for image, _, _ in rows for reference in image.captions]
    worst = sorted(rows, key=lambda row: row[2].get("CIDEr", 0.0))
    cut = worst[: IMAGES // 2] + worst[-IMAGES // 2 :] if len(worst) > IMAGES else worst
    charts = [
        curves("loss", {"training": (lines, "loss"), "validation": (lines, "val_loss")}),
        curves("validation sacreBLEU", {"sacreBLEU": (lines, "val_bleu")}),
        lengths({"this checkpoint": captions, "references": references}),
    ]
    groups = {name.replace("_", " "): share for name, share in result["failure_groups"].items()}
    return render(
        "report.html",
        title=f"{result['dataset']}, {result['split']}: {result['num_images']} images",
        result=result,
        scores=scores(result),
        spice=spice(result),
        charts=[chart for chart in charts if chart],
        settings=flat({name: result[name] for name in ABOUT if name in result}),
        words={
            "said": len({word for caption in captions for word in caption.split()}),
            "known": len({word for reference in references for word in normalize_caption(reference, 10_000).split()}),
            "common": [(n, caption or "(empty)") for caption, n in Counter(captions).most_common(8)],
        },
        shares=[*groups.items(), ("word for word a reference", result["exact_match_rate"])],
        filters=FILTERS,
        orders=list(orders(cut)),
        cards=list(cards(cut)),
    )


def scores(result: dict[str, Any]) -> dict[str, Any]:
    """The table of metrics: this checkpoint with its intervals, beside humans, one caption for all, and others."""
    systems, intervals = result["baselines"], result["intervals_95"]
    rows, notes = [], []
    for name, metric in METRICS.items():
        # One without an interval of its own has the digits of sacreBLEU's: the same images, the same scale.
        of = name if name in intervals else "sacrebleu"
        decimals = digits(of, intervals[of])
        own = shown(name, result.get(name), decimals)
        if name in intervals:
            low, high = (shown(name, end, decimals) for end in intervals[name])
            own += f" ({low} to {high})"
        elif reason := result.get("reasons", {}).get(name):
            own += f" ({reason})"
        rows.append([metric.title, own, *(shown(name, each.get(name), decimals) for each in systems.values())])
    for name, each in systems.items():
        if about := each.get("caption") or each.get("checkpoint"):
            notes.append(f"{SYSTEMS[name]}: {about}" + (f"; left out: {each['reason']}" if "reason" in each else ""))
    return {"columns": ["", "this checkpoint", *(SYSTEMS[name] for name in systems)], "rows": rows, "notes": notes}


def spice(result: dict[str, Any]) -> dict[str, Any] | None:
    """SPICE's categories beside one human's on the same images; None where SPICE was not computed."""
    if not (found := result.get("spice")):
        return None
    human = (found["human"] or {}).get("categories", {})
    decimals = digits("SPICE", found["model"]["interval_95"])
    rows = [
        [name, *(shown("SPICE", side.get("f"), decimals) for side in (each, human.get(name, {}))), each["images"]]
        for name, each in found["model"]["categories"].items()
    ]
    note = (
        f"{found['n']} of {found['images']} images; {len(found['too_long'])} with a text of more than "
        f"{found['max_words']} words and {len(found['failed'])} that failed are left out of both sides."
    )
    return {"rows": rows, "note": note}


def flat(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """(name, value) of settings, those of a group one by one."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += (
            flat(value) if isinstance(value, dict) else [(name.replace("_", " "), "none" if value is None else value)]
        )
    return pairs


FILTERS = (
    ("", "all"),
    ("exact", "word for word a reference"),
    ("other", "not word for word a reference"),
    ("shared", "captions of several images"),
    ("empty", "empty captions"),
)


def orders(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(key and direction, label) of the ways to sort."""
    yield from (("order 1", "worst first"), ("order -1", "best first"))
    yield from (("words 1", "shortest first"), ("words -1", "longest first"))
    for name in dict.fromkeys(name for _, _, scores in rows for name in scores):
        yield f"{name.lower()} 1", f"lowest {METRICS[name].title}"
        yield f"{name.lower()} -1", f"highest {METRICS[name].title}"


def cards(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Each image as the template shows it."""
    often = Counter(caption for _, caption, _ in rows)
    for image, caption, scores in rows:
        exact = normalize_caption(caption) in map(normalize_caption, image.captions)
        flags = {"exact": exact, "other": not exact, "shared": often[caption] > 1, "empty": not caption.strip()}
        yield {
            "src": picture(image.open, **THUMBNAIL),
            "image_id": image.image_id,
            "caption": caption,
            "references": image.captions,
            "words": len(caption.split()),
            "flags": " ".join(name for name, holds in flags.items() if holds),
            "scores": scores,
            "shown": ", ".join(f"{METRICS[name].title} {shown(name, value)}" for name, value in scores.items()),
        }
