"""Crashes, full disks, signals, second processes: nothing computed is lost. The long version is `torture.py`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch

from blip_lite import storage
from blip_lite.data.load import load_data
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import TIME_UP, CheckpointError, ConfigError, DataError, Stopped, TrainingError
from blip_lite.model.location import locate
from blip_lite.processing import hub, threads
from blip_lite.storage import read_run_config
from blip_lite.training import checkpoint
from blip_lite.training.loop import train
from blip_lite.training.optimizer import build_optimizer
from blip_lite.training.preflight import out_of_memory
from blip_lite.training.setup import build_model
from blip_lite.training.signals import Stop
from conftest import ROOT, free_port, load, tiny_config

ARGUMENTS = [
    "--dataset",
    "shapes",
    "--model",
    "tiny",
    "--max_train_images",
    "50",
    "--max_eval_images",
    "4",
    "--batch_size",
    "4",
    "--num_workers",
    "0",
    "--num_beams",
    "2",
    "--max_new_tokens",
    "8",
    "--logging_steps",
    "1",
    "--learning_rate",
    "1e-3",
    "--gradient_accumulation_steps",
    "1",
]
THIRD_LOSS = 4.335743  # of the third step of fixtures/run-v1
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def command(run: Path, *extra: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    script = [*(launcher if processes > 1 else []), str(ROOT / "train.py")]
    return [sys.executable, *script, *ARGUMENTS, "--output_dir", str(run), *extra]


def weights(path: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(path / "model.safetensors")


def same_weights(a: Path, b: Path) -> None:
    """The last checkpoints and the best of two runs are equal bit for bit, and the best was found at the same step."""
    last = storage.checkpoints(a)[-1].name
    for name in (last, "best"):
        one, other = weights(a / name), weights(b / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert (
        json.loads((a / "best" / "best.json").read_text())["step"]
        == json.loads((b / "best" / "best.json").read_text())["step"]
    )


def stop_after(step: int, run: Path, *extra: str) -> None:
    """Run until a step is done, then SIGTERM, as a pre-emption would."""
    code = (
        "import os, signal, sys, train\nfrom blip_lite.training import loop, run\nSkips = run.Skips\nold = Skips.step\ncount = [0]\n"
        "def step(self, *a):\n    old(self, *a)\n    count[0] += 1\n"
        f"    if count[0] + start[0] == {step}: os.kill(os.getpid(), signal.SIGTERM)\n"
        "Skips.step = step\nstart = [0]\nresume = loop.resume\n"
        "def resumed(*a):\n    p = resume(*a)\n    start[0] = p.step\n    return p\n"
        "loop.resume = resumed\nsys.exit(train.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command(run, *extra)[2:]],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 143, done.stderr


@pytest.mark.long
def test_sigterm_saves_and_the_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    extra = ["--max_steps", "8", "--gradient_accumulation_steps", "2"]
    subprocess.run(command(tmp_path / "whole", *extra), check=True, env=ENVIRONMENT, capture_output=True)
    for step in (2, 3, 7):  # twice in one epoch, and at the end of one, before its validation
        stop_after(step, tmp_path / "cut", *extra, "--resume")
    progress = json.loads((tmp_path / "cut" / "checkpoint-000007" / "state" / "progress.json").read_text())
    assert progress["validation_due"] and (progress["epoch"], progress["batches"]) == (1, 0)
    subprocess.run(command(tmp_path / "cut", *extra, "--resume"), check=True, env=ENVIRONMENT, capture_output=True)
    same_weights(tmp_path / "whole", tmp_path / "cut")
    lines = [
        [json.loads(x) for x in (tmp_path / r / "metrics.jsonl").read_text().splitlines()] for r in ("whole", "cut")
    ]
    assert [(x["step"], x.get("val_bleu"), x.get("val_loss")) for x in lines[0]] == [
        (x["step"], x.get("val_bleu"), x.get("val_loss")) for x in lines[1]
    ]


@pytest.mark.long
def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = subprocess.Popen(
        command(run, "--max_steps", "4000", "--save_every", "5", processes=2),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    while not list(run.glob("checkpoint-*")):
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.1)
    ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGTERM)
    assert launcher.wait(60) != 0
    last = storage.newest(run)
    assert (last and int(last.name[-6:]) % 5 != 0) or storage.problem(last) is None  # a save besides the regular ones
    done = subprocess.run(
        command(run, "--resume", "--max_steps", str(storage.step_of(last) + 2), processes=2),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming from {last}" in done.stdout


@pytest.mark.long
def test_a_second_process_on_one_directory_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = subprocess.Popen(
        command(run, "--max_steps", "4000"), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (run / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.1)
        second = subprocess.run(command(run, "--resume"), env=ENVIRONMENT, capture_output=True, text=True)
        assert second.returncode == 2 and f"is being written by another process (pid {first.pid}" in second.stderr
    finally:
        first.kill()
        first.wait()
    with storage.lock(run):  # a killed process leaves no lock
        pass


def test_a_time_limit_saves_and_stops(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        train(tiny_config(tmp_path, max_steps=10_000, time_limit=0.05))
    assert stopped.value.number == TIME_UP
    assert storage.newest(tmp_path / "run")


def failing(call: Callable[..., Any], at: int, code: int) -> tuple[Callable[..., Any], list[int]]:
    """`call`, but its `at`-th use raises an OSError; and a list whose length is the number of uses."""
    uses: list[int] = []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        uses.append(1)
        if len(uses) == at:
            raise OSError(code, os.strerror(code))
        return call(*args, **kwargs)

    return wrapper, uses


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_save_that_fails_anywhere_harms_nothing(
    tmp_path: Path, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every write, fsync and rename of one save: the older checkpoints are intact, no rubble, the next save works."""
    config = tiny_config(tmp_path, max_steps=1, max_eval_images=1)
    train(config)
    run = tmp_path / "run"
    model, processor = build_model(
        config.replace(resume=True).resolved(), load_data(config.data, config.optimisation.seed)
    )
    optimizer = build_optimizer(model, config.resolved().optimisation, config.regularisation)
    before = storage.newest(run)

    def save(step: int) -> bool:
        fill = checkpoint.snapshot(model, processor, optimizer, {}, {})
        return checkpoint.on_disk("x", lambda: checkpoint.save(run, step, fill, 2))

    failures = 0
    for module, name in (
        (storage.os, "fsync"), (storage.os, "rename"), (storage.Path, "write_text"), (storage.Path, "mkdir"),
        (checkpoint.safetensors.torch, "save_file"),
    ):  # fmt: skip
        for at in range(1, 40):
            wrapper, uses = failing(getattr(module, name), at, code)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, name, wrapper)
                worked = save(2)
            if worked:
                assert len(uses) < at
                shutil.rmtree(run / "checkpoint-000002")
                break
            failures += 1
            assert not list(run.glob(".tmp-*"))
            # the last fsync is that of the parent: the new checkpoint is there, and whole
            assert storage.newest(run) in (before, run / "checkpoint-000002")
            shutil.rmtree(run / "checkpoint-000002", ignore_errors=True)
        else:
            pytest.fail(f"{name} never stopped failing")
    assert failures > 15 and "the next save tries again" in capsys.readouterr().err
    assert save(3) and storage.newest(run) == run / "checkpoint-000003"


