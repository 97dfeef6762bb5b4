"""A split -> captions -> numbers, and no way for a reference to reach the model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blip_lite import Captioner
from blip_lite.cli import main
from blip_lite.data.dataset import DataSet
from blip_lite.data.load import load_data
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.evaluation import captions as captioning
from blip_lite.evaluation import evaluate as evaluation
from blip_lite.evaluation.captions import caption_images, decoding, gather_captions
from blip_lite.evaluation.coco_process import COCO_METRICS
from blip_lite.evaluation.evaluate import evaluate, find_checkpoint, read_predictions
from blip_lite.evaluation.files import table
from blip_lite.evaluation.sweep import sweep
from blip_lite.processing.picture import Picture
from blip_lite.reports.model_card import model_card
from blip_lite.settings import DataSettings, EvalConfig, LoadingSettings, TrainConfig
from blip_lite.training.loop import train
from conftest import ROOT, charts_of, free_port, tiny_config


def no_coco(*_: Any, **__: Any) -> dict[str, Any]:
    """In place of `coco_metrics`, whose Java takes long."""
    return {"reasons": dict.fromkeys(COCO_METRICS, "no Java")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("evaluation"), max_steps=12, max_eval_images=9, scenes=300)
    train(config)
    return Path(str(config.run.output_dir))


@pytest.mark.long
def test_evaluate_writes_captions_metrics_and_a_page(run: Path) -> None:
    result = evaluate(EvalConfig.of(run=str(run)))
    assert json.loads((run / "coco_metrics.json").read_text()) == result
    lines = [json.loads(line) for line in (run / "captions.jsonl").read_text().splitlines()]
    images = result["num_images"]
    assert len(lines) == images > 9 and result["num_references"] == 5 * images
    assert all(isinstance(line["caption"], str) and len(line["references"]) == 5 for line in lines)
    assert result["sacrebleu_signature"].startswith("nrefs:5|case:lc") and result["decoding"]["num_beams"] == 2
    assert result["human_agreement_sacrebleu"] > 50
    said = {line["caption"] for line in lines}
    assert result["distinct_captions"] == len(said) and result["novel_captions"] is not None
    assert result["vocabulary_size"] == len({word for caption in said for word in caption.split()})
    page = (run / "report.html").read_text()
    assert page.count("<img") == images and lines[0]["caption"] in page


def whole_and_its_files(run: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    result = evaluate(EvalConfig.of(run=str(run)))
    names = ("coco_metrics.json", "captions.jsonl", "report.html", "README.md")
    return result, {name: (run / name).read_bytes() for name in names}


def test_nothing_is_replaced_by_less(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of the images, another decoding, another checkpoint, other data: each beside the whole evaluation."""
    monkeypatch.setattr(evaluation, "coco_metrics", no_coco)
    run = Path(shutil.copytree(run, tmp_path / "run"))
    whole, files = whole_and_its_files(run)
    images = whole["num_images"]
    others: dict[str, dict[str, Any]] = {
        "best_2-images": {"max_eval_images": 2},
        "best_num_beams-1": {"num_beams": 1},
        "checkpoint-000012": {"ckpt": "latest"},
        "best_validation_3-images": {"split": "validation", "max_eval_images": 3},
        "best_dataset": {"dataset": str(other_data(tmp_path / "others")), "split": "test"},
    }
    for name, asked in others.items():
        evaluate(EvalConfig.of(run=str(run), **asked))
        [folder] = (run / "evaluations").glob(f"{name}*")
        assert {path.name for path in folder.iterdir()} == {"coco_metrics.json", "captions.jsonl", "report.html"}, name
        assert f"written: {folder}" in capsys.readouterr().out
        assert files == {name: (run / name).read_bytes() for name in files}, name
    said = main(["evaluate", "--list", "--run", str(run)]), capsys.readouterr().out
    table = {line.split("  ")[0]: line for line in said[1].splitlines()}
    assert said[0] == 0 and len(table) == 7
    assert f" {images} " in table["the run's own"] and f"2 of {images}" in table["best_2-images"]
    assert "num_beams 1" in table["best_num_beams-1"] and "(step 12)" in table["checkpoint-000012"]
    # what asks for the run's own settings, or for its data where they lie now, is the run's own
    evaluate(EvalConfig.of(run=str(run), num_beams=2, scenes=300, dtype="float32"))
    assert len(list((run / "evaluations").iterdir())) == 5
    assert json.loads((run / "coco_metrics.json").read_text())["sacrebleu"] == whole["sacrebleu"]


