"""The loop: what it learns, what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import BlipForConditionalGeneration

from blip_lite import Captioner
from blip_lite.data.batches import Captions, collate
from blip_lite.data.load import load_data
from blip_lite.errors import ConfigError, TrainingError
from blip_lite.model.blip import Blip
from blip_lite.settings import OptimisationSettings, RegularisationSettings
from blip_lite.training import checkpoint
from blip_lite.training.loop import learning_rate, train
from blip_lite.training.optimizer import build_optimizer
from blip_lite.training.setup import prepare, start
from blip_lite.training.validate import as_used, validate
from conftest import ROOT, free_port, tiny_config


def weights(path: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(path / "model.safetensors")


def metrics_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "memory")
    return [{k: v for k, v in line.items() if not any(t in k for t in timed)} for line in lines]


def test_a_run_writes_everything_it_should(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, save_every=2, gradient_accumulation_steps=2)
    result = train(config)
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        ".lock",
        "README.md",
        "config.json",
        "metrics.jsonl",
        "best",
        "checkpoint-000002",
        "checkpoint-000004",
    }
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["learning_rate"] > 0 and settings["epochs"], "config.json holds resolved settings"
    lines = metrics_of(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "val_bleu" in line] == [4]
    assert result["val_images"] == 6 and result["val_loss"] > 0
    for folder in (run / "best", run / "checkpoint-000004"):
        hf, info = BlipForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert isinstance(
            Captioner.from_pretrained(folder, device="cpu")(
                load_data(config.data, config.optimisation.seed).splits["test"][0].open()
            ),
            str,
        )


REGULARISED = {
    "augment": True,
    "dropout": 0.1,
    "ema": 0.9,
    "layer_decay": 0.8,
    "vision_learning_rate_factor": 0.5,
    "image_size": 48,
    "best_metric": "cider",
    "optimizer": "muon",
    "parallel_prediction": 0.5,
}


@pytest.mark.parametrize("stop, settings", [(2, {}), (4, {}), (6, {}), (4, REGULARISED)])
def test_resuming_gives_the_undisturbed_run_bit_for_bit(tmp_path: Path, stop: int, settings: dict) -> None:
    """Stopped in the middle of the first epoch, of the second, and at an epoch's end (3 steps an epoch)."""
    where = str(tmp_path / "whole")
    whole = tiny_config(
        tmp_path, output_dir=where, max_steps=8, save_every=2, gradient_accumulation_steps=3, **settings
    )
    train(whole)
    cut = whole.replace(output_dir=str(tmp_path / "cut"))
    save = checkpoint.save

    def save_then_die(run: Path, step: int, *args: object) -> Path:
        path = save(run, step, *args)
        if step == stop:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    progress = json.loads((tmp_path / "cut" / f"checkpoint-{stop:06d}" / "state" / "progress.json").read_text())
    assert (progress["epoch"], progress["batches"]) == {2: (0, 6), 4: (1, 3), 6: (2, 0)}[stop]
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # a line half written when the run was killed
    train(cut.replace(resume=True))
    a, b = tmp_path / "whole", tmp_path / "cut"
    for name in ("best", "checkpoint-000008"):
        one, other = weights(a / name), weights(b / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    for one, other in zip(metrics_of(a), metrics_of(b), strict=True):
        assert {k: v for k, v in one.items() if k != "loss"} == {k: v for k, v in other.items() if k != "loss"}
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=1e-6)


def test_resuming_as_another_run_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=1)
    train(config)
    with pytest.raises(ConfigError, match="another run: batch_size was 4, is now 8; seed was 3, is now 4"):
        train(config.replace(resume=True, batch_size=8, seed=4))
    with pytest.raises(ConfigError, match="another fingerprint"):
        train(config.replace(resume=True, max_train_images=16))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".tmp-precious").mkdir()
    with pytest.raises(ConfigError, match="not a run of"):
        train(config.replace(resume=True, output_dir=str(tmp_path / "home")))
    assert (tmp_path / "home" / ".tmp-precious").is_dir()


def test_overwrite_deletes_nothing_when_the_new_run_cannot_start(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, max_steps=1))
    with pytest.raises(ValueError, match="no such directory"):
        train(tiny_config(tmp_path, overwrite=True, model="no/such/model/here"))
    assert (tmp_path / "run" / "best").is_dir()


def test_resume_without_a_run_starts_afresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(tmp_path, resume=True, max_steps=1))
    assert "starting afresh" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "gain", "said"), [("bf16", 0.1, True), ("bf16", 2.0, False), ("no", 0.1, False)])
def test_bf16_on_a_processor_without_its_instructions_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    gain: float,
    said: bool,
) -> None:
    monkeypatch.setattr("blip_lite.model.flops.bfloat16_gain", lambda _: gain)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # that of the test before has another precision
    config = tiny_config(tmp_path, mixed_precision=precision).resolved()
    prepare(config, start(config))
    line = "10.0 times as slowly in bfloat16 as in float32: --mixed_precision no is faster"
    assert (line in capsys.readouterr().out) == said


