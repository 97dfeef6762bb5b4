"""`app.py`: a batch of requests, each with its own answer; and over HTTP (`pip install "blip_lite[demo]"`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blip_lite import Captioner
from conftest import ROOT

pytest.importorskip("gradio", reason='needs pip install "blip_lite[demo]"')
from gradio_client import Client, handle_file

import app


@pytest.fixture(scope="module")
def url(hf_dir: Path) -> Iterator[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BLIP_CKPT": str(hf_dir), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, str(ROOT / "app.py")], stdout=subprocess.PIPE, text=True, env=environment) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                break
        process.terminate()


def test_each_request_of_a_batch_has_its_own_answer(hf_dir: Path, tmp_path: Path) -> None:
    captioner, scene = Captioner.from_pretrained(hf_dir, "cpu"), ROOT / "docs" / "scene.png"
    (tmp_path / "broken.jpg").write_text("no image")
    paths = [str(scene), None, str(tmp_path / "broken.jpg"), *[str(scene)] * 5]
    prompts = ["", "", "", "a picture", "x" * 101, None, "a " * 40, "-" * 100]
    captions, tables = app.caption_batch(
        captioner, paths, prompts, [3, 3, 3, 3, 3, 99, 1, 3], [8, 8, 8, 8, 8, 12, 60, None]
    )
    assert captions[0] == captioner(scene, num_beams=3, max_new_tokens=8)
    assert captions[3] == captioner(scene, num_beams=3, max_new_tokens=8, prompt="a picture")
    assert captions[5] == captioner(scene, num_beams=10, max_new_tokens=12)
    assert captions[1] == "Choose a photograph first." and "101 characters" in captions[4]
    assert captions[2] == "This image cannot be used: not a JPEG, PNG, WebP, BMP, GIF or TIFF image."
    assert captions[6].startswith("a a a") and "too long (100 characters" in captions[7]  # the model has 64 positions
    assert [len(table) for table in tables] == [3, 0, 0, 3, 0, 10, 1, 0]
    assert tables[0][0][1] >= tables[0][2][1]


def test_over_http(url: str, hf_dir: Path) -> None:
    captioner, scene = Captioner.from_pretrained(hf_dir, "cpu"), ROOT / "docs" / "scene.png"
    client = Client(url, verbose=False)

    def ask(prompt: str) -> str:
        return client.predict(handle_file(scene), prompt, 3, 8, api_name="/caption")[0]

    prompts = ["", "a", "a picture"] * 4
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, prompts))
    expected = {p: captioner(scene, num_beams=3, max_new_tokens=8, prompt=p) for p in prompts}
    assert found == [expected[p] for p in prompts]
    assert client.predict(None, "", 3, 8, api_name="/caption")[0] == "Choose a photograph first."
