"""The command that is kept for the day when a GPU is at hand works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from conftest import ROOT


@pytest.mark.slow
def test_the_command_for_a_gpu_works_on_a_tiny_shape(tmp_path: Path) -> None:
    """All parts, on the CPU; a second run keeps what the first had, and a run without time begins nothing."""
    flickr, lines = tmp_path / "flickr8k", []
    (flickr / "Flicker8k_Dataset").mkdir(parents=True)
    for scene in scene_ids(120, 0):
        draw_scene(scene, 64).save(flickr / "Flicker8k_Dataset" / f"{len(lines)}.jpg")
        lines += [f"{len(lines)}.jpg#{i}\t{caption}" for i, caption in enumerate(scene_captions(scene))]
    (flickr / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--short", "--device", "cpu"]
    command += ["--output", str(tmp_path / "results"), "--data_dir", str(flickr)]

    def run(*options: str) -> str:
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("--minutes", "30")
    (path,) = (tmp_path / "results").glob("*/gpu-*.json")
    rows = json.loads(path.read_text())["rows"]
    kinds = {name.split(":")[0] for name in rows}
    assert kinds == {"right", "waits", "captions", "training", "recipe"} and len(rows) == 9
    right = rows["right: tiny, float32"]
    assert right["5 beams"] == right["1 beams"] == "8 of 8"
    assert right["loss"] == pytest.approx(right["loss of transformers"], abs=1e-5)
    for name, row in rows.items():
        if name.startswith(("captions", "training", "recipe")):
            assert row["blip_lite"]["median"] > 0 < row["transformers"]["median"], name
        if name.startswith("captions"):
            batch = name.rsplit(" ", 1)[1]
            assert row["cuda_graphs"]["median"] > 0 and row["cuda_graphs_same_tokens"] == f"{batch} of {batch}"
    assert path.with_suffix(".md").read_text().count("\n| ") == 10 and path.with_suffix(".png").stat().st_size > 1000
    assert "left out" in run("--minutes", "0") and json.loads(path.read_text())["rows"] == rows
    del rows["waits: a tiny model"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": rows}))
    told = run("--resume")
    assert "waits: a tiny model [" in told and "captions" not in told
