"""The state of a run on disk: written whole or not at all, rotated, and loaded back exactly.

`checkpoint-000455/` holds a model directory that `Captioner` and `transformers` load, and `state/` for resuming:
the optimizer's moments and the random states in safetensors, everything else in JSON. No pickles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.model.blip import Blip
from blip_lite.model.pretrained import Unfilled, load_weights, read_weights, save_pretrained, weights_on_host
from blip_lite.processing.processor import Processor
from blip_lite.processing.threads import Threads
from blip_lite.storage import checkpoints, newest, step_of, write_directory
from blip_lite.training.run import Progress, Run


def snapshot(
    model: Blip,
    processor: Processor,
    optimizer: torch.optim.Optimizer,
    random_states: dict[str, Tensor],
    progress: dict[str, Any],
    average: Blip | None = None,
    copy: bool = False,
) -> Callable[[Path], None]:
    """What a checkpoint holds, taken now.

    Args:
        random_states: by name; see `save_checkpoint`.
        progress: JSON, all else that resuming needs.
        average: of the weights, with `--ema`.
        copy: also what is on the CPU already, so that training may go on before it is written.

    Returns:
        what writes it into a directory.
    """
    weights, state = weights_on_host(model, copy), optimizer.state_dict()
    moments = {f"optimizer.{i}.{k}": v for i, values in state["state"].items() for k, v in values.items()}
    averages = {f"average.{name}": p.detach() for name, p in average.named_parameters()} if average else {}
    tensors = {name: value.to("cpu", copy=copy) for name, value in (moments | averages).items()}
    tensors |= {f"random.{name}": value for name, value in random_states.items()}
    settings = json.dumps({**progress, "param_groups": state["param_groups"]}, indent=1)

    def fill(work: Path) -> None:
        save_pretrained(model, processor, work, weights)
        (work / "state").mkdir()
        safetensors.torch.save_file(tensors, work / "state" / "tensors.safetensors")
        (work / "state" / "progress.json").write_text(settings, "utf-8")

    return fill


def save(run: Path, step: int, fill: Callable[[Path], None], keep: int) -> Path:
    """Write `checkpoint-STEP`, of what `snapshot` took, then remove all but the newest `keep`."""
    path = run / f"checkpoint-{step:06d}"
    write_directory(path, fill)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load(
    path: Path, model: Blip, optimizer: torch.optim.Optimizer, average: Blip | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put a checkpoint's weights and the optimizer's moments back, and the average of the weights where there is one;
    without one in the checkpoint, it begins with the weights.

    Returns:
        (progress, random states), as given to `snapshot`.

    Raises:
        CheckpointError: it has no `state/`, or does not fit the model.
    """
    try:
        progress = json.loads((path / "state" / "progress.json").read_text("utf-8"))
        tensors = safetensors.torch.load_file(path / "state" / "tensors.safetensors")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a checkpoint to resume from ({error})") from error
    parameters = dict(model.named_parameters())
    with Unfilled(), torch.device("meta"):
        fresh = Blip(model.config)
    load_weights(fresh, read_weights(path), path)
    with torch.no_grad():  # in place: the optimizer and DDP hold these tensors
        for name, parameter in fresh.named_parameters():
            parameters[name].copy_(parameter)
        for name, parameter in average.named_parameters() if average else ():
            parameter.copy_(tensors.get(f"average.{name}", parameters[name]))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    now: list[dict[str, Any]] = [
        {name: group[name] for name in ("weight_decay", "lr_scale") if name in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict({"state": state, "param_groups": progress.pop("param_groups")})
    for group, values in zip(optimizer.param_groups, now, strict=True):  # as set now, not as saved
        group.update(values)
    random_states = {n.removeprefix("random."): v for n, v in tensors.items() if n.startswith("random.")}
    return progress, random_states


def save_best(run: Path, model: Blip, processor: Processor, why: dict[str, Any]) -> None:
    """Write `best/`, a model directory of its own, with `best.json` saying what made it the best."""

    def fill(work: Path) -> None:
        save_pretrained(model, processor, work)
        (work / "best.json").write_text(json.dumps(why, indent=1), "utf-8")

    write_directory(run / "best", fill)


def on_disk(what: str, write: Callable[[], object]) -> bool:
    """Write; a full or failing disk is a warning, not the end: what was there before is intact."""
    try:
        write()
        return True
    except (OSError, safetensors.SafetensorError) as error:
        tqdm.write(f"warning: {what} could not be written ({error}); the next save tries again", file=sys.stderr)
        return False


def save_checkpoint(run: Run) -> None:
    """A checkpoint: all that `resume` needs. What a GPU holds is copied to the host, and a thread writes it while the
    loop goes on: `wait_for_checkpoint`. A CPU's is written at once, as its copy would take as much memory again."""
    accelerator, progress, began = run.accelerator, run.progress, time.perf_counter()
    # torch's random states of every process; they only matter to models with dropout
    mine = {f"cpu.{accelerator.process_index}": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine[f"cuda.{accelerator.process_index}"] = torch.cuda.get_rng_state()
    random_states = {name: value for each in gather_object([mine]) for name, value in each.items()}
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        state = {**dataclasses.asdict(progress), "scaler": scaler}
        average = run.average.model if run.average else None
        fill = snapshot(run.model, run.processor, run.optimizer, random_states, state, average, copy=bool(run.writer))
        folder, step, keep = run.folder, progress.step, run.config.run.save_total_limit

        def write() -> None:
            run.saved = on_disk(f"checkpoint-{step:06d}", lambda: save(folder, step, fill, keep))
            run.saving_seconds = time.perf_counter() - began

        if run.writer:
            run.writing = run.writer.submit(write)
        else:
            write()
    accelerator.wait_for_everyone()


@contextlib.contextmanager
def writer(run: Run) -> Iterator[None]:
    """With a GPU, a thread that writes checkpoints. An error in the loop waits for the one that it is at; a second
    Ctrl-C does not, as the disk may be one that is gone."""
    if run.accelerator.device.type == "cpu":
        yield
        return
    with Threads(1) as run.writer:
        try:
            yield
        except Exception:
            if run.writing:
                run.writing.exception()
            raise


def wait_for_checkpoint(run: Run) -> None:
    """Until the last one is on disk, or `run.saved` says that it is not. Raises what else its thread raised.
    Called before workers are forked, too, which threads at work do not bear."""
    if run.writing:
        run.writing.result()
        run.writing = None


def resume(run: Run) -> Progress:
    """Load the run's newest intact checkpoint, or `resume_from`. Raises ConfigError if the number of processes has
    changed in the middle of an epoch."""
    accelerator, settings = run.accelerator, run.config.run
    chosen = [settings.resume_from]
    if accelerator.is_main_process and not settings.resume_from:  # it decides for all
        chosen = [str(newest(run.folder) or "")]
    broadcast_object_list(chosen)
    if not chosen[0]:
        accelerator.print(f"--resume: {run.folder} has no checkpoint; starting afresh")
        return Progress(world=accelerator.num_processes, tracker_id=secrets.token_hex(4))
    path = Path(chosen[0])
    if not path.is_dir():
        raise CheckpointError(f"{path} is not on this machine: --output_dir must be one that all machines share")
    saved, random_states = load(path, run.model, run.optimizer, run.average.model if run.average else None)
    scaler = saved.pop("scaler")
    progress = Progress(**saved)
    if progress.world != accelerator.num_processes:
        if progress.batches:
            raise ConfigError(
                f"--resume: {path} is from the middle of an epoch of {progress.world} processes; with "
                f"{accelerator.num_processes} the images left would be others. Use {progress.world} processes."
            )
        progress.world = accelerator.num_processes
    elif f"cpu.{accelerator.process_index}" in random_states:
        torch.set_rng_state(random_states[f"cpu.{accelerator.process_index}"])
        if torch.cuda.is_available() and f"cuda.{accelerator.process_index}" in random_states:
            torch.cuda.set_rng_state(random_states[f"cuda.{accelerator.process_index}"])
    if scaler and accelerator.scaler:
        accelerator.scaler.load_state_dict(scaler)
    best = run.folder / "best" / "best.json"
    if best.is_file() and json.loads(best.read_text("utf-8"))["step"] > progress.step:
        progress.best_bleu, progress.best_cider, progress.best_loss, progress.best_step = (
            -1.0,
            -1.0,
            math.inf,
            0,
        )  # best/ is of a future that may not come again
    accelerator.wait_for_everyone()  # all have read
    if settings.resume_from and accelerator.is_main_process:  # else the next --resume would find them
        for later in checkpoints(run.folder):
            if step_of(later) > progress.step:
                shutil.rmtree(later)
    accelerator.print(f"resuming from {path}: step {progress.step}, epoch {progress.epoch + 1}")
    return progress
