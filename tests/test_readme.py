"""The README says what is there: its commands, options, rooms and code."""

from __future__ import annotations

import re

import blip_lite
from blip_lite.command_line import parsers
from conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_two_bash_blocks_set_up_and_run_everything() -> None:
    main, test = [text for language, text in BLOCKS if language == "bash"][:2]
    for command in ("pip install", "train.py --dataset shapes --model tiny", "evaluate.py --ckpt best", "caption.py"):
        assert command in main
    assert "pip install" in test and "pytest" in test
    assert (ROOT / "docs" / "scene.png").is_file() and (ROOT / "docs" / "shapes.png").is_file()


def test_every_option_exists() -> None:
    _, subs = parsers()
    known = {option.removeprefix("--") for sub in subs.values() for option in sub._option_string_actions}
    known |= set(re.findall(r'add_argument\("--(\w+)"', (ROOT / "benchmarks" / "common.py").read_text("utf-8")))
    for script in ("examples/caption_ray.py", "aws_sagemaker/launch_training.py", "aws_sagemaker/deploy_endpoint.py"):
        known |= set(re.findall(r'add\("--(\w+)"', (ROOT / script).read_text("utf-8")))
    other = {"index-url", "no-deps", "config_file", "print_completion"}  # of pip, accelerate, the command itself
    other |= {"nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "signal"}  # of torchrun and srun
    used = {option for option in re.findall(r"--([a-z][\w-]*)", README) if option not in other}
    assert {option.replace("-", "_") for option in used} <= known, used - known


def test_every_room_is_in_the_table() -> None:
    rooms = set(re.findall(r"^\| `(\w+)(?:/|\.py)` \|", README, re.MULTILINE))
    package = {p.stem for p in (ROOT / "blip_lite").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert rooms == package - {"__init__", "__main__"}


def test_python_blocks_are_valid_and_use_what_is_public() -> None:
    for language, text in BLOCKS:
        if language == "python":
            compile(text, "README", "exec")
            for name in re.findall(r"from blip_lite import (.+)", text):
                assert set(name.split(", ")) <= set(blip_lite.__all__)


def test_every_linked_file_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "aws_sagemaker" / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page, target)
