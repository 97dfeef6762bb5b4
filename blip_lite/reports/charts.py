"""Numbers -> pictures (SVG)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


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


def histogram(counts: dict[str, list[int]], width: int = 340, height: int = 170) -> str:
    """Shares of captions by their number of words, one line a name, as an SVG picture."""
    longest = max(max(values, default=1) for values in counts.values())
    shares = {n: [values.count(k) / max(1, len(values)) for k in range(longest + 1)] for n, values in counts.items()}
    top = max(max(row) for row in shares.values()) or 1
    parts = []
    for colour, (i, (name, row)) in zip(("#2468b0", "#c06020"), enumerate(shares.items())):
        points = " ".join(
            f"{20 + k / longest * (width - 40):.1f},{height - 30 - v / top * (height - 75):.1f}"
            for k, v in enumerate(row)
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        parts.append(f'<text x="10" y="{18 + 14 * i}" font-size="11" fill="{colour}">{html.escape(name)}</text>')
    axis = f'<text x="10" y="{height - 10}" font-size="11">words in a caption, 0 to {longest}</text>'
    return f'<svg width="{width}" height="{height}">{axis}{"".join(parts)}</svg>'


def scatter(points: Sequence[tuple[float, float, str]], x_name: str, y_name: str) -> str:
    """Labelled points as an SVG picture that stands by itself; the axes begin at the smallest values."""
    width, height, left, bottom = 760, 420, 60, 50
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in ([p[0] for p in points], [p[1] for p in points]))
    parts = [
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">'
        f"{html.escape(x_name)}, {x0:.3g} to {x1:.3g}</text>",
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">'
        f"{html.escape(y_name)}, {y0:.3g} to {y1:.3g}</text>",
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
