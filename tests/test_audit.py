"""The audit finds leaks, near-duplicates and captions that are hardly of their image."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from blip_lite.captioner import Captioner
from blip_lite.cli import main
from blip_lite.data.audit import audit, look, near_duplicates
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.processing.picture import Picture
from blip_lite.settings import TrainConfig
from conftest import ROOT, real_data


def noise(seed: int) -> Image.Image:
    """A picture of soft random blobs: unlike any other, as photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((180, 140), Image.Resampling.BICUBIC)


def make(folder: Path) -> Path:
    """Three splits; the test split has one exact and two near-duplicates of training images, and a broken file."""
    for split, numbers in (("train", range(12)), ("validation", range(12, 16)), ("test", range(16, 20))):
        (folder / split).mkdir(parents=True)
        for n in numbers:
            noise(n).save(folder / split / f"{n}.png")
            (folder / split / f"{n}.txt").write_text(f"a picture of number {n}\nthe same words")
    shutil.copy(folder / "train" / "3.png", folder / "test" / "17.png")
    noise(4).resize((90, 70)).save(folder / "test" / "18.jpg", quality=60)
    ImageOps.mirror(noise(5)).save(folder / "test" / "19.jpg", quality=80)
    (folder / "test" / "18.png").unlink()
    (folder / "test" / "19.png").unlink()
    (folder / "validation" / "12.png").write_bytes(b"no image")
    return folder


def test_leaks_are_found_and_end_in_an_error(tmp_path: Path) -> None:
    folder = make(tmp_path / "set")
    run = [sys.executable, "-m", "blip_lite", "audit", "--dataset", str(folder), "--model", "tiny"]
    done = subprocess.run([*run, "--output_dir", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "LEAK: train/3.png (train) and test/17.png (test) are the same file" in done.stdout
    assert "train/4.png (train) and test/18.jpg (test)" in done.stdout
    assert "train/5.png (train) and test/19.jpg (test) mirrored" in done.stdout
    assert "bad image: validation/12.png" in done.stdout
    found = json.loads((tmp_path / "out-audit" / "audit.json").read_text())
    assert found["leaks"] == 1 and len(found["near_duplicates"]) == 2
    assert found["captions_in_several_splits"]["examples"] == [["the same words", ["test", "train", "validation"]]]
    assert found["train"]["images"] == 12 and found["train"]["captions"] == 24
    page = (tmp_path / "out-audit" / "audit.html").read_text()
    assert page.count("data:image/webp;base64,") == 19 and "test/18.jpg" in page


def test_without_a_leak_the_exit_code_is_0_and_train_py_can_do_it(tmp_path: Path) -> None:
    run = [sys.executable, "train.py", "--audit", "--dataset", "shapes", "--model", "tiny", "--max_train_images", "50"]
    done = subprocess.run([*run, "--output_dir", str(tmp_path / "x")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "exact duplicates 0" in done.stdout and "50 images, 250 captions" in done.stdout
    assert main(["audit", "--dataset", str(tmp_path / "nothing")]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["adit"])
    assert stop.value.code == 2


def test_with_a_checkpoint_wrong_captions_stand_out(
    tmp_path: Path, hf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token lengths come from its tokenizer; the page lists what `Captioner.score` finds least likely."""
    for n, scene in enumerate(scene_ids(40, 0)):
        draw_scene(scene, 32).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text("\n".join(scene_captions(scene)[:2]) + (" large" * 60 if n == 7 else ""))
    out = audit(
        TrainConfig.of(dataset=str(tmp_path), model=str(hf_dir), output_dir=str(tmp_path / "run"), max_length=20)
    )
    cut = sum(
        out[split].get("truncated_share", 0) * out[split]["captions"] for split in ("train", "validation", "test")
    )
    assert round(cut) >= 1 and out["token_lengths_unknown"] is None
    listed = out["highest_losses"]
    assert len(listed) == 60 and listed == sorted(listed, key=lambda one: -one["loss"])
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    worst = next(one for one in listed if len(one["caption"].split()) < 15)
    score = captioner.score(tmp_path / worst["image_id"], worst["caption"])
    assert score == pytest.approx(-worst["loss"], abs=1e-5)


def test_near_duplicates_of_real_photographs_are_found_and_nothing_else() -> None:
    """Re-encoded, resized and mirrored copies of 60 photographs; no two different ones are called alike."""
    files = sorted(real_data("flickr8k", "Flicker8k_Dataset").glob("*.jpg"))[:60]
    originals, copies = [], []
    for number, file in enumerate(files):
        image = Image.open(file)
        changed = (image.resize((200, 150)), ImageOps.mirror(image), image)[number % 3]
        buffer = io.BytesIO()
        changed.save(buffer, "JPEG", quality=50)
        originals.append(look(Picture(file.name, file, ())))
        copies.append(look(Picture(file.name, buffer.getvalue(), ())))
    assert near_duplicates(originals, copies) == [(n, n, n % 3 == 1) for n in range(60)]
