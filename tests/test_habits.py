"""What people do with the commands besides what the README says: nothing is lost, one reading is taken."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip_lite.captioner import Captioner, is_one
from blip_lite.captioning.inputs import expand, without_texts
from blip_lite.captioning.journal import read_journal, take_up
from blip_lite.cli import main
from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.evaluation import evaluate as evaluation
from blip_lite.evaluation.coco_process import COCO_METRICS
from blip_lite.evaluation.evaluate import by_id, evaluate, find_checkpoint, prepare, read_predictions
from blip_lite.evaluation.sweep import parse_grid, sweep
from blip_lite.model.foreign import from_original
from blip_lite.model.generation import GenerationSettings
from blip_lite.model.location import locate
from blip_lite.processing.picture import Picture
from blip_lite.settings import EvalConfig
from blip_lite.training.loop import train
from conftest import tiny_config

OPTIONS = ["--num_beams", "1", "--max_new_tokens", "6"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(4):
        Image.new("RGB", (40, 30), (60 * n, 90, 200 - 20 * n)).save(folder / f"{n:03d}.png")
    return folder


def caption(hf_dir: Path, *arguments: object) -> int:
    return main(["caption", *map(str, arguments), "--ckpt", str(hf_dir), *OPTIONS])


@pytest.mark.parametrize("end", ["jsonl", "csv"])
def test_overwrite_deletes_nothing_before_an_image_was_captioned(
    hf_dir: Path, photos: Path, tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"k.{end}"
    assert caption(hf_dir, photos, "--output", output) == 0
    before = output.read_bytes()
    for wrong in (photos / "*.jpg", photos / "gone.png"):
        assert caption(hf_dir, wrong, "--output", output, "--overwrite") == 2 and output.read_bytes() == before
        assert "no image can be captioned, e.g." in capsys.readouterr().err
    assert caption(hf_dir, photos / "gone.png", photos / "000.png", "--output", output, "--overwrite") == 1
    assert "001.png" not in output.read_text()


@pytest.mark.parametrize("end", ["csv", "json"])
def test_a_corrected_table_is_not_made_anew(
    hf_dir: Path, photos: Path, tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"c.{end}"
    assert caption(hf_dir, photos / "000.png", "--output", output) == 0
    os.utime(output)  # touched, not changed
    assert (caption(hf_dir, photos, "--output", output) == 0 and "003" in output.read_text()) or end == "json"
    text = output.read_text()
    corrected = text[: len(text) // 2] + "x" + text[len(text) // 2 :]
    output.write_text(corrected)
    assert caption(hf_dir, photos, "--output", output) == 2 and output.read_text() == corrected
    assert "was changed since it was made from" in capsys.readouterr().err
    output.rename(tmp_path / "mine")
    assert caption(hf_dir, photos, "--output", output) == 0 and output.is_file()


def test_overwrite_keeps_a_journal_without_its_table(
    hf_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run that was killed leaves it."""
    output = tmp_path / "c.csv"
    monkeypatch.chdir(tmp_path)
    assert caption(hf_dir, photos, "--output", output) == 0
    output.unlink()
    before = Path(f"{output}.jsonl").read_bytes()
    monkeypatch.chdir(photos)
    assert caption(hf_dir, "gone.png", "--output", output, "--overwrite") == 2
    assert Path(f"{output}.jsonl").read_bytes() == before
    monkeypatch.chdir(tmp_path)
    assert caption(hf_dir, "photos/000.png", "--output", output) == 0  # the refused command did not take the job over
    with open(f"{output}.jsonl", "ab") as file:
        file.write(b'{"image": "x')  # cut
    os.utime(output)
    assert caption(hf_dir, photos, "--output", output) == 0


