"""Numbers + captions -> pictures and pages. Pure functions of what the JSON files hold."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageOps

from blip_lite.processing import ImageError, ImageInput, open_image

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em} table{border-collapse:collapse} td,th{padding:.2em .9em .2em 0;text-align:left}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:1.2em}
.card{overflow-wrap:anywhere} .card img{width:100%;border:1px solid #ddd} .card b{display:block;margin:.3em 0}
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


def thumbnail(image: ImageInput, size: int = 256, quality: int = 85) -> str:
    """An image as a `data:` URL, at most `size` pixels a side."""
    small = ImageOps.contain(open_image(image), (size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
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


SEARCH = """
const cards = [...document.querySelectorAll('.card')], box = document.querySelector('.cards');
document.querySelector('#find').oninput = e => {
  const words = e.target.value.toLowerCase();
  let n = 0;
  cards.forEach(c => { c.hidden = !c.textContent.toLowerCase().includes(words); n += !c.hidden; });
  document.querySelector('#count').textContent = n + ' images';
};
"""
SORT = """
document.querySelector('#sort').onchange = e => {
  const [key, sign] = e.target.value.split(' ');
  cards.sort((a, b) => sign * (a.dataset[key] - b.dataset[key])).forEach(c => box.append(c));
};
"""
METRICS = ("sacrebleu", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")


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


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value < 10 else f"{value:.2f}"


def histogram(counts: dict[str, list[int]], width: int = 340, height: int = 170) -> str:
    """Shares of captions by their number of words, one line a name, as an SVG picture."""
    longest = max(max(values, default=1) for values in counts.values())
    shares = {n: [values.count(k) / max(1, len(values)) for k in range(longest + 1)] for n, values in counts.items()}
    top = max(max(row) for row in shares.values()) or 1
    parts = []
    for colour, (i, (name, row)) in zip(("#2468b0", "#c06020"), enumerate(shares.items())):
        points = " ".join(f"{20 + k / longest * (width - 40):.1f},{height - 30 - v / top * (height - 75):.1f}" for k, v in enumerate(row))  # fmt: skip
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        parts.append(f'<text x="10" y="{18 + 14 * i}" font-size="11" fill="{colour}">{html.escape(name)}</text>')
    axis = f'<text x="10" y="{height - 10}" font-size="11">words in a caption, 0 to {longest}</text>'
    return f'<svg width="{width}" height="{height}">{axis}{"".join(parts)}</svg>'


def scatter(points: Sequence[tuple[float, float, str]], x_name: str, y_name: str) -> str:
    """Labelled points as an SVG picture that stands by itself; the axes begin at the smallest values."""
    width, height, left, bottom = 760, 420, 60, 50
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in ([p[0] for p in points], [p[1] for p in points]))
    parts = [
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">{html.escape(x_name)}, {x0:.3g} to {x1:.3g}</text>',
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">{html.escape(y_name)}, {y0:.3g} to {y1:.3g}</text>',
        f'<path d="M{left} 20 V{height - bottom} H{width - 20}" fill="none" stroke="#999"/>',
    ]
    for x, y, label in points:
        at_x = left + 20 + (x - x0) / ((x1 - x0) or 1) * (width - left - 60)
        at_y = height - bottom - 20 - (y - y0) / ((y1 - y0) or 1) * (height - bottom - 60)
        # labels lean to the middle, so that none leaves the picture
        side, shift = ("end", -8) if at_x > width / 2 else ("start", 8)
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5" fill="#2468b0"/>')
        parts.append(
            f'<text x="{at_x + shift:.1f}" y="{at_y - 6:.1f}" text-anchor="{side}">{html.escape(label)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="system-ui,sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def gallery(images: Sequence[tuple[Callable[[], ImageInput], dict[str, Any]]]) -> str:
    """A page of images with their captions, to be searched. One that failed is shown with the reason.

    Args:
        images: (what loads the image, its row in the journal of captions).
    """
    cards = []
    for load, row in images:
        captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"] or ""]
        notes = [str(row["image"])]
        notes += [f"error: {row['error']}"] if "error" in row else []
        notes += [f"score {row['score']}"] if "score" in row else []
        notes += [f"to review: {', '.join(row['review'])}"] if row.get("review") else []
        picture = ""
        if "error" not in row:  # what could not be fetched is not waited for once more
            with contextlib.suppress(ImageError, OSError):
                picture = f'<img loading=lazy src="{thumbnail(load(), 224, 75)}">'
        said = "".join(f"<b>{html.escape(caption)}</b>" for caption in captions)
        cards.append(
            f"<div class=card>{picture}{said}<span class=note>{'<br>'.join(map(html.escape, notes))}</span></div>"
        )
    return (
        (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>captions</title><style>{STYLE}</style><h1>Captions</h1>'
            f"<p><input id=find placeholder='search captions'> <span id=count class=note>{len(cards)} images</span></p>"
            f"<div class=cards>{''.join(cards)}</div><script>{SEARCH}</script></html>\n"
        )
        .encode("utf-8", "backslashreplace")
        .decode()
    )


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
        said = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
        cards.append(
            f'<div class=card data-order="{order}" data-words="{len(caption.split())}"{values}><img loading=lazy src="{thumbnail(image, 176, 70)}">'
            f"<b>{html.escape(caption) or '(empty)'}</b><ul>{items}</ul><span class=note>{html.escape(image_id)}<br>{said}</span></div>"
        )
    title = html.escape(f"{result['dataset']}, {result['split']}: {result['num_images']} images")
    curves = "".join(curve(lines, name) for name in ("loss", "val_loss", "val_bleu"))
    words = histogram({
        "this model": [len(row[2].split()) for row in rows], "references": [len(r.split()) for row in rows for r in row[3]],
    })  # fmt: skip
    said_words = Counter(word for row in rows for word in row[2].split())
    known = Counter(word for row in rows for r in row[3] for word in r.lower().split())
    common = "".join(f"<li>{n} × {html.escape(c)}</li>" for c, n in Counter(row[2] for row in rows).most_common(8))
    groups = "  ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in result["failure_groups"].items())
    told = ("checkpoint", "checkpoint_sha256", "decoding", "sacrebleu_signature", "data_fingerprint")
    settings = html.escape(json.dumps({k: result[k] for k in told if k in result}))
    options = [("order", 1, "worst first (CIDEr)"), ("order", -1, "best first (CIDEr)"), ("words", 1, "shortest first")]
    options += [(n.lower(), 1, f"lowest {n}") for n in ("METEOR", "ROUGE_L", "Bleu_4")] if rows and rows[0][4] else []
    choices = "".join(f'<option value="{key} {sign}">{label}</option>' for key, sign, label in options)
    warnings = "".join(f"<p><b>Warning:</b> {html.escape(warning)}</p>" for warning in result["warnings"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>'
        f"{warnings}{metrics_table(result)}<p class=note>{settings}</p><p>{curves}{words}</p>"
        f"<p>{len(said_words)} different words, where the references have {len(known)}; of these captions: {groups}, "
        f"word for word a reference {result['exact_match_rate']:.1%}.</p><h2>The most frequent captions</h2><ul>{common}</ul>"
        f"<h2>Images</h2><p><input id=find placeholder='search captions'> <select id=sort>{choices}</select> "
        f"<span id=count class=note>{len(rows)} images</span></p><div class=cards>{''.join(cards)}</div>"
        f"<script>{SEARCH}{SORT}</script></html>\n"
    )
