"""README and docs say what is there: commands, options, rooms and code; and say it in short sentences."""

from __future__ import annotations

import doctest
import re
import statistics

import blip_lite
from blip_lite.command_line import parsers
from conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
PAGES = {page: page.read_text("utf-8") for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_first_two_bash_blocks_set_up_and_run_everything() -> None:
    main, test = [text for language, text in BLOCK.findall(README) if language == "bash"][:2]
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
    for script in ("docs/leaks.py", "benchmarks/serving.py"):
        known |= set(re.findall(r'add_argument\("--(\w+)"', (ROOT / script).read_text("utf-8")))
    other = {"index-url", "config_file", "print_completion", "num_gpus"}  # of pip, accelerate, the command itself, Ray
    other |= {"nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "signal"}  # of torchrun and srun
    other.add("data-binary")  # of curl
    used = {option for text in PAGES.values() for option in re.findall(r"--([a-z][\w-]*)", text)} - other
    assert {option.replace("-", "_") for option in used} <= known, used - known


def test_every_room_is_in_the_table() -> None:
    rooms = set(re.findall(r"^\| `(\w+)(?:/|\.py)` \|", PAGES[ROOT / "docs" / "architecture.md"], re.MULTILINE))
    package = {p.stem for p in (ROOT / "blip_lite").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert rooms == package - {"__init__", "__main__"}


def test_python_blocks_are_valid_and_use_what_is_public() -> None:
    for page, text in PAGES.items():
        for language, code in BLOCK.findall(text):
            if language == "python":
                examples = doctest.DocTestParser().get_examples(code)
                compile("".join(example.source for example in examples) or code, str(page), "exec")
                for names in re.findall(r"from blip_lite import (.+)", code):
                    assert set(names.split(", ")) <= set(blip_lite.__all__)


def test_every_linked_file_exists() -> None:
    for page in (*PAGES, ROOT / "aws_sagemaker" / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page, target)


def sentences(text: str) -> list[int]:
    """Words of each sentence outside code, tables and headings; a bullet and what a colon ends are sentences too."""
    text = BLOCK.sub("\n\n", text)
    text = re.sub(r"^(\||#|!|:::|    ).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", re.sub(r"\]\([^)]*\)", "]", text))
    parts = re.split(r"(?<=[.?!:])\**\s+(?=[A-Z*`\[\"(])|\n\s*\n|^\s*(?:[-*]|\d\.) ", text, flags=re.MULTILINE)
    return [words for part in parts if (words := len(re.findall(r"[\w'’.%-]+", part))) > 2]


def test_sentences_are_short() -> None:
    lengths = sorted(words for text in PAGES.values() for words in sentences(text))
    assert len(lengths) > 200
    assert statistics.median(lengths) < 16 and sum(words > 30 for words in lengths) < 0.08 * len(lengths)
    assert len(README.splitlines()) <= 200
