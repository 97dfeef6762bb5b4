"""Hostile input: files that are no images, checkpoints that mean harm. Refused by name, before anything is run or filled."""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from blip_lite.errors import CheckpointError, ImageError
from blip_lite.model.pretrained import load_pretrained
from blip_lite.processing.images import open_image
from conftest import ROOT


def fuzz(count: int, seed: int) -> None:
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=3600)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["outcomes"]) == {"image", "ImageError"}, found
    assert found["slowest_seconds"] < 2 and found["peak_memory_bytes"] < 2.5e9, found


def test_broken_images_in_short() -> None:
    fuzz(20_000, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_broken_images(seed: int) -> None:
    fuzz(200_000, seed)


def test_what_other_programs_would_have_to_read_is_refused(tmp_path: Path) -> None:
    """Of PostScript, Pillow would run Ghostscript; whatever the file is called."""
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    with Image.open(tmp_path / "photo.jpg") as image:
        assert image.format == "EPS"
    with pytest.raises(ImageError, match="not a JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF image"):
        open_image(tmp_path / "photo.jpg")


def test_bombs_are_refused_before_they_are_decoded() -> None:
    def refused(width: int, height: int) -> str:
        buffer = io.BytesIO()
        Image.new("RGBA", (8, 8)).save(buffer, "WEBP", save_all=True, append_images=[Image.new("RGBA", (8, 8), "red")])
        data = bytearray(buffer.getvalue())
        at = data.find(b"VP8X") + 12  # the canvas, each less one in three bytes
        data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        start = time.thread_time()
        with pytest.raises(ImageError) as caught:
            open_image(bytes(data))
        assert time.thread_time() - start < 0.1
        return str(caught.value)

    assert "refused, 10000 x 10000 pixels in" in refused(10_000, 10_000)
    assert "refused, 2000000 x 40 pixels" in refused(2_000_000, 40)
    assert "exceeds limit" in refused(16_000, 16_000)  # Pillow's own


def changed(hf_dir: Path, folder: Path, half: str, **values: object) -> Path:
    shutil.copytree(hf_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config[half].update(values)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("half", "values"),
    [
        ("text_config", {"num_hidden_layers": 10**9}),
        ("vision_config", {"num_hidden_layers": 10**9}),
        ("vision_config", {"hidden_size": 2**40}),
        ("vision_config", {"image_size": 10**7}),
        ("vision_config", {"patch_size": 0}),
        ("text_config", {"vocab_size": 10**12}),
        ("text_config", {"max_position_embeddings": -5}),
        ("text_config", {"num_attention_heads": 0}),
        ("text_config", {"hidden_size": "768"}),
    ],
)
def test_absurd_sizes(hf_dir: Path, tmp_path: Path, half: str, values: dict[str, object]) -> None:
    start, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (name,) = values
    with pytest.raises(CheckpointError, match=rf"{half}\.{name} is .*; expected 1 to"):
        load_pretrained(changed(hf_dir, tmp_path / "evil", half, **values))
    assert time.thread_time() - start < 1 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "processor_config.json"])
def test_a_file_of_a_gigabyte_is_not_read(hf_dir: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(hf_dir, tmp_path / "evil")
    with open(tmp_path / "evil" / name, "wb") as file:
        file.truncate(2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=rf"{name}: refused, 1,024 MiB; at most 64 are read"):
        load_pretrained(tmp_path / "evil")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside the directory"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "outside the directory"),
        ('{"weight_map": {"a": ".."}}', "outside the directory|cannot be read"),
        ('{"weight_map": {"a": 3}}', "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ("[]", "expected a JSON object"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_an_index_that_leads_astray(hf_dir: Path, tmp_path: Path, index: str, told: str) -> None:
    shutil.copytree(hf_dir, tmp_path / "evil")
    (tmp_path / "evil" / "model.safetensors").unlink()
    (tmp_path / "evil" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=told):
        load_pretrained(tmp_path / "evil")
