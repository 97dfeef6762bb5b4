"""The house: imports point one way, no function is long, the base install suffices for what it is for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "blip_lite"

# Rooms from the ground up: each may import from itself and from those below it, at any depth of a function.
STOREYS: list[set[str]] = [
    {"errors"},
    {"settings"},
    {"processing"},
    {"model"},
    {"captioner"},
    {"storage"},
    {"reports"},
    {"data"},
    {"evaluation"},
    {"training"},
    {"captioning", "serving"},
    {"command_line"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(STOREYS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))

# What a room may import from outside at import time, besides the base install; the rest comes with an extra.
EXTRAS = {
    "accelerate",
    "datasets",
    "transformers",
    "sacrebleu",
    "pycocoevalcap",
    "yaml",
    "wandb",
    "matplotlib",
    "gradio",
    "fastapi",
    "uvicorn",
    "pydantic",
    "starlette",
    "prometheus_client",
}
TRAINED = {
    "evaluation": {"accelerate"},
    "training": {"accelerate"},
    "serving": {"gradio", "fastapi", "uvicorn", "pydantic", "starlette", "prometheus_client"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports(ast.parse(path.read_text("utf-8"))):
        parts = name.split(".")
        if parts[0] == "blip_lite" and len(parts) > 1 and parts[1] != "__version__":
            other = parts[1]
            assert other == room or LEVEL[other] < LEVEL[room], f"{room} imports {name}"


def test_modules_form_no_circle() -> None:
    """Not between rooms, which have an order, and not within one."""
    modules = {".".join(("blip_lite", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in FILES}
    needs = {
        name: {one for one in imports(ast.parse(path.read_text("utf-8"))) if one in modules and one != name}
        for name, path in modules.items()
    }
    while free := [name for name, wanted in needs.items() if not wanted & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, sorted(needs)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_long_and_no_line_is_wide(path: Path) -> None:
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno + 1 < 100, node.name
    assert not [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 120]


def test_only_rooms_that_train_need_an_extra_at_import() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"))
        outside = {
            name.split(".")[0]
            for node in tree.body
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
            for name in imports(node)
        } & EXTRAS
        assert outside <= TRAINED.get(room_of(path), set()), (path, outside)


@pytest.mark.parametrize("module", ["blip_lite", "blip_lite.cli", "blip_lite.captioning.command"])
def test_captioning_imports_none_of_the_extras(module: str) -> None:
    code = f"import sys, {module}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not EXTRAS & set(found)