def test_accumulation_gives_the_large_batchs_run(tmp_path: Path) -> None:
    """Uneven captions, the last window incomplete: 4 x 2 is 8 x 1, to rounding."""
    runs = []
    for batch, steps in ((4, 2), (8, 1), (2, 4)):
        config = tiny_config(
            tmp_path, output_dir=str(tmp_path / f"{batch}"), batch_size=batch, gradient_accumulation_steps=steps,
            max_train_images=29, max_steps=6, learning_rate=1e-3,
        )  # fmt: skip
        train(config)
        runs.append([line["loss"] for line in metrics_of(tmp_path / f"{batch}") if "loss" in line])
    assert runs[0] == pytest.approx(runs[1], abs=1e-5) and runs[2] == pytest.approx(runs[1], abs=1e-5)


def test_learning_rate_is_a_function_of_the_step() -> None:
    config = OptimisationSettings(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 0.02
    cosine = OptimisationSettings(learning_rate=1.0, warmup_ratio=0.0, lr_schedule="cosine")
    assert learning_rate(50, 100, cosine) == pytest.approx(0.5)
    assert learning_rate(99, 100, OptimisationSettings(learning_rate=1.0, lr_schedule="constant")) == 1.0
    assert learning_rate(0, 1, OptimisationSettings(learning_rate=1.0)) == 1.0


def test_biases_and_norms_do_not_decay(hf_dir: Path) -> None:
    from blip_lite import load_pretrained

    model, _ = load_pretrained(hf_dir)
    decayed, plain = build_optimizer(
        model, OptimisationSettings(learning_rate=1e-3), RegularisationSettings()
    ).param_groups
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_non_finite_gradients_are_skipped_and_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))
    forward = Blip.forward

    def poisoned(self, *args, **kwargs):
        loss, targets = forward(self, *args, **kwargs)
        bad = self.training and torch.is_grad_enabled() and next(calls) in poison
        return loss * (torch.nan if bad else 1), targets

    monkeypatch.setattr(Blip, "forward", poisoned)
    poison = {2}
    train(tiny_config(tmp_path, gradient_accumulation_steps=1, max_steps=4))
    assert [line["skipped"] for line in metrics_of(tmp_path / "run") if "loss" in line] == [0, 0, 1, 1]
    assert all(w.isfinite().all() for w in weights(tmp_path / "run" / "checkpoint-000004").values())
    poison = set(range(1000))
    with pytest.raises(TrainingError, match="not finite in 10 steps in a row"):
        train(tiny_config(tmp_path, output_dir=str(tmp_path / "nan"), max_steps=20))


