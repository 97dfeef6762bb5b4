"""The feature cache of a frozen encoder: same training, one encoding an image, never stale."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_lite.data.batches import Captions
from blip_lite.model.blip import Blip
from blip_lite.model.pretrained import load_pretrained
from blip_lite.processing.picture import Picture
from blip_lite.training import loop as training
from blip_lite.training.feature_cache import Features, _key
from blip_lite.training.loop import train
from blip_lite.training.validate import Validation
from conftest import tiny_config


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def frozen(tmp_path: Path, name: str, **changes: Any) -> Any:
    values = {"freeze_vision": True, "max_train_images": 12, "max_steps": 9, "output_dir": str(tmp_path / name)}
    return tiny_config(tmp_path, **{**values, **changes})


def test_trains_as_without_the_cache(tmp_path: Path) -> None:
    train(frozen(tmp_path, "cached"))
    train(frozen(tmp_path, "encoded", feature_cache_gb=0))
    assert (
        tmp_path / "cached" / "features" / "features.f16"
    ).stat().st_size == 12 * 17 * 96 * 2  # images, patches and [CLS], width, bytes
    assert not (tmp_path / "encoded" / "features").exists()
    # half precision rounds the features by up to 2 ** -11
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "encoded"), rel=1e-3)


def test_each_image_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    original = Blip.encode

    def spy(self: Blip, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.ndim == 4:
            encoded.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(Blip, "encode", spy)
    monkeypatch.setattr(
        training,
        "validate",
        lambda *a: Validation(
            {
                "val_bleu": 0.0,
                "val_cider": 0.0,
                "val_loss": 0.0,
                "val_loss_other_image": 0.0,
                "val_seconds": 0.0,
                "val_images": 1,
                "val_commonest_caption": 0.0,
            },
            [],
            ([], []),
        ),
    )
    train(frozen(tmp_path, "run"))
    assert sum(encoded) == 12
    # a second run in the same directory finds them; another seed draws other images and another encoder
    encoded.clear()
    train(frozen(tmp_path, "run", max_steps=12, resume=True))
    assert sum(encoded) == 0


def test_a_signal_while_encoding_keeps_what_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Features.put

    def put_then_signal(self: Features, found: dict[int, torch.Tensor | None]) -> None:
        original(self, found)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Features, "put", put_then_signal)
    with pytest.raises(training.Stopped):
        train(frozen(tmp_path, "run"))
    state = (tmp_path / "run" / "features" / "state.u8").read_bytes()
    assert 0 < state.count(b"\x01") < 12 and not list((tmp_path / "run").glob("checkpoint-*"))
    monkeypatch.setattr(Features, "put", original)
    train(frozen(tmp_path, "run", resume=True))
    train(frozen(tmp_path, "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_other_images_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(frozen(tmp_path, "a"))
    train(frozen(tmp_path, "b", max_train_images=11, feature_cache_gb=0))
    shutil.copytree(tmp_path / "a" / "features", tmp_path / "b" / "features")
    capsys.readouterr()
    train(frozen(tmp_path, "b", max_train_images=11, resume=True, max_steps=12))
    assert "they are replaced" in capsys.readouterr().out


def test_the_key_holds_all_that_features_depend_on(hf_dir: Path, scenes_folder: Path) -> None:
    def key(changed: str = "", precision: str = "no") -> str:
        model, processor = load_pretrained(hf_dir)
        if changed == "encoder":
            model.vision_model.post_layernorm.bias.data[0] += 1e-3
        if changed == "decoder":  # no part of it
            model.text_decoder.cls.predictions.bias.data[0] += 1e-3
        if changed == "preprocessing":
            processor.image_mean = (0.5, 0.5, 0.5)
        files = sorted(scenes_folder.glob("*.png"))[:4]
        if changed == "images":
            files = files[::-1]
        examples = [Picture("same id", path, ("a caption",)) for path in files]
        return _key(model, Captions(examples, processor, "", 40), precision)

    assert key() == key("decoder")
    assert len({key(), key("encoder"), key("preprocessing"), key("images"), key(precision="bf16")}) == 5


def test_an_undecodable_image_is_reported_each_time(
    tmp_path: Path, scenes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(scenes_folder, folder)
    for name in sorted(folder.glob("*.png"))[::9]:
        name.write_bytes(b"no image")
    train(frozen(tmp_path, "run", dataset=str(folder), max_train_images=30, max_steps=17, max_bad_images=0.9))
    assert "could not be decoded when the features were made" in capsys.readouterr().err


def test_a_cache_above_the_limit_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(frozen(tmp_path, "run", feature_cache_gb=1e-6))
    assert "more than --feature_cache_gb" in capsys.readouterr().out
    assert not (tmp_path / "run" / "features").exists()
