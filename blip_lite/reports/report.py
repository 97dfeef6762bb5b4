"""An evaluation -> a page of its numbers and images."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from blip_lite.processing.images import ImageInput
from blip_lite.reports.charts import curve, histogram
from blip_lite.reports.metric_names import METRICS
from blip_lite.reports.page import SEARCH, SORT, STYLE, thumbnail


def metrics_table(result: dict[str, Any]) -> str:
    """The numbers with their intervals, beside those of humans, of one caption for all, and of a second checkpoint."""
    baselines = result["baselines"]
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in baselines)
    rows = []
    for name in METRICS:
        value, interval = result.get(name), result["intervals_95"].get(name)
        others = "".join(f"<td>{number(row.get(name))}</td>" for row in baselines.values())
        between = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        reason = html.escape(result.get("reasons", {}).get(name, ""))
        rows.append(f"<tr><th>{name}</th><td>{number(value)}</td><td class=note>{between or reason}</td>{others}</tr>")
    return f"<table><tr><th></th><th>this</th><th>95% interval</th>{head}</tr>{''.join(rows)}</table>"


def spice_table(result: dict[str, Any]) -> str:
    """SPICE's categories beside one human's on the same images; empty where SPICE was not computed."""
    if not (spice := result.get("spice")):
        return ""
    human = (spice["human"] or {}).get("categories", {})
    rows = "".join(
        f"<tr><th>{name}</th><td>{number(each['f'])}</td><td>{number(human.get(name, {}).get('f'))}</td>"
        f"<td>{each['images']}</td></tr>"
        for name, each in spice["model"]["categories"].items()
    )
    left_out = f"; {len(spice['too_long'])} with a text of more than {spice['max_words']} words and "
    left_out += f"{len(spice['failed'])} that failed are left out of both sides"
    return (
        f"<h2>SPICE by category</h2><p class=note>{spice['n']} of {spice['images']} images{left_out}</p>"
        f"<table><tr><th></th><th>this</th><th>one human</th><th>images with any</th></tr>{rows}</table>"
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value < 10 else f"{value:.2f}"


def page(
    result: dict[str, Any],
    rows: Sequence[tuple[ImageInput, str, str, Sequence[str], dict[str, float]]],
    lines: Sequence[dict[str, Any]],
) -> str:
    """One self-contained HTML page, to be searched and sorted; under 10 MB for 1,000 images.

    Args:
        result: content of `coco_metrics.json`.
        rows: (image, id, caption, references, scores by metric), worst first.
        lines: of `metrics.jsonl`, for the curves.
    """
    cards = []
    for order, (image, image_id, caption, references, scores) in enumerate(rows):
        items = "".join(f"<li>{html.escape(r)}</li>" for r in references)
        values = "".join(f' data-{name.lower()}="{value:.4f}"' for name, value in scores.items())
        values_shown = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
        cards.append(
            f'<div class=card data-order="{order}" data-words="{len(caption.split())}"{values}>'
            f'<img loading=lazy src="{thumbnail(image, 176, 70)}">'
            f"<b>{html.escape(caption) or '(empty)'}</b><ul>{items}</ul><span "
            f"class=note>{html.escape(image_id)}<br>{values_shown}</span></div>"
        )
    title = html.escape(f"{result['dataset']}, {result['split']}: {result['num_images']} images")
    curves = "".join(curve(lines, name) for name in ("loss", "val_loss", "val_bleu"))
    words = histogram({
        "this model": [len(row[2].split()) for row in rows],
 "references": [len(r.split()) for row in rows for r in row[3]],
    })  # fmt: skip
    said_words = Counter(word for row in rows for word in row[2].split())
    known = Counter(word for row in rows for r in row[3] for word in r.lower().split())
    common = "".join(f"<li>{n} × {html.escape(c)}</li>" for c, n in Counter(row[2] for row in rows).most_common(8))
    groups = "  ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in result["failure_groups"].items())
    facts = ("checkpoint", "checkpoint_sha256", "decoding", "sacrebleu_signature", "data_fingerprint")
    settings = html.escape(json.dumps({k: result[k] for k in facts if k in result}))
    options = [("order", 1, "worst first (CIDEr)"), ("order", -1, "best first (CIDEr)"), ("words", 1, "shortest first")]
    options += [(n.lower(), 1, f"lowest {n}") for n in ("METEOR", "ROUGE_L", "Bleu_4")] if rows and rows[0][4] else []
    choices = "".join(f'<option value="{key} {sign}">{label}</option>' for key, sign, label in options)
    warnings = "".join(f"<p><b>Warning:</b> {html.escape(warning)}</p>" for warning in result["warnings"])
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"{warnings}{metrics_table(result)}{spice_table(result)}<p class=note>{settings}</p><p>{curves}{words}</p>"
        f"<p>{len(said_words)} different words, where the references have {len(known)}; of these captions: {groups}, "
        f"word for word a reference {result['exact_match_rate']:.1%}.</p><h2>The most frequent "
        f"captions</h2><ul>{common}</ul>"
        f"<h2>Images</h2><p><input id=find placeholder='search captions'> <select id=sort>{choices}</select> "
        f"<span id=count class=note>{len(rows)} images</span></p><div class=cards>{''.join(cards)}</div>"
        f"<script>{SEARCH}{SORT}</script></html>\n"
    )
