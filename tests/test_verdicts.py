"""What numbers say, and where they say nothing; each verdict from a run that earns it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_lite.cli import main
from blip_lite.data.load import load_data
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.evaluation import evaluate as evaluation
from blip_lite.evaluation import verdicts
from blip_lite.evaluation.coco_process import COCO_METRICS
from blip_lite.evaluation.metrics import are_templates, variety
from blip_lite.training.loop import train
from conftest import real_data, tiny_config


def names(found: list[verdicts.Verdict]) -> list[str]:
    assert all(v["text"] and v["advice"].endswith(".") for v in found)
    return [v["name"] for v in found]


def test_a_leak_is_what_is_above_humans_beyond_its_interval() -> None:
    assert names(verdicts.leak(26.0, 22.0, 20.0, 0.1, 100)) == ["possible leak"]
    assert verdicts.leak(24.0, 22.0, 20.0, 0.1, 100) == []  # a little above one human
    assert verdicts.leak(26.0, 19.0, 20.0, 0.1, 100) == []  # perhaps by chance
    assert verdicts.leak(90.0, 80.0, None, 0.1, 100) == []  # no second human to compare with
    assert "50% of the captions" in verdicts.leak(90.0, 80.0, None, 0.5, 100)[0]["text"]
    assert verdicts.leak(90.0, 80.0, 20.0, 1.0, 19) == []  # too few images


def test_better_worse_or_not_shown() -> None:
    for score, p, name in (
        (9.0, 0.01, "better than it"),
        (5.0, 0.01, "worse than it"),
        (9.0, 0.2, "no better than it"),
    ):
        [found] = verdicts.against("it", score, 7.0, p, 100, "Good.", "Bad.")
        assert found["name"] == name and found["advice"] == ("Good." if name[0] == "b" else "Bad.")
    assert verdicts.against("it", 9.0, 7.0, 0.001, 19, "Good.", "Bad.") == []


def test_collapsed_is_judged_beside_a_human() -> None:
    assert names(verdicts.collapsed(100, 3, 0.6, 95, 0.02)) == ["collapsed"]
    assert names(verdicts.collapsed(100, 9, 0.2, 95, 0.02)) == ["collapsed"]
    assert verdicts.collapsed(100, 60, 0.1, 95, 0.02) == []
    assert verdicts.collapsed(100, 3, 0.6, 4, 0.6) == []  # humans write no more: scans without a finding
    assert verdicts.collapsed(4, 1, 1.0, 4, 0.25) == []


def log(validation: list[float], training: list[float]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for n, (val, loss) in enumerate(zip(validation, training, strict=True), 1):
        lines += [{"step": 10 * n - 5, "loss": loss}, {"step": 10 * n, "loss": loss}]
        lines.append({"step": 10 * n, "val_loss": val, "val_images": 100})
    return lines


def test_overfitted_names_the_step() -> None:
    [found] = verdicts.overfitted(log([3, 2, 2.5, 3], [3, 2, 1, 0.5]))
    assert "from 2.000 at step 20 to 3.000 at step 40" in found["text"] and "from 2.000 to 0.500" in found["text"]
    assert verdicts.overfitted(log([3, 2, 2.5], [3, 2, 1])) == []  # risen once
    assert verdicts.overfitted(log([3, 2, 2.5, 3], [3, 2, 2.5, 3])) == []  # it diverged
    assert verdicts.overfitted(log([3, 2, 2.01, 2.02], [3, 2, 1, 0.5])) == []  # hardly risen
    without = [line for line in log([3, 2, 2.5, 3], [3, 2, 1, 0.5]) if "loss" not in line]
    assert verdicts.overfitted(without) == []


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=8))
def test_a_loss_that_only_falls_is_never_overfitted(losses: list[float]) -> None:
    falling = sorted(losses, reverse=True)
    assert verdicts.overfitted(log(falling, falling)) == []


def test_few_images_matter_where_something_was_chosen() -> None:
    assert names(verdicts.few_images(4, 2)) == ["chosen on few images"]
    assert verdicts.few_images(1, 2) == verdicts.few_images(4, 50) == []
    assert verdicts.of_log([]) == verdicts.of_log([{"step": 1, "loss": 2.0}]) == []


def test_of_few_images_nothing_is_said_and_that_is_said() -> None:
    assert names(verdicts.scored_on_few(19)) == ["scored on few images"] and verdicts.scored_on_few(20) == []
    assert "1 image was" in verdicts.scored_on_few(1)[0]["text"]


def test_templates_are_told_from_what_people_say_and_from_what_leaked() -> None:
    scenes = [scene_captions(scene) for scene in scene_ids(30, 1)]
    assert are_templates(scenes, ["a small red star"])
    assert not are_templates(scenes, [c for captions in scenes for c in captions])  # training had them all
    people = [[f"a {word} beside a house", "something else"] for word in map(str, range(30))]
    assert not are_templates(people, []) and not are_templates(people * 2, [])
    lines = (real_data("flickr8k") / "Flickr8k.token.txt").read_text().splitlines()[:500]
    assert not are_templates([[line.split("\t")[1] for line in lines[n : n + 5]] for n in range(0, 500, 5)], [])


def test_variety() -> None:
    found = variety(["A red dog.", "a red dog", "a cat"], ["a cat"])
    assert found == {"distinct_captions": 2, "vocabulary_size": 4, "novel_captions": pytest.approx(2 / 3)}
    assert variety(["a"], [])["novel_captions"] is None  # what training had is not known


def learnt_by_heart(folder: Path) -> Path:
    """Scenes with captions of other scenes, so that nothing can be learnt; the test images are trained on too."""
    folder.mkdir()
    scenes, rows = scene_ids(26, 5), []
    for n, scene in enumerate(scenes):
        draw_scene(scene, 32).save(folder / f"{n}.png")
        captions = scene_captions(scenes[n - 7])[: 2 if n < 24 else 5]
        rows.append({"file_name": f"{n}.png", "caption": captions, "split": "train" if n < 24 else "validation"})
    for n in range(24):
        shutil.copy(folder / f"{n}.png", folder / f"copy-{n}.png")
        rows.append({**rows[n], "file_name": f"copy-{n}.png", "split": "test"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.long
def test_each_verdict_from_a_run_that_earns_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learnt by heart, leaking, chosen on two images; then one caption for all images, collapsed."""
    monkeypatch.setattr(evaluation, "coco_metrics", lambda *_, **__: {"reasons": dict.fromkeys(COCO_METRICS, "")})
    data, run, none = learnt_by_heart(tmp_path / "data"), tmp_path / "run", tmp_path / "collapsed"
    config = tiny_config(
        tmp_path, dataset=str(data), max_train_images=None, max_eval_images=None, epochs=60, max_steps=None,
        batch_size=12, eval_every=20, learning_rate=2e-3, logging_steps=5,
    )  # fmt: skip
    train(config)
    said = capsys.readouterr().out
    assert "overfitted: the validation loss rose" in said and "was chosen on 2 images" in said
    assert f"evaluate.py --run {run}" in said or f"blip-lite evaluate --run {run}" in said
    assert "overfitted" in (run / "README.md").read_text()
    assert main(["evaluate", "--run", str(run), "--ckpt", "latest"]) == 0
    [leaking] = (run / "evaluations").glob("*/coco_metrics.json")
    found = json.loads(leaking.read_text())
    assert {"possible leak", "better than one caption for every image", "overfitted", "chosen on few images"} == set(
        names(found["verdicts"])
    )
    assert found["warnings"] and "possible leak: " in capsys.readouterr().out

    train(tiny_config(tmp_path, output_dir=str(none), max_steps=6, scenes=600))
    assert len(load_data(tiny_config(tmp_path, scenes=600).replace(max_eval_images=None).data, 3).splits["test"]) >= 20
    assert main(["evaluate", "--run", str(none)]) == 0
    found = json.loads((none / "coco_metrics.json").read_text())
    assert names(found["verdicts"])[0] == "collapsed"
    assert names(found["verdicts"])[1] in (
        "no better than one caption for every image",
        "worse than one caption for every image",
    )
    card = (none / "README.md").read_text()
    assert "**collapsed**: " in card and "one caption for every image" in card