def test_a_full_disk_is_a_warning_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save = checkpoint.save

    def full(run: Path, step: int, *args: Any) -> Path:
        if step in full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(run, step, *args)

    monkeypatch.setattr(checkpoint, "save", full)
    full_at = {2}
    train(tiny_config(tmp_path, max_steps=4, save_every=1, max_train_images=8))
    assert "checkpoint-000002 could not be written" in capfd.readouterr().err
    full_at = {4}
    with pytest.raises(
        TrainingError, match="the last checkpoint could not be written; the last good one: .*checkpoint-000003"
    ):
        train(tiny_config(tmp_path, max_steps=4, save_every=1, overwrite=True))


def test_resuming_from_a_named_checkpoint_gives_up_later_ones(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=6, save_every=2, save_total_limit=9)
    train(config)
    run = tmp_path / "run"
    end = weights(run / "checkpoint-000006")
    train(config.replace(resume_from=str(run / "checkpoint-000002")))
    assert all(torch.equal(value, end[name]) for name, value in weights(run / "checkpoint-000006").items())
    (run / "checkpoint-000004" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"--resume_from .*checkpoint-000004: model.safetensors has 0 bytes"):
        train(config.replace(resume_from=str(run / "checkpoint-000004")))
    with pytest.raises(ConfigError, match="is no checkpoint-N in --output_dir"):
        train(config.replace(resume_from=str(tmp_path / "elsewhere" / "checkpoint-000002")))


def test_a_changed_setting_needs_a_word(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=2)
    train(config)
    changed = config.replace(resume=True, max_steps=3, learning_rate=1e-4)
    with pytest.raises(ConfigError, match=r"learning_rate was .* is now 0.0001. --allow_config_change"):
        train(changed)
    train(changed.replace(allow_config_change=True))


def test_out_of_memory_says_what_would_fit() -> None:
    said = out_of_memory(tiny_config(Path("x"), batch_size=8, gradient_accumulation_steps=2, mixed_precision="no"))
    assert "--batch_size 4 --gradient_accumulation_steps 4" in said and "--gradient_checkpointing" in said


def test_a_run_of_the_first_format_goes_on(tmp_path: Path) -> None:
    """`fixtures/run-v1` was written by the first version (tests/make_fixture.py); the loss of its third step was noted."""
    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "fixtures" / "run-v1", run)
    train(read_run_config(run).replace(output_dir=str(run), resume=True, max_steps=3))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert next(line["loss"] for line in lines if line["step"] == 3) == pytest.approx(THIRD_LOSS, abs=1e-5)


