"""What a dashboard would show, read back with W&B's own tool; curves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_lite.cli import main
from blip_lite.reports.dashboards import log_evaluation
from blip_lite.reports.words import word_surprises
from blip_lite.training.loop import train
from conftest import charts_of, tiny_config


def inspect(run: Path, *options: str) -> str:
    """What W&B would be sent by the newest of the run's segments."""
    folder = max((run / "wandb").glob("offline-run-*"))
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", *options, "--json", str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(run)}
    ).stdout


def test_the_dashboard_shows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    config = tiny_config(tmp_path, log_with="wandb", max_steps=4, eval_every=2, wandb_artifacts=True)
    train(config)
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in inspect(run).splitlines()]
    history: dict[tuple[str, int], float] = {}
    for record in records:
        if record["type"] == "history":
            history |= {(name, record["history"]["item"]["step"]): v for name, v in record["history"]["item"].items()}
    for line in lines:
        for name in ("loss", "lr", "grad_norm", "images_per_second", "data_wait_share_of_seconds", "memory_gb"):
            if name in line:
                assert history[f"train/{name}", line["step"]] == pytest.approx(line[name])
        if "val_bleu" in line:
            assert history["val/bleu", line["step"]] == pytest.approx(line["val_bleu"])
            assert any(k.startswith("val/captions") and step == line["step"] for k, step in history)
    text = json.dumps(records)
    about = json.loads((run / "config.json").read_text())
    for wanted in (
        "data/first_look",
        "val/words",
        "run/verdicts",
        about["data_fingerprint"],
        about["versions"]["torch"],
        "best/val_bleu",
        "run-best",
        "model.safetensors",
    ):
        assert wanted in text, wanted
    progress = json.loads((run / "checkpoint-000004" / "state" / "progress.json").read_text())
    assert progress["tracker_id"] in next((run / "wandb").glob("offline-run-*")).name
    # an evaluation adds its numbers; a second's difference tells the segments apart
    time.sleep(1.1)
    log_evaluation(run, "test", {"CIDEr": 0.4321, "dataset": "shapes", "Bleu_4": None})
    [summary] = [json.loads(line) for line in inspect(run).splitlines() if '"test/CIDEr"' in line]
    assert summary["summary"]["update"]["test/CIDEr"] == 0.4321 and "test/dataset" not in json.dumps(summary)
    # the resumed run is the same W&B run
    train(config.replace(resume=True, max_steps=5, wandb_artifacts=False))
    assert len(list((run / "wandb").glob(f"offline-run-*-{progress['tracker_id']}"))) >= 1
    assert {p.name.split("-")[3] for p in (run / "wandb").glob("offline-run-*")} == {progress["tracker_id"]}
    assert "run/resumed" in inspect(run)
    progress = json.loads((run / "checkpoint-000005" / "state" / "progress.json").read_text())
    [note] = progress["resumed"]
    assert note["step"] == 4 and "max_steps was 4, is now 5" in note["changed"]


def test_tensorboard_has_what_wandb_has(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny_config(tmp_path, log_with="tensorboard", max_steps=2, eval_every=1))
    verdict = {"name": "collapsed", "text": "1 | 2", "advice": "Train longer."}
    log_evaluation(tmp_path / "run", "test", {"CIDEr": 0.4321, "step": 2, "verdicts": [verdict]})
    read = events.EventAccumulator(str(tmp_path / "run" / "blip_lite"), {"images": 0, "tensors": 0, "scalars": 0})
    read.Reload()
    tags = read.Tags()
    texts = {
        tag.removesuffix("/text_summary"): [(e.step, e.tensor_proto.string_val[0].decode()) for e in read.Tensors(tag)]
        for tag in tags["tensors"]
    }
    assert [step for step, _ in texts["val/captions"]] == [1, 2] == [step for step, _ in texts["val/words"]]
    pictures = [tag for tag in tags["images"] if tag.startswith("val/captions/")]
    assert len(pictures) == 6 and all(tag.split("/")[2] in texts["val/captions"][1][1] for tag in pictures)
    assert [len(read.Images(tag)) for tag in pictures] == [1] * 6  # once: the captions change, the pictures do not
    assert len([tag for tag in tags["images"] if tag.startswith("data/first_look/")]) == 9
    assert read.Scalars("test/CIDEr")[0].value == pytest.approx(0.4321) and read.Scalars("test/CIDEr")[0].step == 2
    assert r"| collapsed | 1 \| 2 | Train longer. |" in texts["test/verdicts"][0][1]


