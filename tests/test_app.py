"""The page of `blip-lite serve`: its answers, and with its own client over HTTP (`pip install "blip_lite[demo]"`)."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blip_lite import Captioner
from conftest import ROOT

pytest.importorskip("gradio", reason='needs pip install "blip_lite[demo]"')
from gradio_client import Client, handle_file

from blip_lite.serving import app
from blip_lite.serving.service import Options, Service

SCENE = ROOT / "docs" / "scene.png"


@pytest.fixture(scope="module")
def url(hf_dir: Path) -> Iterator[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BLIP_CKPT": str(hf_dir), "GRADIO_SERVER_PORT": "0"}
    with subprocess.Popen([sys.executable, str(ROOT / "app.py")], stdout=subprocess.PIPE, text=True, env=environment) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                break
        process.terminate()


def test_each_answer_is_a_caption_or_says_what_is_wrong(hf_dir: Path, tmp_path: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    service = Service(captioner, Options("model"))
    (tmp_path / "broken.jpg").write_text("no image")

    def ask(path: object, prompt: str = "", beams: float = 3, tokens: float = 8) -> tuple[str, int]:
        text, table = asyncio.run(app.caption(service, path and str(path), prompt, beams, tokens))
        return text, len(table)

    assert ask(SCENE) == (captioner(SCENE, num_beams=3, max_new_tokens=8), 3)
    assert ask(SCENE, "a picture", 1) == (captioner(SCENE, num_beams=1, max_new_tokens=8, prompt="a picture"), 1)
    assert ask(None) == ("Choose a photograph first.", 0)
    assert ask(tmp_path / "broken.jpg") == (
        "This image cannot be used: not a JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF image.", 0,
    )  # fmt: skip
    for prompt, beams, told in (("x" * 101, 3, "at most 100 characters"), ("", 99, "less than or equal to 10")):
        text, rows = ask(SCENE, prompt, beams)
        assert text.startswith("No caption: ") and told in text and not rows


def test_the_settings_of_the_checkpoint_are_within_the_pages_limits(hf_dir: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    captioner.processor.decoding = {"num_beams": 12, "max_new_tokens": 8}
    service = Service(captioner, Options("model"))
    start = app.starts(service)
    assert start == {"num_beams": 10, "max_new_tokens": 8}
    text, table = asyncio.run(app.caption(service, str(SCENE), "", *start.values()))
    assert text == captioner(SCENE) and len(table) == 10
    app.page(service)


def test_over_http(url: str, hf_dir: Path, tmp_path: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    client = Client(url, verbose=False)

    def ask(prompt: str) -> str:
        return client.predict(handle_file(SCENE), prompt, 3, 8, api_name="/caption")[0]

    prompts = ["a", "a picture", "two"] * 4
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, prompts))
    expected = {p: captioner(SCENE, num_beams=3, max_new_tokens=8, prompt=p) for p in prompts}
    assert found == [expected[p] for p in prompts]
    assert client.predict(None, "", 3, 8, api_name="/caption")[0] == "Choose a photograph first."
    (tmp_path / "broken.jpg").write_text("no image")
    told = client.predict(handle_file(tmp_path / "broken.jpg"), "", 3, 8, api_name="/caption")[0]
    assert told.startswith("This image cannot be used: not a JPEG")
    # beside the page, HTTP
    request = urllib.request.Request(f"{url}/caption", SCENE.read_bytes(), {"Content-Type": "image/png"})
    assert captioner(SCENE) in urllib.request.urlopen(request).read().decode()
    with urllib.request.urlopen(url) as page:
        assert "/".join(hf_dir.parts[-2:]) in page.read().decode()