def test_a_second_folder_with_the_same_names(
    hf_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "all.jsonl", Path(shutil.copytree(photos, tmp_path / "other"))
    monkeypatch.chdir(photos)
    assert caption(hf_dir, "000.png", "--output", output) == 0
    monkeypatch.chdir(other)
    assert caption(hf_dir, "000.png", "--output", output) == 2
    assert f"was begun in {photos}, from where its images are named" in capsys.readouterr().err
    assert caption(hf_dir, other / "000.png", "--output", output) == 0
    assert [row["image"] for _, row in read_journal(output)] == ["000.png", str(other / "000.png")]
    monkeypatch.chdir(photos)
    assert caption(hf_dir, "001.png", "--output", output) == 0
    shutil.move(photos, tmp_path / "moved")  # a project that was moved goes on
    monkeypatch.chdir(tmp_path / "moved")
    assert caption(hf_dir, "002.png", "--output", output) == 0
    assert len(list(read_journal(output))) == 4


def test_what_failed_and_is_not_tried_again_stays_told(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    assert caption(hf_dir, photos, photos / "a.png", photos / "b.png", "--output", output) == 1
    Image.new("RGB", (9, 9)).save(photos / "a.png")
    assert caption(hf_dir, photos / "a.png", "--output", output, "--retry_failed") == 1  # b.png is still missing
    rows = {Path(row["image"]).name: row for _, row in read_journal(output)}
    assert "error" not in rows["a.png"] and "error" in rows["b.png"] and len(rows) == 6
    assert len(list(read_journal(output))) == 6
    output.write_bytes(output.read_bytes() + b"\n\0\0\0\n")  # a power failure
    assert caption(hf_dir, photos, "--output", output) == 1
    take_up(output, anew=True)
    assert len(list(read_journal(output))) == 6


def test_sidecars_twice_with_a_shells_pattern(hf_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert caption(hf_dir, *sorted(photos.iterdir()), "--sidecar") == 0
    assert len(list(photos.glob("*.txt"))) == 4
    (photos / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    found = [p.image_id for p in expand([str(photos / "*")])]  # quoted, so that we expand it
    assert found == [str(photos / f"{n:03d}.png") for n in range(4)]
    (photos / "list.txt").write_text("000.png\n")
    assert without_texts([str(photos / "000.png"), str(photos / "list.txt")])[1:] == [str(photos / "list.txt")]


def test_our_own_tables_and_lists_of_folders_are_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/c.jsonl").write_text('{"image": "photos/000.png", "caption": "a dog"}\n')
    assert [p.image for p in expand(["out/c.jsonl"])] == ["photos/000.png"]
    (photos / "list.txt").write_text("000.png\n")
    assert [p.image for p in expand(["photos/list.txt"])] == ["photos/000.png"]
    (tmp_path / "list.txt").write_text("photos\n")
    assert [p.image for p in expand(["list.txt"])] == [f"photos/{n:03d}.png" for n in range(4)]


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


def test_pictures_in_other_containers(hf_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = Captioner.from_pretrained(hf_dir)
    settings: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 6}
    picture = np.asarray(Image.open(io.BytesIO(png())))
    expected = captioner(png(), **settings)
    written = io.BytesIO()
    Image.open(io.BytesIO(png())).save(written, "PNG")  # it stands at its end
    (tmp_path / "x.png").write_bytes(png())
    monkeypatch.setenv("HOME", str(tmp_path))
    chw = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    for one in (written, written, {"bytes": png(), "path": None}, {"path": str(tmp_path / "x.png")}, "~/x.png", chw,
                chw.float() / 255, torch.from_numpy(picture.copy())):  # fmt: skip
        assert is_one(one) and captioner(one, **settings) == expected
    with open(tmp_path / "x.png", "rb") as file:
        assert captioner(file, **settings) == captioner(file, **settings) == expected
    paths = np.array([str(tmp_path / "x.png")] * 2, object)
    pandas = pytest.importorskip("pandas")
    for several in (
        pandas.Series([str(tmp_path / "x.png")] * 2),
        paths,
        np.stack([picture] * 2),
        torch.stack([chw] * 2),
        [written] * 2,
    ):
        assert captioner(several, **settings) == [expected] * 2  # type: ignore[arg-type]


def test_a_single_word_is_banned_as_a_word(hf_dir: Path) -> None:
    assert GenerationSettings(banned_words="dog").banned_words == ["dog"]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="early_stopping is 'never'; expected true or false"):
        GenerationSettings(early_stopping="never")  # type: ignore[arg-type]


def test_the_own_prompt_is_that_of_scores_too(hf_dir: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir)
    captioner.processor.prompt = "a picture of"
    assert captioner.score(png(), "a dog") == captioner.score(png(), "a dog", "a picture of")
    assert captioner.score(png(), "a dog") != captioner.score(png(), "a dog", "")


def test_options_that_would_do_nothing_are_refused(
    hf_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption(hf_dir, photos, "--temperature", "2") == 2
    assert "--temperature is of --do_sample, which is not given" in capsys.readouterr().err
    for options, of in (
        (["--existing", "append"], "--existing is of --sidecar"),
        (["--sidecar_suffix", ".caption"], "--sidecar_suffix is of --sidecar"),
        (["--retry_failed"], "--retry_failed looks into --output"),
    ):
        assert caption(hf_dir, photos, *options) == 2
        assert f"{of}, which is not given" in capsys.readouterr().err
    assert main(["export", str(hf_dir), "--to", str(tmp_path / "new"), "--dry_run"]) == 2
    assert "--dry_run is of --push, which is not given" in capsys.readouterr().err and not (tmp_path / "new").exists()
    for other in ({"compare": "best"}, {"spice": True}):
        with pytest.raises(ConfigError, match=f"--{next(iter(other))} does not go with --sweep"):
            sweep(EvalConfig.of(ckpt=str(hf_dir), sweep=["num_beams=1"], **other))
    with pytest.raises(ConfigError, match="--output is for --predictions; --output_dir names"):
        evaluate(EvalConfig.of(ckpt=str(hf_dir), output="x.json"))
    with pytest.raises(ConfigError, match="--compare .* does not go with --predictions"):
        evaluate(EvalConfig.of(predictions="p.json", compare="best"))
    with pytest.raises(ConfigError, match=r"--output ./p.json: is read as --predictions"):
        evaluate(EvalConfig.of(predictions="p.json", output="./p.json"))
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        evaluate(EvalConfig.of(predictions="p.json", output=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"--sweep 3: expected name=value,value \(in quotes, in YAML\)"):
        parse_grid(["num_beams=1", 3])  # type: ignore[list-item]


def test_a_blip_that_answers_questions_is_refused() -> None:
    names = ("visual_encoder.pos_embed", "text_encoder.x", "text_decoder.bert.x")
    with pytest.raises(CheckpointError, match="for visual question answering"):
        from_original(dict.fromkeys(names, torch.zeros(1)))
    from_original({**dict.fromkeys(names, torch.zeros(1)), "itm_head.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["photos/000.png", "photos/001.png"], ["000.png", "001.png"]),
        (["0", "1"], ["000.png", "001.png"]),
        (["000", "001"], ["a/000.png", "a/001.png"]),
        (["391895", "522418"], ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000522418.jpg"]),
        (["/x/a 1.jpg"], ["b/a 1.jpg", "b/a 2.jpg"]),
    ],
)
def test_captions_of_images_that_are_named_otherwise(given: list[str], wanted: list[str]) -> None:
    assert by_id({name: name for name in given}, wanted) == dict(zip(wanted, given, strict=False))
    assert by_id({"cats/7_1.png": "x"}, ["dogs/img-1.jpg"]) == {"cats/7_1.png": "x"}
    clash = [f"b/{name}" for name in wanted] + [f"c/{name}" for name in wanted]
    assert by_id({"a/0.png": "x"}, clash) == {"a/0.png": "x"}  # nobody could tell


@pytest.mark.parametrize("end", ["jsonl", "csv", "json"])
def test_our_own_captions_can_be_scored(hf_dir: Path, photos: Path, tmp_path: Path, end: str) -> None:
    output = tmp_path / f"p.{end}"
    assert caption(hf_dir, photos, "--output", output) == 0
    found = read_predictions(output, [Picture(f"{n:03d}.png", "") for n in range(4)])
    rows = (
        {Path(row["image"]).name: row["caption"] for _, row in read_journal(Path(f"{output}.jsonl"))}
        if end != "jsonl"
        else {Path(row["image"]).name: row["caption"] for _, row in read_journal(output)}
    )
    assert found == rows and any(found.values())
    (tmp_path / "several.csv").write_text('image,caption\n000.png,"[""a dog"", ""a cat""]"\n')
    with pytest.raises(ConfigError, match=r"row 1: .* are several captions; one is expected"):
        read_predictions(tmp_path / "several.csv", [Picture("000.png", "")])
    (tmp_path / "failed.csv").write_text("image,caption,error\n000.png,,no such file\n")
    with pytest.raises(ConfigError, match=r"0 captions of 0 images for a split of 1; 1 have none"):
        read_predictions(tmp_path / "failed.csv", [Picture("000.png", "")])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder that names no splits."""
    folder = tmp_path_factory.mktemp("habits")
    with open(folder / "captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for n in range(60):
            (folder / "scenes").mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (4 * n, 99, 255 - 4 * n)).save(folder / f"scenes/{n}.png")
            rows.writerow([f"scenes/{n}.png", f"a red dog {n}"])
    config = tiny_config(folder, max_steps=2, dataset=str(folder / "captions.csv"), scenes=None)
    train(config)
    return Path(str(config.run.output_dir))


def test_images_that_were_trained_on_are_no_test(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever spelling, and wherever they lie now, the run's data are its own."""
    data = run.parent / "captions.csv"
    own = [e.image_id for e in prepare(EvalConfig.of(run=str(run))).examples]
    monkeypatch.chdir(run.parent)
    moved = tmp_path / "moved"
    shutil.copytree(run.parent / "scenes", moved / "scenes")
    shutil.copy(data, moved)
    for spelling in (str(data), "captions.csv", "./captions.csv", str(moved / "captions.csv")):
        plan = prepare(EvalConfig.of(run=str(run), dataset=spelling))
        assert plan.split == "test" and [e.image_id for e in plan.examples] == own and plan.own_data, spelling


def test_a_run_stands_for_its_best_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(run).folder == run / "best"
    for asked in ({"ckpt": str(run)}, {"run": str(run / "best")}, {"run": str(run)}, {"ckpt": str(run / "best")}):
        ckpt, found = find_checkpoint(EvalConfig.of(**asked))
        assert Path(ckpt) == run / "best" and found is not None and found.resolve() == run.resolve(), asked
    monkeypatch.setattr(evaluation, "coco_metrics", lambda *_, **__: {"reasons": dict.fromkeys(COCO_METRICS, "none")})
    for name in ("latest", "checkpoint-000002", "best"):
        result = evaluate(EvalConfig.of(run=str(run), compare=name))
        assert Path(result["baselines"]["compare"]["checkpoint"]).parent == run


def test_a_runs_own_settings_are_a_config(run: Path) -> None:
    settings = json.loads((run / "config.json").read_text())["settings"]
    from blip_lite.command_line import _read_yaml
    from blip_lite.settings import TrainConfig

    assert _read_yaml(TrainConfig, run / "config.json") == settings