def test_trackio_has_what_wandb_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    config = tiny_config(tmp_path, log_with="trackio", project="of-a-test", max_steps=2)
    train(config)
    train(config.replace(max_steps=3, resume=True))
    log_evaluation(tmp_path / "run", "test", {"CIDEr": 0.4321, "verdicts": []})
    [name] = storage.get_runs("of-a-test")  # the segments, and the evaluation, are one run
    assert name.startswith("run-")
    found = [(line["step"], key) for line in storage.get_logs("of-a-test", name) for key in line]
    for wanted in (
        (0, "data/first_look"), (1, "train/loss"), (2, "val/captions"), (2, "val/words"), (2, "run/resumed"),
        (3, "train/loss"), (3, "test/CIDEr"),
    ):  # fmt: skip
        assert wanted in found, wanted


def test_one_dashboard_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("network gone")

    monkeypatch.setattr("accelerate.tracking.WandBTracker.start", fails)
    train(tiny_config(tmp_path, log_with="wandb,tensorboard", max_steps=1))
    assert "no dashboard from here on (wandb: OSError: network gone)" in capsys.readouterr().out
    assert list((tmp_path / "run" / "blip_lite").glob("events.out.tfevents.*"))


TEXTS = st.lists(st.sampled_from(["a", "dog", "cat", "runs"]), max_size=4).map(" ".join)


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=30))
def test_words_that_differ_from_humans(images: list[tuple[str, list[str]]]) -> None:
    """What is said as humans say it is no surprise; shares are shares; an image's references count for one."""
    captions = {str(n): caption for n, (caption, _) in enumerate(images)}
    references = {str(n): texts for n, (_, texts) in enumerate(images)}
    often, seldom = word_surprises(captions, references)
    assert all(0 <= use.human < use.model <= 100 for use in often)
    assert all(0 <= use.model < use.human <= 100.0001 for use in seldom)
    assert word_surprises(captions, {i: [caption] for i, caption in captions.items()}) == ([], [])


def test_a_word_that_is_never_said() -> None:
    captions = {str(n): "a dog" for n in range(20)}
    references = {str(n): ["a dog", "a cat"] for n in range(20)}
    assert word_surprises(captions, references) == ([("dog", 100, 50)], [("cat", 0, 50)])


def test_curves_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        train(tiny_config(tmp_path, output_dir=str(tmp_path / name), max_steps=3, eval_every=1))
    runs, page = [str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "curves.html"
    assert main(["plot", *runs, "--output", str(page)]) == 0
    charts = {chart["title"]: chart for chart in charts_of(page.read_text())}
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    for title, name in (("training loss", "loss"), ("validation loss", "val_loss"), ("learning rate", "lr")):
        chart = charts[title]
        assert [s["label"] for s in chart["series"]][:2] == ["a", "b"]
        assert dict(zip(chart["at"], chart["series"][1]["y"])) == {
            line["step"]: line[name] for line in lines if name in line
        }
    best = json.loads((tmp_path / "b" / "best" / "best.json").read_text())
    [mark] = [s for s in charts["validation loss"]["series"] if s["mark"] and s["label"].startswith("b,")]
    assert {x: y for x, y in zip(charts["validation loss"]["at"], mark["y"]) if y is not None} == {
        best["step"]: best["val_loss"]
    }
    assert main(["plot", str(tmp_path / "none")]) == 2 and "no metrics.jsonl here" in capsys.readouterr().err
    assert main(["plot", *runs, "--output", "x.gif"]) == 2 and ".html, .png" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curves.png"
    assert main(["plot", *runs, "--output", str(picture)]) == 0 and picture.stat().st_size > 10_000
