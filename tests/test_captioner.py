"""`Captioner`: every kind of input, the settings, and an environment without the training packages."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip_lite import Captioner
from blip_lite.data.sources.shapes import draw_scene, scene_ids
from blip_lite.errors import ImageError
from blip_lite.model.blip import Blip
from blip_lite.model.generation import generate
from blip_lite.processing.processor import Processor
from conftest import ROOT


@pytest.fixture(scope="module")
def captioner(hf_dir: Path) -> Captioner:
    return Captioner.from_pretrained(hf_dir, device="cpu")


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [draw_scene(scene, 48) for scene in scene_ids(5, 1)]


def test_one_in_one_out_list_in_list_out(captioner: Captioner, pictures: list[Image.Image], tmp_path: Path) -> None:
    pictures[0].save(tmp_path / "a.png")
    one = captioner(tmp_path / "a.png")
    assert isinstance(one, str) and one
    sources = [str(tmp_path / "a.png"), pictures[0], (tmp_path / "a.png").read_bytes(), np.asarray(pictures[0])]
    assert captioner(sources) == [one] * 4
    assert captioner([]) == []
    assert captioner((tmp_path / "a.png",)) == [one]


def test_batch_size_does_not_change_captions(captioner: Captioner, pictures: list[Image.Image]) -> None:
    alone = [captioner(p) for p in pictures]
    assert captioner(pictures, batch_size=2) == captioner(pictures, batch_size=8) == alone


def test_files_decoded_by_threads_keep_their_order(
    captioner: Captioner, pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    alone, by_threads = [captioner(p) for p in pictures], set()
    rgb = Processor.rgb

    def slow(self: Processor, source: Any) -> torch.Tensor:
        by_threads.add((threading.current_thread() is threading.main_thread(), isinstance(source, Path)))
        time.sleep(0.02 * (source == paths[0]))  # the others overtake it
        return rgb(self, source)

    monkeypatch.setattr(Processor, "rgb", slow)
    sources = [*paths, pictures[1], paths[1], pictures[1]]
    before = threading.active_count()
    assert captioner(sources, batch_size=3) == [*alone, alone[1], alone[1], alone[1]]
    assert by_threads == {(False, True), (True, False)} and threading.active_count() == before
    paths[4].write_bytes(b"")
    with pytest.raises(ImageError, match=r"4\.png"):
        captioner(sources, batch_size=2)
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_batch_that_does_not_fit_is_halved(
    hf_dir: Path, pictures: list[Image.Image], error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    captioner, sizes, room = Captioner.from_pretrained(hf_dir, device="cpu"), [], 3
    expected = captioner(pictures * 3, prompt=["a", "two"] * 7 + [None], num_beams=2)

    def small(model: Blip, pixels: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > room:
            raise error
        return generate(model, pixels, *rest)

    monkeypatch.setattr("blip_lite.captioner.generate", small)
    found = captioner(pictures * 3, prompt=["a", "two"] * 7 + [None], num_beams=2, batch_size=15)
    assert found == expected and max(sizes[-5:]) <= room
    assert [r.getMessage() for r in caplog.records] == ["out of memory with 7 images at a time; 3 fit"]
    sizes.clear()
    captioner(pictures, num_beams=2)
    assert sizes == [3, 2] and len(caplog.records) == 1  # what fits is known
    room = 0
    with pytest.raises(torch.OutOfMemoryError, match="no room for a single image with 2 beams: fewer beams"):
        captioner(pictures, num_beams=2)
    monkeypatch.setattr("blip_lite.captioner.generate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        captioner(pictures)


def test_pixels_are_captioned_alike_before_and_after_they_are_normalised(
    captioner: Captioner, pictures: list[Image.Image]
) -> None:
    settings, rgb = captioner.settings(num_beams=2), torch.stack([captioner.pixels(p) for p in pictures])
    assert rgb.dtype == torch.uint8
    found = captioner.caption_and_score(rgb, settings)
    assert found == captioner.caption_and_score(captioner.processor.pixel_values(pictures), settings)


def test_prompts_of_different_lengths_in_one_batch(captioner: Captioner, pictures: list[Image.Image]) -> None:
    prompts = ["there is", "", "a picture of a", "There is", "two"]
    together = captioner(pictures, prompt=prompts)
    assert together == [captioner(p, prompt=prompt) for p, prompt in zip(pictures, prompts, strict=True)]
    assert together[0].startswith("there is") and together[2].startswith("a picture of a")
    with pytest.raises(ValueError, match="2 prompts for 5 images"):
        captioner(pictures, prompt=["a", "b"])


def test_generation_settings_are_keyword_arguments(captioner: Captioner, pictures: list[Image.Image]) -> None:
    several = captioner(pictures[:2], num_beams=3, num_return_sequences=3, max_new_tokens=6)
    assert [len(found) for found in several] == [3, 3]
    assert len(captioner(pictures[0], num_beams=3, num_return_sequences=2)) == 2
    drawn = [captioner(pictures[0], do_sample=True, num_beams=1, seed=s, temperature=2.0) for s in (1, 1)]
    assert drawn[0] == drawn[1]
    with pytest.raises(TypeError, match="num_beam"):
        captioner(pictures[0], num_beam=3)
    with pytest.raises(ValueError, match="batch_size"):
        captioner(pictures[0], batch_size=0)


def test_a_bad_image_is_named(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ImageError, match="broken.jpg"):
        captioner([tmp_path / "broken.jpg"])


def test_any_path_is_one_and_numbers_that_are_none_are_no_picture(
    captioner: Captioner, pictures: list[Image.Image], tmp_path: Path
) -> None:
    class Its:
        def __init__(self, path: str | bytes) -> None:
            self.path = path

        def __fspath__(self) -> str | bytes:
            return self.path

    pictures[0].save(tmp_path / "a.png")
    expected = captioner(str(tmp_path / "a.png"))
    assert captioner(Its(str(tmp_path / "a.png"))) == captioner(Its(os.fsencode(tmp_path / "a.png"))) == expected  # type: ignore[call-overload]
    with pytest.raises(ImageError, match="must lie between 0 and 1"):
        captioner(np.full((4, 4, 3), np.nan))
    assert isinstance(captioner(pictures[0], prompt="caf\udce9"), str)


def test_dtype_and_device(hf_dir: Path, pictures: list[Image.Image]) -> None:
    half = Captioner.from_pretrained(hf_dir, device="cpu", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert isinstance(half(pictures[0]), str)
    with pytest.raises(ValueError, match="float33"):
        Captioner.from_pretrained(hf_dir, device="cpu", dtype="float33")


def test_it_needs_only_torch_tokenizers_safetensors_pillow_numpy(hf_dir: Path, tmp_path: Path) -> None:
    """Import and caption with every other dependency blocked."""
    draw_scene(scene_ids(1, 0)[0]).save(tmp_path / "a.png")
    blocked = [
        "accelerate",
        "transformers",
        "datasets",
        "sacrebleu",
        "pycocoevalcap",
        "tqdm",
        "wandb",
        "yaml",
        "huggingface_hub",
        "matplotlib",
        "pandas",
    ]
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked}:
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Block())
from blip_lite import Captioner
print(Captioner.from_pretrained({str(hf_dir)!r}, device='cpu')({str(tmp_path / "a.png")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_int8_says_what_is_missing(hf_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="quantize 'int4': expected 'int8'"):
        Captioner.from_pretrained(hf_dir, device="cpu", quantize="int4")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        Captioner.from_pretrained(hf_dir, device="cpu", quantize="int8")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"pip install 'blip_lite\[int8\]'"):
        Captioner.from_pretrained(hf_dir, device="cpu", quantize="int8")


@pytest.mark.slow
def test_int8_captions(hf_dir: Path, pictures: list[Image.Image]) -> None:
    pytest.importorskip("torchao")
    captioner = Captioner.from_pretrained(hf_dir, device="cpu", quantize="int8")
    float32 = Captioner.from_pretrained(hf_dir, device="cpu")
    pixels = captioner.processor.pixel_values(pictures)
    with torch.inference_mode():
        expected, found = float32.model.encode(pixels), captioner.model.encode(pixels)
    assert 0 < (found - expected).norm() / expected.norm() < 0.1
    assert all(captioner(pictures))
