"""A room imports only from the rooms it may: the table of the README, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import blip_lite

# What each room may import from the package, and from outside the standard library at import time.
ROOMS: dict[str, tuple[str, str]] = {
    "model": ("", "torch"),
    "generation": ("model", "torch"),
    "processing": ("", "PIL numpy tokenizers torch"),
    "pretrained": ("model processing", "torch safetensors tokenizers PIL"),
    "words": ("processing", ""),
    "captioner": ("model generation processing pretrained words", "torch numpy PIL"),
    "config": ("", ""),
    "shapes": ("", "PIL"),
    "fetch": ("processing", "PIL tqdm"),
    "data": ("model processing", "torch numpy"),
    "sources": ("config data fetch processing shapes", ""),
    "inputs": ("fetch processing sources", ""),
    "bulk": ("captioner generation inputs processing words", "torch numpy"),
    "outputs": ("bulk inputs", ""),
    "metrics": ("processing", "numpy"),
    "report": ("processing", "PIL"),
    "sweep": ("config evaluation metrics report", "accelerate"),
    "checkpoint": ("model processing pretrained", "torch safetensors"),
    "card": ("checkpoint config data", ""),
    "export": ("captioner card generation pretrained", ""),
    "runlog": ("checkpoint config data metrics processing report", "torch accelerate tqdm"),
    "evaluation": (
        "model generation processing pretrained captioner checkpoint config data sources metrics report runlog card",
        "accelerate torch tqdm",
    ),
    "features": ("data model", "torch numpy accelerate tqdm"),
    "plot": ("", ""),
    "training": (
        "runlog features card model generation processing pretrained captioner config data sources metrics checkpoint evaluation",
        "torch accelerate safetensors tqdm",
    ),
    "preflight": ("captioner config data generation processing runlog training", "torch"),
    "audit": ("captioner config data model pretrained processing report sources", "numpy PIL tqdm"),
    "__init__": ("captioner pretrained", ""),
}


def imported(path: Path) -> tuple[set[str], set[str]]:
    """(rooms, outside packages) that a module imports at its top level."""
    import sys

    inside: set[str] = set()
    outside: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "blip_lite":
            inside |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("blip_lite."):
            inside.add(node.module.split(".")[1])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            outside |= {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"blip_lite"}
    return inside, outside


def test_rooms_import_only_what_they_may() -> None:
    package = Path(blip_lite.__file__).parent
    assert {p.stem for p in package.glob("*.py")} == set(ROOMS)
    for room, (rooms, packages) in ROOMS.items():
        inside, outside = imported(package / f"{room}.py")
        assert inside <= set(rooms.split()), (room, inside - set(rooms.split()))
        assert outside <= set(packages.split()), (room, outside - set(packages.split()))


def test_there_is_no_circle() -> None:
    done: set[str] = set()
    left = {room: set(rooms.split()) for room, (rooms, _) in ROOMS.items()}
    while left:
        free = [room for room, needs in left.items() if needs <= done]
        assert free, f"a circle among {sorted(left)}"
        done |= set(free)
        left = {room: needs for room, needs in left.items() if room not in free}
