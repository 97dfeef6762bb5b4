"""Faults, by the dozen: run it where you train, with `python -m pytest tests/torture.py` (minutes; not part of the suite,
which has a short version in test_faults.py).

Every run here is the tiny model on drawn scenes; what is compared are the final weights, bit for bit.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from test_faults import ARGUMENTS, ENVIRONMENT, ROOT, command, same_weights, stop_after

WHOLE = ["--save_every", "2", "--gradient_accumulation_steps", "2", "--max_steps", "14"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run: 2 epochs of 7 steps, 13 batches an epoch, so that an epoch ends inside a window."""
    run = tmp_path_factory.mktemp("torture") / "whole"
    subprocess.run(command(run, *WHOLE), check=True, env=ENVIRONMENT, capture_output=True)
    return run


@pytest.mark.parametrize("step", range(1, 14))
def test_stop_after_any_step(whole: Path, tmp_path: Path, step: int) -> None:
    stop_after(step, tmp_path / "run", *WHOLE)
    subprocess.run(command(tmp_path / "run", *WHOLE, "--resume"), check=True, env=ENVIRONMENT)
    same_weights(whole, tmp_path / "run")


def test_two_stops_in_one_epoch_and_other_workers(whole: Path, tmp_path: Path) -> None:
    for step, workers in ((2, "0"), (5, "1")):
        stop_after(step, tmp_path / "run", *WHOLE, "--resume", "--num_workers", workers)
    subprocess.run(command(tmp_path / "run", *WHOLE, "--resume", "--num_workers", "4"), check=True, env=ENVIRONMENT)
    same_weights(whole, tmp_path / "run")


def test_killed_at_random_moments_until_it_is_done(whole: Path, tmp_path: Path) -> None:
    """kill -9 up to 50 times, saves included."""
    rng, kills = random.Random(0), 0
    run = tmp_path / "run"
    while True:
        process = subprocess.Popen(command(run, *WHOLE, "--resume", "--save_every", "1"), env=ENVIRONMENT)
        lock = run / ".lock"
        while process.poll() is None and not (lock.is_file() and f"pid {process.pid} " in lock.read_text()):
            time.sleep(0.01)  # until it has begun to write
        try:
            assert process.wait(rng.uniform(0, 0.9) if kills < 50 else 600) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    print(f"{kills} kills")
    assert kills >= 5
    same_weights(whole, run)


def test_sigterm_at_ten_moments(whole: Path, tmp_path: Path) -> None:
    rng, run = random.Random(1), tmp_path / "run"
    for _ in range(10):
        process = subprocess.Popen(command(run, *WHOLE, "--resume"), env=ENVIRONMENT)
        time.sleep(rng.uniform(5, 8))
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        code = process.wait(30)
        assert code in (0, 143, -signal.SIGTERM), code  # negative: it was still importing
        assert time.monotonic() - begun < 10
        if code == 0:
            break
    subprocess.run(command(run, *WHOLE, "--resume"), check=True, env=ENVIRONMENT)
    same_weights(whole, run)


def test_a_killed_worker_ends_the_run_and_it_resumes(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(run, *WHOLE, "--num_workers", "2", "--save_every", "1"), env=ENVIRONMENT)
    while not list(run.glob("checkpoint-*")):
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert process.wait(60) != 0 or not children
    subprocess.run(command(run, *WHOLE, "--resume"), check=True, env=ENVIRONMENT)
    same_weights(whole, run)


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Some thousands of steps: after the first fifth, the process's memory grows by less than 2%."""
    code = f"""
import os, sys
sys.argv = ['train.py', *{ARGUMENTS!r}, '--output_dir', {str(tmp_path / "run")!r}, '--max_steps', '4000',
            '--eval_every', '200', '--save_every', '200', '--batch_size', '2', '--logging_steps', '100']
from blip_lite.training import log as runlog
rss = []
say = runlog.RunLog.training
def training(self, *a):
    rss.append(int(open('/proc/self/statm').read().split()[1]))
    return say(self, *a)
runlog.RunLog.training = training
import train
assert train.main() == 0
print('RSS', rss[len(rss) // 5], rss[-1])
assert rss[-1] < 1.02 * rss[len(rss) // 5], rss
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, cwd=ROOT)


def test_weights_are_compared() -> None:
    """The comparison itself can fail."""
    assert torch.equal(torch.ones(2), torch.ones(2)) and not torch.equal(torch.ones(2), torch.zeros(2))
