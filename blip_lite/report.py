"""Numbers + captions -> pictures and pages. Pure functions of what the JSON files hold."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ImageOps

from blip_lite.processing import ImageInput, open_image

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em} table{border-collapse:collapse} td,th{padding:.2em .9em .2em 0;text-align:left}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:1.2em}
.card img{width:100%;border:1px solid #ddd} .card b{display:block;margin:.3em 0}
.card li,.note{color:#666;font-size:.86em} .card ul{margin:0;padding-left:1.1em}
svg{border:1px solid #ddd;margin-right:1em}
"""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; none if there is no such file. One that a killed process left half is
    passed over."""
    path, found = run / "metrics.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def thumbnail(image: ImageInput, size: int = 256) -> str:
    """An image as a `data:` URL, at most `size` pixels a side."""
    small = ImageOps.contain(open_image(image), (size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def curve(lines: Sequence[dict[str, Any]], name: str, width: int = 340, height: int = 170) -> str:
    """`name` against the step, as an SVG picture; empty if it was logged fewer than twice."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    if len(points) < 2:
        return ""
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    spread = (y1 - y0) or 1
    at = [
        f"{20 + (x - x0) / ((x1 - x0) or 1) * (width - 40):.1f},{height - 30 - (y - y0) / spread * (height - 65):.1f}"
        for x, y in points
    ]
    label = f"{html.escape(name)}: {points[0][1]:.4g} → {points[-1][1]:.4g}, steps {x0} to {x1}"
    return (
        f'<svg width="{width}" height="{height}"><text x="10" y="18" font-size="11">{label}</text>'
        f'<polyline fill="none" stroke="#2468b0" stroke-width="2" points="{" ".join(at)}"/></svg>'
    )


def page(
    result: dict[str, Any], rows: Sequence[tuple[ImageInput, str, Sequence[str]]], lines: Sequence[dict[str, Any]]
) -> str:
    """One self-contained HTML page.

    Args:
        result: content of `coco_metrics.json`.
        rows: (image, caption, references) to show.
        lines: of `metrics.jsonl`, for the curves.
    """
    names = (
        "sacrebleu",
        "human_agreement_sacrebleu",
        "Bleu_1",
        "Bleu_2",
        "Bleu_3",
        "Bleu_4",
        "METEOR",
        "ROUGE_L",
        "CIDEr",
        "SPICE",
    )
    cells = []
    for name in names:
        value, reason = result.get(name), result.get("reasons", {}).get(name, "")
        cells.append(
            f"<tr><th>{name}</th><td>{'–' if value is None else f'{value:.4f}'}</td><td class=note>{html.escape(reason)}</td></tr>"
        )
    cards = []
    for image, caption, references in rows:
        items = "".join(f"<li>{html.escape(r)}</li>" for r in references)
        cards.append(
            f'<div class=card><img src="{thumbnail(image)}"><b>{html.escape(caption) or "(empty)"}</b><ul>{items}</ul></div>'
        )
    title = html.escape(f"{result['dataset']}, {result['split']}: {result['num_images']} images")
    curves = "".join(curve(lines, name) for name in ("loss", "val_loss", "val_bleu"))
    settings = html.escape(
        json.dumps({k: result[k] for k in ("checkpoint", "decoding", "sacrebleu_signature", "data_fingerprint")})
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>'
        f"<table>{''.join(cells)}</table><p class=note>{settings}</p><p>{curves}</p>"
        f"<h2>The first {len(rows)} captions, references below</h2><div class=cards>{''.join(cards)}</div></html>\n"
    )
