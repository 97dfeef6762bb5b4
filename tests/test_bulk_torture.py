"""`blip-lite caption` killed, on a full disk, on a place that cannot be written, twice at once: nothing lost, nothing twice.

`pytest -m slow -s tests/test_bulk_torture.py` prints how often.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT

pytestmark = pytest.mark.slow
resource = pytest.importorskip("resource")

IMAGES, BROKEN = 240, 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(IMAGES):
        Image.new("RGB", (40, 30), (i, 90, 255 - i)).save(folder / f"{i:03d}.png")
    for i in range(0, IMAGES, IMAGES // BROKEN):
        (folder / f"{i:03d}.png").write_bytes(b"no image")
    return folder


def start(hf_dir: Path, photos: Path, output: Path, limit: int | None = None) -> subprocess.Popen[str]:
    """Caption into a table and beside the images; no file may become larger than `limit` bytes."""

    def full() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [
        sys.executable,
        "-m",
        "blip_lite",
        "caption",
        str(photos),
        "--output",
        str(output),
        "--ckpt",
        str(hf_dir),
    ]
    command += ["--num_beams", "1", "--max_new_tokens", "6", "--batch_size", "2", "--sidecar"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=full)


def all_of_it(photos: Path, output: Path) -> None:
    """Each image once: in the journal, in the table, and its caption beside it."""
    names = sorted(map(str, photos.glob("*.png")))
    rows = [json.loads(line) for line in output.with_name(output.name + ".jsonl").read_text("utf-8").splitlines()]
    assert sorted(row["image"] for row in rows) == names
    assert sum("error" in row for row in rows) == BROKEN
    with open(output, encoding="utf-8", newline="") as file:
        assert sorted(row["image"] for row in csv.DictReader(file)) == names
    said = [row for row in rows if row["caption"]]
    assert len(list(photos.glob("*.txt"))) == len(said)
    assert all(Path(row["image"]).with_suffix(".txt").read_text("utf-8") == row["caption"] + "\n" for row in said)
    left = {path.name for path in output.parent.iterdir()} - {photos.name}
    assert left <= {output.name, f"{output.name}.jsonl", f".{output.name}.lock", f".{output.name}.jsonl.lock"}, left


def test_killed_at_random_moments_until_it_is_done(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output, rng, kills, moments = tmp_path / "out.csv", random.Random(0), 0, []
    journal = tmp_path / "out.csv.jsonl"
    while True:
        process = start(hf_dir, photos, output)
        before = journal.stat().st_size if journal.is_file() else 0
        while process.poll() is None and not (journal.is_file() and journal.stat().st_size > before) and kills < 15:
            time.sleep(0.002)
        try:
            process.communicate(timeout=rng.uniform(0, 0.15) if kills < 15 else 300)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            moments.append(len(journal.read_bytes().splitlines()))
    print(f"{kills} kills, after {moments} lines")
    assert kills >= 5 and process.returncode == 1  # of the broken ones
    all_of_it(photos, output)


def test_a_disk_that_is_full_again_and_again(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output, codes = tmp_path / "out.csv", []
    journal = tmp_path / "out.csv.jsonl"
    for limit in (0, 1_000, 1_001, 6_500, 17_000):
        process = start(hf_dir, photos, output, limit)
        said = process.communicate(timeout=300)[1]
        codes.append((limit, process.returncode, len(journal.read_bytes().splitlines()) if journal.is_file() else 0))
        assert process.returncode in (2, 3) and re.search("File too large|is the disk full", said), said
        assert "Traceback" not in said, said
    print("limit, exit code, lines:", codes)
    process = start(hf_dir, photos, output)
    assert process.communicate(timeout=300) and process.returncode == 1
    all_of_it(photos, output)


def test_two_at_once(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    """Into one table, and into a journal that is another's."""
    output = tmp_path / "out.csv"
    together = [start(hf_dir, photos, at) for at in (output, output, output.with_name("out.csv.jsonl"))]
    said = [process.communicate(timeout=300)[1] for process in together]
    codes = [process.returncode for process in together]
    print("exit codes:", codes)
    assert codes.count(1) >= 1 and set(codes) <= {1, 2}, said
    assert all("another process" in text for code, text in zip(codes, said, strict=True) if code == 2), said
    process = start(hf_dir, photos, output)
    assert process.communicate(timeout=300) and process.returncode == 1
    all_of_it(photos, output)


def test_places_that_cannot_be_written_are_told_before_the_first_image(hf_dir: Path, photos: Path) -> None:
    for place in (Path("/proc/out.csv"), photos / "000.png" / "out.csv", Path("/dev/full/out.csv")):
        process = start(hf_dir, photos, place)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 2 and "cannot be written" in said and not list(photos.glob("*.txt")), said
