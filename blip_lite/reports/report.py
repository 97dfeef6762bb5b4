"""An evaluation -> a page of its numbers and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from blip_lite.processing.images import ImageInput
from blip_lite.processing.text import normalize_caption
from blip_lite.reports.charts import curves, lengths
from blip_lite.reports.metric_names import METRICS, SYSTEMS, digits, hundredths
from blip_lite.reports.page import picture, render
from blip_lite.reports.words import word_surprises

IMAGES = 1000
# Of photographs, 1,000 of these are some 8 MB.
THUMBNAIL = {"size": 224, "quality": 60}
ABOUT = (
    "checkpoint", "checkpoint_sha256", "dataset", "split", "num_images", "num_references", "data_fingerprint", "dtype",
    "decoding", "sacrebleu_signature",
)  # fmt: skip


def page(
    result: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    pictures: Mapping[str, Callable[[], ImageInput]],
    log: Sequence[dict[str, Any]],
) -> str:
    """One self-contained HTML page, to be searched, filtered and sorted; under 10 MB for 1,000 images.

    Args:
        result: content of `coco_metrics.json`.
        rows: the lines of `captions.jsonl`; the worst and the best are shown.
        pictures: what opens each image, by its id.
        log: the lines of `metrics.jsonl`, for the curves.
    """
    captions = [row["caption"] for row in rows]
    references = [reference for row in rows for reference in row["references"]]
    worst = sorted(rows, key=lambda row: row["scores"].get("CIDEr", 0.0))
    shown = worst[: IMAGES // 2] + worst[-IMAGES // 2 :] if len(worst) > IMAGES else worst
    charts = [
        curves(
            "loss",
            {
                "training": (log, "loss"),
                "validation": (log, "val_loss"),
                "validation, beside other images": (log, "val_loss_other_image"),
            },
        ),
        curves("validation sacreBLEU", {"sacreBLEU": (log, "val_bleu")}),
        lengths({"this checkpoint": captions, "references": references}),
    ]
    often, seldom = word_surprises(
        {row["image_id"]: row["caption"] for row in rows}, {row["image_id"]: row["references"] for row in rows}
    )
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
            "often": [(use.word, f"{use.model:.0f}", f"{use.human:.0f}") for use in often],
            "seldom": [(use.word, f"{use.model:.0f}", f"{use.human:.0f}") for use in seldom],
            "common": [(n, caption or "(empty)") for caption, n in Counter(captions).most_common(8)],
        },
        shares=[*groups.items(), ("word for word a reference", result["exact_match_rate"])],
        filters=FILTERS,
        orders=list(orders(shown)),
        cards=list(cards(shown, pictures)),
    )


def scores(result: dict[str, Any]) -> dict[str, Any]:
    """The table of metrics: this checkpoint with its intervals, beside humans, one caption for all, and others."""
    systems, intervals = result["baselines"], result["intervals_95"]
    rows, notes = [], []
    for name, metric in METRICS.items():
        decimals = digits(name, intervals)
        own = hundredths(name, result.get(name), decimals)
        if name in intervals:
            low, high = (hundredths(name, end, decimals) for end in intervals[name])
            own += f" ({low} to {high})"
        elif reason := result.get("reasons", {}).get(name):
            own += f" {reason}"
        rows.append([metric.title, own, *(hundredths(name, each.get(name), decimals) for each in systems.values())])
    for name, each in systems.items():
        if about := each.get("caption") or each.get("checkpoint"):
            notes.append(f"{SYSTEMS[name]}: {about}" + (f"; left out: {each['reason']}" if "reason" in each else ""))
    return {"columns": ["", "this checkpoint", *(SYSTEMS[name] for name in systems)], "rows": rows, "notes": notes}


def spice(result: dict[str, Any]) -> dict[str, Any] | None:
    """SPICE's categories beside one human's on the same images; None where SPICE was not computed."""
    if not (found := result.get("spice")):
        return None
    human = (found["human"] or {}).get("categories", {})
    decimals = digits("SPICE", {"SPICE": found["model"]["interval_95"]})
    rows = [
        [name, *(hundredths("SPICE", side.get("f"), decimals) for side in (each, human.get(name, {}))), each["images"]]
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
        if isinstance(value, dict):
            pairs += flat(value)
        else:
            pairs.append((name.replace("_", " "), "none" if value in (None, "", []) else value))
    return pairs


FILTERS = (
    ("", "all"),
    ("exact", "word for word a reference"),
    ("other", "not word for word a reference"),
    ("shared", "captions of several images"),
    ("empty", "empty captions"),
)


def orders(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(key and direction, label) of the ways to sort."""
    yield from (("order 1", "worst first"), ("order -1", "best first"))
    yield from (("words 1", "shortest first"), ("words -1", "longest first"))
    for name in dict.fromkeys(name for row in rows for name in row["scores"]):
        yield f"{name.lower()} 1", f"lowest {METRICS[name].title}"
        yield f"{name.lower()} -1", f"highest {METRICS[name].title}"


def cards(rows: Sequence[dict[str, Any]], pictures: Mapping[str, Callable[[], ImageInput]]) -> Iterator[dict[str, Any]]:
    """Each image as the template shows it."""
    often = Counter(row["caption"] for row in rows)
    for row in rows:
        caption = row["caption"]
        exact = normalize_caption(caption) in map(normalize_caption, row["references"])
        flags = {"exact": exact, "other": not exact, "shared": often[caption] > 1, "empty": not caption.strip()}
        yield {
            **row,
            "src": picture(pictures[row["image_id"]], **THUMBNAIL),
            "words": len(caption.split()),
            "flags": " ".join(name for name, holds in flags.items() if holds),
            "shown": ", ".join(
                f"{METRICS[name].title} {hundredths(name, value)}" for name, value in row["scores"].items()
            ),
        }