def test_the_log_after_a_stop_in_the_middle_of_its_interval_is_the_same(tmp_path: Path) -> None:
    """The means of a line span the interruption; half a line of a killed process is passed over."""
    config = tiny_config(tmp_path, max_steps=6, logging_steps=4, save_every=3, eval_every=6)
    train(config)
    run, whole = tmp_path / "run", {}
    for line in storage.read_metrics(run):
        whole[line["step"]] = line.get("loss", line.get("val_loss"))
    train(config.replace(resume_from=str(run / "checkpoint-000003"), output_dir=None))
    assert {line["step"]: line.get("loss", line.get("val_loss")) for line in storage.read_metrics(run)} == whole
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": {"step": 7, "loss": 1.0}\n{"st')
    train(config.replace(resume=True, max_steps=7))
    assert [line["step"] for line in storage.read_metrics(run)][-1] == 7


def test_resume_from_deletes_nothing_before_it_is_sure(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=4, save_every=2)
    train(config)
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="is no checkpoint-N in"):
        train(config.replace(resume_from=str(run / "best")))
    progress = run / "checkpoint-000002" / "state" / "progress.json"
    manifest = json.loads((run / "checkpoint-000002" / "manifest.json").read_text())
    changed = progress.read_text().replace('"world": 1', '"world": 2')
    progress.write_text(changed)
    digest = {"size": len(changed.encode()), "sha256": hashlib.sha256(changed.encode()).hexdigest()}
    manifest["state/progress.json"] = digest
    (run / "checkpoint-000002" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="from the middle of an epoch of 2 processes"):
        train(config.replace(resume_from=str(run / "checkpoint-000002")))
    assert (run / "checkpoint-000004").is_dir()


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "lockf", refuse)
    assert storage.lock(tmp_path) and "without locks" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [False, None], ids=["refuses", "never answers"])
def test_without_the_hub_the_answer_comes_soon_and_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, answers: bool | None
) -> None:
    """Its clients would ask six times, for 23 seconds."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers is None:  # connects, and hears nothing
            server.listen()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        for kind, get in ((CheckpointError, locate), (DataError, load)):
            begun = time.monotonic()
            with pytest.raises(kind, match=r"nobody/nothing.* does not answer.*local folder.*HF_HUB_OFFLINE=1"):
                get("nobody/nothing")
            assert time.monotonic() - begun < 5
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


STUCK = """
import sys, time
from blip_lite.processing import images
read = images._read
def stuck(path):
    while "stuck" in str(path):
        print("reading", flush=True)
        time.sleep(1000)
    return read(path)
images._read = stuck
from blip_lite.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_ctrl_c_ends_what_hangs_in_a_read(hf_dir: Path, tmp_path: Path) -> None:
    """A file of a broken network disk, for a thread and for a worker process."""
    for seed, split in enumerate(("train", "validation")):
        (tmp_path / "d" / split).mkdir(parents=True)
        for number, scene in enumerate(scene_ids(6, seed)):
            name = tmp_path / "d" / split / ("stuck" if (split, number) == ("train", 4) else str(number))
            draw_scene(scene).save(name.with_suffix(".png"))
            name.with_suffix(".txt").write_text(scene_captions(scene)[0])
    data, small = str(tmp_path / "d"), ["--batch_size", "2", "--num_beams", "1"]
    train = ["train", "--dataset", data, "--model", "tiny", *small, "--max_steps", "9"]
    commands = [
        ["caption", data, "--ckpt", str(hf_dir), *small],
        [*train, "--num_workers", "1", "--output_dir", str(tmp_path / "run")],
    ]
    for arguments in commands:
        process = subprocess.Popen(
            [sys.executable, "-c", STUCK, *arguments],
            env=ENVIRONMENT,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal sends Ctrl-C to the whole group
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # may be ignored here
        )
        assert process.stdout and process.stderr
        assert any("reading" in line for line in process.stdout), (arguments, process.stderr.read())
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130, process.stderr.read()


def test_a_signal_ends_a_wait_for_images_and_keeps_what_was_there() -> None:
    def images() -> Iterator[int]:
        yield 1
        signal.raise_signal(signal.SIGINT)
        yield 2

    with Stop(None) as stop:
        assert list(stop.awaited(images())) == [1] and stop.cut and stop.signal == signal.SIGINT
    with Stop(None) as stop:
        for _ in stop.awaited([1]):  # a step is done whole
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_threads_that_hang_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE", 0.1)
    stuck, begun = threading.Event(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), threads.Threads(2) as pool:
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
        hangs = [pool.submit(stuck.wait) for _ in range(9)]
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 2 and hangs[-1].cancelled()
    stuck.set()
    for thread in pool.threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in pool.threads)
