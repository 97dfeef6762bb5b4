"""Before hours are spent: what `--sanity` and `--plan` catch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator

from blip_lite.data import batches as data
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import DataError, TrainingError
from blip_lite.model.blip import Blip
from blip_lite.settings import TrainConfig
from blip_lite.training import preflight
from blip_lite.training.preflight import plan, sanity
from blip_lite.training.setup import prepare, start
from conftest import tiny_config
from emulated_gpu import EmulatedGPU


def test_it_overfits_eight_pictures_word_for_word(tmp_path: Path) -> None:
    """With a wrong start token, mask or label this cannot work: generation would not say what training taught."""
    result = sanity(tiny_config(tmp_path))
    assert len(set(result["captions"])) == 8 and result["last_loss"] < 0.1
    assert not (tmp_path / "run").exists()


def test_sanity_needs_only_images_to_train_on(tmp_path: Path) -> None:
    draw_scene(scene := scene_ids(1, 0)[0], 32).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\na.png,{scene_captions(scene)[0]}")
    with pytest.raises(TrainingError, match="too slow to tell"):  # it began to learn
        sanity(tiny_config(tmp_path, dataset=str(tmp_path)), seconds=0.01)


def test_sanity_fails_when_training_starts_from_cls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake of most public scripts, put back on purpose."""
    collate = data.collate

    def with_cls(items, processor, prompt_length, multiple):
        batch = collate(items, processor, prompt_length, multiple)
        batch.input_ids[:, :, 0] = processor.tokenizer.token_to_id("[CLS]")
        return batch

    monkeypatch.setattr(data, "collate", with_cls)
    with pytest.raises(TrainingError, match=r"training captions begin with \['\[CLS\]'\], generation with"):
        sanity(tiny_config(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("mistake", ["labels not shifted", "image ignored"])
def test_sanity_fails_on_other_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    forward = Blip.forward

    def wrong(self, pixel_values, input_ids, labels, *rest):
        if mistake == "image ignored":
            return forward(self, torch.zeros_like(pixel_values), input_ids, labels, *rest)
        return forward(self, pixel_values, input_ids, labels.roll(1, -1), *rest)  # each token predicts itself

    monkeypatch.setattr(Blip, "forward", wrong)
    reason = (
        "training and generation differ" if mistake == "labels not shifted" else "cannot be learnt from these images"
    )
    with pytest.raises(TrainingError, match=reason):
        sanity(tiny_config(tmp_path), seconds=15)


def test_sanity_blames_neither_dropout_nor_a_clock_on_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --dropout the loss stayed above what was wanted; and captions that nobody had looked at were called wrong."""
    configs = []

    def noted(config: TrainConfig, *args: Any, **options: Any) -> Any:
        configs.append(config)
        raise DataError("seen")

    monkeypatch.setattr(preflight, "prepare", noted)
    with pytest.raises(DataError, match="seen"):
        sanity(tiny_config(tmp_path, dropout=0.3, label_smoothing=0.1))
    assert (configs[0].regularisation.dropout, configs[0].optimisation.label_smoothing) == (0, 0)
    told = preflight.why_not_learnt(["a dog"], [], [4.0] * 120 + [0.09], 60)
    assert told.endswith("too slow to tell") and "differ" not in told


def test_plan_measures_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = plan(tiny_config(tmp_path))
    assert 0 < result["peak_memory_gb"] < 24 and result["seconds_per_step"] > 0 and result["total_steps"] == 4
    told = capsys.readouterr().out
    assert "min an epoch" in told and "/s trained on: " in told and not (tmp_path / "run").exists()
    page = (tmp_path / "run-plan.html").read_text("utf-8")
    assert page.count("data:image/webp") == 3 * 3 and '<th scope="row">validation</th><td>6</td>' in page
    assert plan(tiny_config(tmp_path, ema=0.9))["disk_gb"] > 1.15 * result["disk_gb"]  # three of the average, too
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TrainingError, match="the checkpoints need"):
        plan(tiny_config(tmp_path))


def test_plan_takes_the_captions_that_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a picture with eight short captions only one is taken: a long one needs more. (Of the two long ones, one is
    validated on at most.)"""
    table = ["file_name,caption"]
    for number, scene in enumerate(scene_ids(12, 0)):
        draw_scene(scene, 32).save(tmp_path / f"{number}.png")
        captions = ["a " * 20 + "circle"] if number in (7, 8) else [f"{'a ' * n}circle" for n in range(8)]
        table += [f"{number}.png,{caption}" for caption in captions]
    (tmp_path / "metadata.csv").write_text("\n".join(table))
    for taken, tokens in ((1, 23), (8, 10)):  # [DEC], words and [SEP]; of 8 captions the longest has 8
        plan(tiny_config(tmp_path, dataset=str(tmp_path), batch_size=1, captions_per_image=taken))
        assert f"longest captions ({tokens} tokens)" in capsys.readouterr().out


def test_plan_says_when_loading_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that take a tenth of a second each; a step of four that trains in 0.2 seconds."""
    pixels = data.Captions.pixels

    def slow(self, example):
        time.sleep(0.1)
        return pixels(self, example)

    monkeypatch.setattr(data.Captions, "pixels", slow)
    run = prepare(config := tiny_config(tmp_path, num_workers=1).resolved(), start(config))
    rate, workers = preflight.loading_rate(run)
    assert 4 < rate <= 10 and workers == 1
    assert preflight.outlook(run, 0.2, rate, 1, 20)["seconds_per_step"] == pytest.approx(4 / rate)
    assert "20/s trained on: loading limits" in capsys.readouterr().out
    assert preflight.outlook(run, 0.2, 40, 1, 20)["seconds_per_step"] == 0.2
    assert "40/s are loaded, 20/s trained on: training limits" in capsys.readouterr().out
    # without workers nobody loads meanwhile
    assert preflight.outlook(run, 0.2, 40, 0, 20)["seconds_per_step"] == pytest.approx(0.3)


def test_plan_counts_what_a_gpu_needs_besides_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", torch.device("cuda", 0)):
        run = prepare(config := tiny_config(tmp_path, mixed_precision="no").resolved(), start(config))
        found = preflight.outlook(run, 1.0, 100.0, 0, 20)
    assert found["peak_memory_gb"] == 5  # 4 reserved, one of the context
    assert "5.00 of 24.0 GB" in capsys.readouterr().out
