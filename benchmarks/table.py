"""The results as tables (Markdown, on standard output) and a picture for each machine: python benchmarks/table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import HERE, OURS, PEER


def cell(value: Any) -> str:
    if isinstance(value, dict) and "median" not in value:
        return ", ".join(f"{name} {cell(one)}" for name, one in value.items())
    if isinstance(value, dict):
        return f"{value['median']:.3g} ({value['least']:.3g} to {value['most']:.3g})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    for folder in sorted((HERE / "results").iterdir()):
        show(folder)


def table(path: Path) -> str:
    """A file of results in Markdown."""
    content = json.loads(path.read_text("utf-8"))
    about = content["machine"]
    lines = [
        f"### {path.stem}\n\n{about['device']}, {about['threads']} threads, torch {about['torch']}, "
        f"transformers {about['transformers']}, Python {about['python']}, {about['when']}\n",
        "| what | unit | transformers | blip_lite | ratio | besides |\n|---|---|---|---|---|---|",
    ]
    for name, row in content["rows"].items():
        shown = {PEER, OURS, "ratio", "unit"}
        rest = "; ".join(f"{k} {cell(v)}" for k, v in row.items() if k not in shown)
        ratio = f"**{row['ratio']:.2f}x**" if row.get("ratio", 0) > 0 else ""
        lines.append(
            f"| {name} | {row['unit']} | {cell(row.get(PEER, ''))} | {cell(row.get(OURS, ''))} | {ratio} | {rest} |"
        )
    return "\n".join(lines) + "\n"


def ratios(path: Path) -> list[tuple[str, float]]:
    """Of a file of results, by the rows' names."""
    rows = json.loads(path.read_text("utf-8"))["rows"]
    return [(name, row["ratio"]) for name, row in rows.items() if row.get("ratio", 0) > 0]


def show(folder: Path) -> None:
    """One machine's results."""
    bars: list[tuple[str, float]] = []
    for path in sorted(folder.glob("*.json")):
        print(f"\n{table(path)}", end="")
        if "base-cpu" in path.stem:
            bars += [(f"training, {name}" if "training" in path.stem else name, r) for name, r in ratios(path)]
    if bars:
        draw(bars, folder / "speed.png", f"base size, float32, 2 cores, {folder.name}")


def draw(bars: list[tuple[str, float]], path: Path, conditions: str) -> None:
    """Bars with the ratio: how many times as fast as `transformers`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(bars) + 1))
    names, ratios = [name for name, _ in bars][::-1], [ratio for _, ratio in bars][::-1]
    drawn = axes.barh(names, ratios, color="#2b6cb0")
    axes.bar_label(drawn, [f"{ratio:.1f}x" for ratio in ratios], padding=3)
    axes.axvline(1, color="#888", linewidth=1)
    axes.set_xlim(0, max(ratios) * 1.15)
    axes.set_xlabel(f"times as fast as transformers\n({conditions})")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