def test_bad_images_are_counted_up_to_a_share(
    scenes_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "scenes"
    shutil.copytree(scenes_folder, folder)
    (folder / "005.png").write_bytes(b"broken")
    config = tiny_config(
        tmp_path,
        dataset=str(folder),
        max_train_images=None,
        max_steps=14,
        gradient_accumulation_steps=1,
        max_bad_images=0.1,
    )
    train(config)
    assert capfd.readouterr().err.count("skipped, an image") == 1
    with pytest.raises(
        TrainingError, match=r"1 of \d+ training images could not be decoded.*--max_bad_images 0.*005.png"
    ):
        train(config.replace(max_bad_images=0.0, overwrite=True))


def test_an_output_directory_with_another_run_is_refused(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, max_steps=1))
    with pytest.raises(ConfigError, match="holds a run: continue it with --resume"):
        train(tiny_config(tmp_path))
    train(tiny_config(tmp_path, max_steps=1, overwrite=True))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not a run of" if overwrite else "is not empty"):
            train(tiny_config(tmp_path, output_dir=str(tmp_path / "other"), overwrite=overwrite))


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_dashboards_record_without_login_or_network(
    tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    train(tiny_config(tmp_path, log_with=tracker, max_steps=2))
    pattern = "wandb/offline-run-*/run-*.wandb" if tracker == "wandb" else "blip_lite/**/events.out.tfevents.*"
    assert list((tmp_path / "run").glob(pattern)), [str(p) for p in (tmp_path / "run").rglob("*")]


def test_a_dashboard_that_fails_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("network gone")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", fails)
    train(tiny_config(tmp_path, log_with="tensorboard", max_steps=3))
    assert capsys.readouterr().out.count("warning: no dashboard from here on") == 1
    assert len(metrics_of(tmp_path / "run")) == 4


@pytest.mark.long
def test_two_processes_give_one_processs_losses(tmp_path: Path) -> None:
    """torchrun, gloo: 2 processes x 4 images are 1 x 8, accumulated twice; the last batches leave one process without
    an image. Validation is shared out and whole."""
    common = "--dataset shapes --model tiny --max_train_images 25 --max_eval_images 9 --max_steps 5 --logging_steps 1 --num_workers 0"
    common += " --gradient_accumulation_steps 2 --num_beams 2 --max_new_tokens 12 --learning_rate 1e-3"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    runs = {
        "two": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())],
        "one": [],
    }
    for name, launcher in runs.items():
        batch = "4" if name == "two" else "8"
        command = [sys.executable, *launcher, str(ROOT / "train.py"), *common.split(), "--batch_size", batch]
        done = subprocess.run(
            [*command, "--output_dir", str(tmp_path / name)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "val_loss"):  # with other images it differs, as each process pairs its own
            if key in a:
                assert a[key] == pytest.approx(b[key], abs=1e-5)
    assert [line["val_images"] for line in two if "val_images" in line] == [9] * sum(
        "val_images" in line for line in one
    )


def test_validation_computes_as_the_best_will_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with mixed precision in bfloat16 (here a CPU that picks it): the captions of `Captioner` in bfloat16."""
    config = tiny_config(tmp_path, max_eval_images=4).resolved()
    run = prepare(config, start(config))
    plain = validate(run).numbers
    assert as_used(run) is run.shown
    monkeypatch.setattr(type(run.accelerator), "mixed_precision", "bf16")
    assert as_used(run) is run.shown  # a CPU picks float32
    monkeypatch.setattr("blip_lite.training.validate.pick_dtype", lambda *_: torch.bfloat16)
    numbers, samples = (validation := validate(run)).numbers, validation.samples
    assert run.model.dtype == torch.float32 and numbers["val_loss"] == pytest.approx(plain["val_loss"], rel=0.02)
    assert numbers["val_loss"] != plain["val_loss"]
    captioner = Captioner(copy.deepcopy(run.model).bfloat16(), run.processor)
    pixels = captioner.processor.pixel_values([picture.open() for picture, _ in samples])
    expected = captioner.caption_pixels(pixels, run.generation, [""] * len(samples), with_prompt=False)
    assert [text for _, text in samples] == [row[0] for row in expected]


def test_validation_tells_a_model_that_does_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches, the last of one image. The loss with other images is that of captions moved on by one image."""
    run = prepare(config := tiny_config(tmp_path, max_eval_images=5, batch_size=2).resolved(), start(config))
    examples, processor = run.data.splits["validation"], run.processor
    numbers = validate(run).numbers
    losses, targets = [], 0
    for own, other in zip([1, 0, 1, 2, 3], range(5), strict=True):  # the first has the other one of its batch
        images = Captions(examples, processor, "", 40)
        batch = collate([images[other]], processor, 1)
        pixels = processor.normalize(collate([images[own]], processor, 1).pixel_values)
        with torch.no_grad():
            loss, count = run.model.eval()(pixels, batch.input_ids, batch.labels)
        losses.append(loss.item())
        targets += count
    assert numbers["val_loss_other_image"] == pytest.approx(sum(losses) / targets, abs=1e-5)
    assert numbers["val_loss_other_image"] != numbers["val_loss"]
    encode = Blip.encode
    monkeypatch.setattr(Blip, "encode", lambda self, pixels: torch.zeros_like(encode(self, pixels)))
    numbers = validate(run).numbers
    assert numbers["val_loss_other_image"] == numbers["val_loss"]
    run.data.splits["validation"] = examples[:1]
    assert validate(run).numbers["val_loss_other_image"] is None  # there is none


def test_validation_encodes_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, max_eval_images=6).resolved()
    run, images = prepare(config, start(config)), []
    encoder = run.model.vision_model.forward
    monkeypatch.setattr(
        run.model.vision_model, "forward", lambda x, apply: (images.append(len(x)), encoder(x, apply))[1]
    )
    found = validate(run)
    assert sum(images) == 6 == found.numbers["val_images"]


TWO_VIEWS = """
import sys
from pathlib import Path

import torch

from blip_lite.training import setup
from blip_lite.training.loop import epoch, train_step, windows
from conftest import tiny_config

kwargs, weights = setup.DistributedDataParallelKwargs, []
for view in (False, True):
    setup.DistributedDataParallelKwargs = kwargs if view else lambda **_: kwargs()
    config = tiny_config(Path(sys.argv[1]), gradient_accumulation_steps=2, batch_size=2).resolved()
    run = setup.prepare(config, setup.start(config))
    assert run.accelerator.num_processes == 2 and run.ddp.gradient_as_bucket_view == view
    for _, window in zip(range(3), windows(epoch(run), 2)):
        train_step(run, window, 1e-3)
    weights.append(run.model.state_dict())
assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
"""


@pytest.mark.long
def test_gradients_that_live_where_they_are_sent_from_change_no_weight(tmp_path: Path) -> None:
    (tmp_path / "views.py").write_text(TWO_VIEWS)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, *launcher, str(tmp_path / "views.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
