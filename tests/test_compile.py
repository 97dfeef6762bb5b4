"""`--compile`: the same losses, gradients and averages as without it, in few compilations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip_lite.cli import main
from blip_lite.data.batches import collate
from blip_lite.errors import ConfigError
from blip_lite.training.loop import epoch, train, train_step
from blip_lite.training.run import Run
from blip_lite.training.setup import prepare, start
from conftest import tiny_config


def run_of(tmp_path: Path, **changes: Any) -> Run:
    config = tiny_config(tmp_path, batch_size=3, captions_per_image=None, **changes).resolved()
    return prepare(config, start(config))


def test_captions_are_padded_to_few_lengths_without_another_loss(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    items = [run.train_set[i] for i in range(3)]
    prompt_length = len(run.processor.prompt_ids(run.train_set.prompt))
    plain, padded = (collate(items, run.processor, prompt_length, multiple) for multiple in (1, 8))
    assert plain.labels.shape[2] % 8 and padded.labels.shape[2] == -(-plain.labels.shape[2] // 8) * 8
    run.model.eval()
    losses = [run.model(*batch.to(run.accelerator.device, run.processor))[0].item() for batch in (plain, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and plain.num_targets() == padded.num_targets()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_steps_are_those_without(tmp_path: Path, checkpointing: bool) -> None:
    """Gradients of a batch, then steps on two batches of one shape and a smaller one, with the average of the weights that
    `--ema` keeps. Weights after a step do not compare: AdamW makes a whole step of a gradient that is rounding alone."""
    found = []
    for compiled in (False, True):
        run = run_of(tmp_path, compile=compiled, gradient_checkpointing=checkpointing, ema=0.5)
        run.train_set.multiple = 8
        batches = [*list(epoch(run))[:2], collate([run.train_set[0]], run.processor, 1, 8)]
        run.model.train()
        run.model(*batches[0].to(run.accelerator.device, run.processor))[0].backward()
        gradients = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
        run.optimizer.zero_grad()
        steps = [train_step(run, [batch], 1e-3) for batch in batches]
        assert run.average
        run.average.model.eval()
        shown = run.average.model(*batches[0].to(run.accelerator.device, run.processor))[0].item()
        found.append((gradients, [(s.loss.item(), s.grad_norm.item()) for s in steps], shown))
    (expected_gradients, expected, shown), (gradients, steps, compiled_shown) = found
    whole = sum(float(gradient.norm()) ** 2 for gradient in expected_gradients.values()) ** 0.5
    for name, gradient in expected_gradients.items():  # of a key's bias it is 0 but for rounding
        assert (gradients[name] - gradient).norm() < 1e-5 * whole, name
    assert steps == [pytest.approx(step, rel=1e-4) for step in expected]
    assert compiled_shown == pytest.approx(shown, rel=1e-4)


@pytest.mark.slow
def test_a_compiled_run_trains_validates_and_resumes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, compile=True)
    found = train(config)
    assert found["val_loss"] > 0
    train(tiny_config(tmp_path, compile=True, resume=True, max_steps=6, allow_config_change=True))


def test_without_a_compiler_it_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip_lite.model.quantize.shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match=r"--compile: there is no C\+\+ compiler"):
        run_of(tmp_path, compile=True)
    assert main(["train", "--dataset", "shapes", "--model", "tiny", "--compile", "--output_dir", str(tmp_path)]) == 2
