"""`examples/caption_ray.py` on two local workers: one killed, the driver killed, every image captioned once.

Needs `pip install "blip_lite[ray]" webdataset`; `pytest -m slow tests/test_ray.py`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from conftest import ROOT

pytest.importorskip("ray", reason='needs pip install "blip_lite[ray]"')
pytestmark = pytest.mark.slow


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(200):
        Image.new("RGB", (300, 200), (i, 90, 200 - i)).save(folder / f"{i:03d}.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(autouse=True)
def no_ray_is_left() -> Iterator[None]:
    yield
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"], capture_output=True)


def start(hf_dir: Path, output: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "examples" / "caption_ray.py"), *arguments, "--ckpt", str(hf_dir), "--output", str(output)]  # fmt: skip
    command += ["--num_workers", "2", "--local_cpus", "4", "--batch_size", "4", "--max_new_tokens", "40"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=240)
    return process.returncode, stderr


def rows(output: Path) -> list[dict[str, object]]:
    return [row for path in output.glob("*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()]


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not happened():
        assert process.poll() is None, "it ended before"
        time.sleep(0.01)


def workers() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"CaptionWorker" in title:
            found.append(int(entry.name))
    return found


def complete(photos: Path, output: Path) -> None:
    found = rows(output)
    assert sorted(str(row["path"]) for row in found) == sorted(map(str, photos.iterdir()))
    failed = [Path(str(row["path"])).name for row in found if row["error"]]
    assert sorted(failed) == ["broken.jpg", "empty.png"]
    assert all(row["caption"] is not None for row in found if not row["error"])


def test_a_worker_is_killed(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(hf_dir, output, str(photos))
    wait_for(workers, process)
    wait_for(lambda: list(output.glob("*.parquet")), process)
    os.kill(workers()[0], signal.SIGKILL)
    code, stderr = finish(process)
    assert code == 1 and "202 images" in stderr and "2 of them failed" in stderr, stderr
    complete(photos, output)


def test_the_driver_is_killed(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output, rng = tmp_path / "out", random.Random(0)
    done = []
    for _ in range(3):
        process, before = start(hf_dir, output, str(photos)), len(list(output.glob("*.parquet")))
        wait_for(lambda before=before: len(list(output.glob("*.parquet"))) > before, process)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"], capture_output=True)
        done.append(len(rows(output)))
    assert 0 < done[0] < done[1] < done[2] < 202
    code, stderr = finish(start(hf_dir, output, str(photos)))
    assert code == 1, stderr
    complete(photos, output)


def test_parquet_and_shards(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    images = sorted(photos.iterdir())[:20]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in images]
    (tmp_path / "in").mkdir()
    pyarrow.parquet.write_table(pa.table({"image": cells, "id": range(20)}), tmp_path / "in" / "a.parquet")
    code, stderr = finish(start(hf_dir, tmp_path / "a", str(tmp_path / "in"), "--format", "parquet", "--id_column", "id", "--num_captions", "2"))  # fmt: skip
    assert code == 0 and sorted(row["id"] for row in rows(tmp_path / "a")) == list(range(20)), stderr  # type: ignore[type-var]
    assert all(len(row["caption"]) == 2 for row in rows(tmp_path / "a"))  # type: ignore[arg-type]
    pytest.importorskip("webdataset", reason="needs pip install webdataset")
    import tarfile

    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for path in images:
            tar.add(path, path.name)
            (tmp_path / "note.json").write_text(json.dumps({"n": 1}))
            tar.add(tmp_path / "note.json", path.stem + ".json")
    code, stderr = finish(start(hf_dir, tmp_path / "b", str(tmp_path / "s.tar"), "--format", "webdataset"))
    assert code == 0 and sorted(str(row["__key__"]) for row in rows(tmp_path / "b")) == [p.stem for p in images], stderr


def test_all_cpus_taken_is_refused(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    code, stderr = finish(start(hf_dir, tmp_path / "out", str(photos), "--num_cpus", "2"))
    assert code == 2 and "leave none of 4 to read with" in stderr
