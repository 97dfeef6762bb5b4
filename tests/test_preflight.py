"""Before hours are spent: what `--sanity` and `--plan` catch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip_lite.data import batches as data
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import TrainingError
from blip_lite.model.blip import Blip
from blip_lite.training import preflight
from blip_lite.training.preflight import plan, sanity
from conftest import tiny_config


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

    def with_cls(items, processor, prompt_length):
        batch = collate(items, processor, prompt_length)
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


def test_plan_measures_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = plan(tiny_config(tmp_path))
    assert 0 < result["peak_memory_gb"] < 24 and result["seconds_per_step"] > 0 and result["total_steps"] == 4
    assert "min an epoch" in capsys.readouterr().out and not (tmp_path / "run").exists()
    page = (tmp_path / "run-plan.html").read_text("utf-8")
    assert page.count("data:image/webp") == 3 * 3 and '<th scope="row">validation</th><td>6</td>' in page
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TrainingError, match="the checkpoints need"):
        plan(tiny_config(tmp_path))
