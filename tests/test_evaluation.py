"""A split -> captions -> numbers, and no way for a reference to reach the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from blip_lite import Captioner, evaluation
from blip_lite.config import ConfigError, EvalConfig
from blip_lite.data import DataSet, Example
from blip_lite.evaluation import caption_images, decoding, evaluate, find_checkpoint, gather_captions
from blip_lite.sources import load_data
from blip_lite.training import train
from conftest import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("evaluation"), max_steps=12, max_eval_images=9)
    train(config)
    return Path(str(config.output_dir))


def test_evaluate_writes_captions_metrics_and_a_page(run: Path) -> None:
    result = evaluate(EvalConfig(run=str(run), max_eval_images=9))
    assert json.loads((run / "coco_metrics.json").read_text()) == result
    lines = [json.loads(line) for line in (run / "captions.jsonl").read_text().splitlines()]
    assert len(lines) == result["num_images"] == 9 and result["num_references"] == 45
    assert all(isinstance(line["caption"], str) and len(line["references"]) == 5 for line in lines)
    assert result["sacrebleu_signature"].startswith("nrefs:5|case:lc") and result["decoding"]["num_beams"] == 2
    assert result["human_agreement_sacrebleu"] > 50
    page = (run / "report.html").read_text()
    assert page.count("<img") == 9 and lines[0]["caption"] in page and "http" not in page.replace("http-equiv", "")
    evaluate(EvalConfig(run=str(run), split="validation", max_eval_images=2))
    assert (run / "coco_metrics_validation.json").is_file()


def test_the_run_the_checkpoint_belongs_to_is_found(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkpoint(EvalConfig(run=str(run))) == (str(run / "best"), run)
    assert find_checkpoint(EvalConfig(run=str(run), ckpt="latest"))[0] == str(run / "checkpoint-000012")
    assert find_checkpoint(EvalConfig(ckpt=str(run / "best")))[1] == run.resolve()
    assert find_checkpoint(EvalConfig(ckpt="Salesforce/blip-image-captioning-base"))[1] is None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run under runs/"):
        find_checkpoint(EvalConfig())
    with pytest.raises(ConfigError, match="no best checkpoint; there is no such directory"):
        find_checkpoint(EvalConfig(run="nowhere"))
    with pytest.raises(ConfigError, match="say which images with --dataset"):
        evaluate(EvalConfig(ckpt="Salesforce/blip-image-captioning-base"))


def test_changing_every_reference_changes_no_caption(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.metrics, "coco_metrics", lambda *_: {})  # its Java takes long, and comes after
    before = evaluate(EvalConfig(run=str(run), max_eval_images=9))
    captions = (run / "captions.jsonl").read_text().splitlines()

    def lied(config) -> DataSet:
        data = load_data(config)
        data.splits["test"] = [dataclasses.replace(e, captions=("a lie", "another lie")) for e in data.splits["test"]]
        return data

    monkeypatch.setattr(evaluation, "load_data", lied)
    after = evaluate(EvalConfig(run=str(run), max_eval_images=9))
    changed = (run / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in changed] == [json.loads(line)["caption"] for line in captions]
    assert (before["num_references"], after["num_references"]) == (45, 18)


def test_an_undecodable_image_is_counted_and_named(run: Path) -> None:
    captioner = Captioner.from_pretrained(run / "best", device="cpu")
    config = tiny_config(run)
    examples = [*load_data(config).splits["test"][:3], Example("broken", b"no image", ("a star",))]
    captions, failures = caption_images(
        captioner, examples, decoding(config, captioner.model, captioner.processor), "", 2, 0
    )
    assert list(captions) == [e.image_id for e in examples[:3]]
    assert list(failures) == ["broken"] and "not an image" in failures["broken"]


def test_lost_and_doubled_images_are_an_error() -> None:
    assert gather_captions([("b", "x"), ("a", "y")], {}, ["a", "b"]) == ({"a": "y", "b": "x"}, {})
    for pairs in ([("a", "x")], [("a", "x"), ("a", "x"), ("b", "y")]):
        with pytest.raises(RuntimeError, match="for 2 images"):
            gather_captions(pairs, {}, ["a", "b"])
