"""Many files -> captions: killed and started again, every image once."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from blip_lite.bulk import Done, expand
from conftest import ROOT

OPTIONS = ["--num_beams", "1", "--max_new_tokens", "6", "--batch_size", "2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for i in range(9):
        Image.new("RGB", (40, 30), (25 * i, 90, 200 - 20 * i)).save(folder / ("b" if i % 2 else "") / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.md").write_text("not an image")
    return folder


def caption(hf_dir: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "caption.py"), *arguments, "--ckpt", str(hf_dir), *OPTIONS]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options
    )  # type: ignore[call-overload, no-any-return]


def images_in(path: Path) -> list[str]:
    return [json.loads(line)["image"] for line in path.read_text("utf-8").splitlines()]


def test_folders_lists_patterns_and_standard_input(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(expand([str(photos)]))
    assert [Path(n).name for n in names] == [*(f"{i}.png" for i in (0, 2, 4, 6, 8)), "broken.jpg", *(f"{i}.png" for i in (1, 3, 5, 7))]  # fmt: skip
    (photos / "list.txt").write_text("a b.jpg\n\nc.png\n")
    assert list(expand([str(photos / "list.txt"), "x.jpg"])) == ["a b.jpg", "c.png", "x.jpg"]
    assert list(expand([str(photos / "**" / "[13].png")])) == [str(photos / "b" / "1.png"), str(photos / "b" / "3.png")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("p.jpg\nq.jpg"))
    assert list(expand(["-"])) == ["p.jpg", "q.jpg"]
    with pytest.raises(ValueError, match="cannot be read"):
        list(expand(["nowhere.txt"]))


def test_what_is_there_is_not_done_again(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    assert caption(hf_dir, str(photos), "--output", str(whole)).returncode == 1  # one is broken
    lines = whole.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:4]) + lines[4][:10])  # killed while it wrote the fifth
    done = caption(hf_dir, str(photos), "--output", str(output))
    assert output.read_text() == whole.read_text() and "has 4 images already" in done.stderr
    assert done.returncode == 1 and "6 images captioned, 0 failed" not in done.stderr
    # a mended image is tried again only when asked
    Image.new("RGB", (9, 9)).save(photos / "broken.jpg")
    assert caption(hf_dir, str(photos), "--output", str(output)).returncode == 1
    again = caption(hf_dir, str(photos), "--output", str(output), "--retry_failed")
    assert again.returncode == 0, again.stderr
    assert sorted(images_in(output)) == sorted(images_in(whole)) and '"error"' not in output.read_text()
    assert caption(hf_dir, str(photos / "0.png"), "--output", str(output), "--overwrite").returncode == 0
    assert images_in(output) == [str(photos / "0.png")]


def test_killed_at_any_moment_each_image_is_written_once(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output, rng = tmp_path / "out.jsonl", random.Random(0)
    many = tmp_path / "many.txt"
    names = list(expand([str(photos)]))
    copies = tmp_path / "copies"
    copies.mkdir()
    for i in range(60):
        (copies / f"{i:03d}{Path(names[i % 10]).suffix}").symlink_to(names[i % 10])
    many.write_text("\n".join(expand([str(copies)])))
    command = [sys.executable, str(ROOT / "caption.py"), str(many), "--output", str(output), "--ckpt", str(hf_dir), *OPTIONS]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
            before = output.stat().st_size if output.is_file() else 0
            while process.poll() is None and not (output.is_file() and output.stat().st_size > before):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, capture_output=True, env=environment)
    assert images_in(output) == many.read_text().splitlines()


def test_another_file_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"file_name": "a.jpg"}\n')
    with pytest.raises(ValueError, match=r"other.jsonl, line 1: not a line of captions"):
        Done(tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl").read_text() == '{"file_name": "a.jpg"}\n'