def other_data(folder: Path) -> Path:
    folder.mkdir()
    rows = []
    for n, scene in enumerate(scene_ids(4, 5)):
        draw_scene(scene, 32).save(folder / f"{n}.png")
        rows.append({"file_name": f"{n}.png", "caption": scene_captions(scene), "split": ("train", "test")[n % 2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_what_was_known_stays_and_what_was_of_other_weights_is_set_aside(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    numbers: dict[str, Any] = {"CIDEr": 0.5}
    monkeypatch.setattr(evaluation, "coco_metrics", lambda *_, **__: no_coco() | numbers)
    first = evaluate(EvalConfig.of(run=str(run), compare=str(run / "best")))
    numbers["CIDEr"] = None  # say, without Java; and nobody asked for the comparison again
    again = evaluate(EvalConfig.of(run=str(run)))
    assert again["CIDEr"] == 0.5 and again["baselines"]["compare"] == first["baselines"]["compare"]
    # an undecodable image: fewer than before
    monkeypatch.setattr(evaluation, "caption_with", one_fails(evaluation.caption_with))
    fewer = evaluate(EvalConfig.of(run=str(run)))
    assert fewer["num_images"] == first["num_images"] - 1
    assert json.loads((run / "coco_metrics.json").read_text()) == again
    # of a version that knew no better, or of the best before a --resume
    old = {**again, "checkpoint_sha256": "other", "num_images": 2}
    for name in ("left_out", "differs", "step", "evaluated", "verdicts"):
        del old[name]
    (run / "coco_metrics.json").write_text(json.dumps(old))
    assert "Not evaluated yet" in model_card(run)
    evaluate(EvalConfig.of(run=str(run)))
    assert old in [json.loads(p.read_text()) for p in (run / "evaluations").glob("*/coco_metrics.json")]
    assert "Not evaluated yet" not in model_card(run) and "best_2-images" in table(run)


def one_fails(original: Any) -> Any:
    def caption_with(*arguments: Any) -> Any:
        captions, failures, provenance = original(*arguments)
        image_id = next(iter(captions))
        return {i: c for i, c in captions.items() if i != image_id}, {**failures, image_id: "broken"}, provenance

    return caption_with


def test_the_run_the_checkpoint_belongs_to_is_found(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkpoint(EvalConfig.of(run=str(run))) == (str(run / "best"), run)
    assert find_checkpoint(EvalConfig.of(run=str(run), ckpt="latest"))[0] == str(run / "checkpoint-000012")
    assert find_checkpoint(EvalConfig.of(run=str(run), ckpt="checkpoint-000012"))[0] == str(run / "checkpoint-000012")
    assert find_checkpoint(EvalConfig.of(ckpt=str(run / "best")))[1] == run.resolve()
    weights = str(run / "best" / "model.safetensors")
    assert find_checkpoint(EvalConfig.of(ckpt=weights)) == (str(run / "best"), run.resolve())
    assert find_checkpoint(EvalConfig.of(ckpt="Salesforce/blip-image-captioning-base"))[1] is None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run under runs/"):
        find_checkpoint(EvalConfig())
    with pytest.raises(ConfigError, match="no best checkpoint; there is no such directory"):
        find_checkpoint(EvalConfig.of(run="nowhere"))
    with pytest.raises(ConfigError, match="say which images with --dataset"):
        evaluate(EvalConfig.of(ckpt="Salesforce/blip-image-captioning-base"))


def test_changing_every_reference_changes_no_caption(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "coco_metrics", no_coco)
    config = EvalConfig.of(run=str(run), max_eval_images=9, output_dir=str(tmp_path))
    before = evaluate(config)
    captions = (tmp_path / "captions.jsonl").read_text().splitlines()

    def lied(settings: DataSettings, seed: int, needed: tuple[str, ...]) -> DataSet:
        data = load_data(settings, seed, needed)
        data.splits["test"] = [dataclasses.replace(e, captions=("a lie", "another lie")) for e in data.splits["test"]]
        return data

    monkeypatch.setattr(evaluation, "load_data", lied)
    after = evaluate(config)
    changed = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in changed] == [json.loads(line)["caption"] for line in captions]
    assert (before["num_references"], after["num_references"]) == (45, 18)


def test_an_undecodable_image_is_counted_and_named(run: Path) -> None:
    captioner = Captioner.from_pretrained(run / "best", device="cpu")
    config = tiny_config(run)
    examples = [
        *load_data(config.data, config.optimisation.seed).splits["test"][:3],
        Picture("broken", b"no image", ("a star",)),
    ]
    captions, failures = caption_images(
        captioner, examples, decoding(config.decoding, captioner.model, captioner.processor), "", LoadingSettings(2, 0)
    )
    assert list(captions) == [e.image_id for e in examples[:3]]
    assert list(failures) == ["broken"] and "not a JPEG" in failures["broken"]


def test_lost_and_doubled_images_are_an_error() -> None:
    assert gather_captions([("b", "x"), ("a", "y")], {}, ["a", "b"]) == ({"a": "y", "b": "x"}, {})
    for pairs in ([("a", "x")], [("a", "x"), ("a", "x"), ("b", "y")]):
        with pytest.raises(RuntimeError, match="for 2 images"):
            gather_captions(pairs, {}, ["a", "b"])


@pytest.mark.long
def test_anyones_captions_are_scored(run: Path, tmp_path: Path) -> None:
    before = evaluate(EvalConfig.of(run=str(run), max_eval_images=9, output_dir=str(tmp_path)))
    made = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    rows = [{"image_id": m["image_id"], "caption": m["caption"]} for m in made]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "coco.json").write_text(json.dumps(rows[::-1]))
    for name in ("coco.json", "c.jsonl"):
        config = EvalConfig.of(
            run=str(run), predictions=str(tmp_path / name), max_eval_images=9, output=str(tmp_path / "out.json")
        )
        found = evaluate(config)
        assert json.loads((tmp_path / "out.json").read_text()) == found
        for key in ("sacrebleu", "CIDEr", "METEOR", "intervals_95", "baselines", "exact_match_rate"):
            assert found[key] == before[key], key
    (tmp_path / "few.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps({"image_id": "x", "caption": "a"}))
    with pytest.raises(
        ConfigError, match=r"2 captions of 2 images for a split of 9; 8 have none .*1 are not in the split"
    ):
        evaluate(config.replace(predictions=str(tmp_path / "few.jsonl")))
    (tmp_path / "bad.jsonl").write_text('{"image": "x"}')
    with pytest.raises(ConfigError, match="expected lines of"):
        evaluate(config.replace(predictions=str(tmp_path / "bad.jsonl")))


@pytest.mark.long
def test_two_checkpoints_are_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="runs/othr/best: no such directory"):  # before anything is captioned
        evaluate(EvalConfig.of(run=str(run), compare="runs/othr/best"))
    assert "captioning" not in capsys.readouterr().out
    config = EvalConfig.of(run=str(run), max_eval_images=9, compare=str(run / "best"))
    result = evaluate(config)
    other = result["baselines"]["compare"]
    assert other["sacrebleu"] == result["sacrebleu"] and other["p_value"] > 0.5
    assert other["CIDEr"] == pytest.approx(result["CIDEr"])
    assert "no difference that these images can show" in evaluation.summary(result)
    assert result["baselines"]["human"]["CIDEr"] > 0 and result["baselines"]["most_common_caption"]["caption"]


def test_a_cut_off_evaluation_goes_on_and_a_repeated_one_captions_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "coco_metrics", no_coco)
    config = EvalConfig.of(run=str(run), max_eval_images=9, output_dir=str(tmp_path))
    original, calls = captioning.caption_batch, []

    def dies_in_the_second_batch(*arguments):
        calls.append(len(arguments[1].image_ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(captioning, "caption_batch", dies_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    [journal] = (tmp_path / "captions").glob("*.0.jsonl")
    with open(journal, "ab") as file:
        file.write('\n{"captions": {"half é'.encode()[:-1])
    first = calls[0]
    calls[:] = [0, 0]
    whole = evaluate(config)
    assert first + sum(calls) == 9 and f"captioning {9 - first} images, {first} are done" in capsys.readouterr().out
    calls[:] = [0, 0]
    again = evaluate(config)
    assert sum(calls) == 0 and {**again, "evaluated": 0} == {**whole, "evaluated": 0}
    fresh = evaluate(config.replace(output_dir=str(tmp_path / "fresh")))
    assert fresh["sacrebleu"] == whole["sacrebleu"] and sum(calls) == 9
    evaluate(config.replace(num_beams=1))
    assert sum(calls) == 18  # other settings, other captions


@pytest.mark.parametrize(("dtype", "gain", "said"), [("bfloat16", 0.1, 1), ("bfloat16", 2.0, 0), ("float32", 0.1, 0)])
def test_bfloat16_on_a_processor_without_its_instructions_is_told(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
    gain: float,
    said: int,
) -> None:
    monkeypatch.setattr("blip_lite.model.flops.bfloat16_gain", lambda _: gain)
    config = TrainConfig.of(dataset="shapes", scenes=300, num_beams=1, max_new_tokens=4, batch_size=2)
    pictures = load_data(config.data, 0).splits["test"][:1]
    for _ in range(2):  # the second time nothing is left to do
        captioning.caption_with(str(run / "best"), pictures, config, dtype, tmp_path)
    assert capsys.readouterr().out.count("in float32: --dtype float32 is faster") == said


def test_the_untouched_base_stands_beside(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blip_lite.storage import read_run_config

    monkeypatch.setattr(evaluation, "coco_metrics", no_coco)
    began = str(run / "checkpoint-000008")  # as if it were what the run began with
    changed = read_run_config(run).replace(model=began)
    monkeypatch.setattr(evaluation, "read_run_config", lambda _: changed)
    config = EvalConfig.of(run=str(run), max_eval_images=9, output_dir=str(tmp_path))
    row = evaluate(config)["baselines"]["base"]
    alone = evaluate(EvalConfig.of(run=str(run), ckpt=began, max_eval_images=9, output_dir=str(tmp_path)))
    assert row["sacrebleu"] == alone["sacrebleu"] and row["checkpoint"] == began and "base" not in alone["baselines"]
    changed.model.model = "nowhere/at-all"
    assert "reason" in evaluate(config)["baselines"]["base"]
    assert "base" not in evaluate(config.replace(base=False))["baselines"]


@pytest.mark.long
def test_a_sweep_draws_quality_against_speed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EvalConfig.of(
        run=str(run), max_eval_images=5, output_dir=str(tmp_path), sweep=["num_beams=1,3", "length_penalty=0.8,1.2"]
    )
    rows = sweep(config)
    assert [(r["num_beams"], r["length_penalty"]) for r in rows] == [(1, 0.8), (1, 1.2), (3, 0.8), (3, 1.2)]
    assert all(r["images_per_second"] > 0 and 0 <= r["sacrebleu"] <= 100 for r in rows)
    assert rows[0]["CIDEr"] == rows[1]["CIDEr"]  # greedy knows no length penalty
    [chart] = charts_of((tmp_path / "sweep.html").read_text())
    assert [s["label"] for s in chart["series"]][3] == "num beams 3, length penalty 1.2" and len(chart["series"]) == 4
    assert [max(y for y in s["y"] if y is not None) for s in chart["series"]] == [100 * r["CIDEr"] for r in rows]
    assert json.loads((tmp_path / "sweep.json").read_text()) == rows
    assert "shapes, validation: 5 images" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--sweep beams=3: expected name=value"):
        sweep(config.replace(sweep=["beams=3"]))
    with pytest.raises(ConfigError, match="--num_beams must be above 0"):
        sweep(config.replace(sweep=["num_beams=0"]))


@pytest.mark.parametrize(
    "grid, told",
    [
        (["num_beams=1", "num_beams=3"], "num_beams comes twice"),
        (["length_penalty=1,0.8,1.0"], "--sweep length_penalty=1,0.8,1.0: a value comes twice"),
        (["length_penalty=1,20"], "--length_penalty must be between -10 and 10"),
    ],
)
def test_a_sweep_that_would_lose_values_or_break_off_captions_nothing(
    run: Path, tmp_path: Path, grid: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        sweep(EvalConfig.of(run=str(run), max_eval_images=5, output_dir=str(tmp_path), sweep=grid))
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_two_processes_evaluate_as_one(run: Path, tmp_path: Path) -> None:
    whole = evaluate(EvalConfig.of(run=str(run), max_eval_images=9, output_dir=str(tmp_path / "one")))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    command += [
        str(ROOT / "evaluate.py"),
        "--ckpt",
        str(run / "best"),
        "--max_eval_images",
        "9",
        "--output_dir",
        str(tmp_path / "two"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.count("shapes, test: 9 images") == 1, done.stderr
    assert len(list((tmp_path / "two" / "captions").glob("*.[01].jsonl"))) == 2  # each did its share
    shared = json.loads((tmp_path / "two" / "coco_metrics.json").read_text())
    assert {k for k in whole if whole[k] != shared[k]} <= {"seconds", "images_per_second", "evaluated"}


def test_a_folder_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for asked in ({}, {"sweep": ["num_beams=1"]}):
        with pytest.raises(ConfigError, match=r"file/captions cannot be written .*name another with --output_dir"):
            (sweep if asked else evaluate)(EvalConfig.of(run=str(run), output_dir=str(tmp_path / "file"), **asked))


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x1e"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_captions_with_signs_that_look_like_line_ends(tmp_path: Path, mark: str, end: str) -> None:
    """As other programs write them; JSON lines end at a line feed only."""
    pictures = [Picture(str(n), b"", ("a dog",), str(n)) for n in range(2)]
    rows = [{"image_id": picture.image_id, "caption": f"a{mark}dog"} for picture in pictures]
    text = end.join(json.dumps(row, ensure_ascii=mark < " ") for row in rows) + end + end
    (tmp_path / "p.jsonl").write_bytes(text.encode())
    assert read_predictions(tmp_path / "p.jsonl", pictures) == {"0": f"a{mark}dog", "1": f"a{mark}dog"}
