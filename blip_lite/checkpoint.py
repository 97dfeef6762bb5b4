"""The state of a run on disk: written whole or not at all, rotated, and loaded back exactly.

`checkpoint-000455/` holds a model directory that `Captioner` and `transformers` load, and `state/` for resuming:
AdamW's moments and the random states in safetensors, everything else in JSON. No pickles.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import safetensors.torch
import torch
from torch import Tensor

from blip_lite.model import Blip
from blip_lite.pretrained import CheckpointError, Unfilled, load_weights, read_weights, save_pretrained
from blip_lite.processing import Processor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = re.compile(r"checkpoint-(\d+)")
TIME_UP = 1000  # `Stop.asked` for --time_limit; no signal has this number


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Create a directory so that it appears complete or not at all.

    It is written under a temporary name, each file flushed to disk, `manifest.json` (sizes, SHA-256) last, then
    renamed. An existing one is moved aside first and removed after; `recover` puts it back if that was cut short.
    """
    work = path.parent / f".tmp-{path.name}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        fill(work)
        files = sorted(file for file in work.rglob("*") if file.is_file())
        manifest = {str(f.relative_to(work)): {"size": f.stat().st_size, "sha256": _sha256(f)} for f in files}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")
        for entry in (*files, work / "manifest.json", *(d for d in work.rglob("*") if d.is_dir()), work):
            _fsync(entry)
        aside = path.parent / f".old-{path.name}"
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        os.rename(work, path)
        _fsync(path.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a small file, whole or not at all."""
    work = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        work.write_text(text, "utf-8")
        _fsync(work)
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def lock(written: Path, name: Path | None = None) -> TextIO | None:
    """Keep other processes from writing into a run, or a file, for as long as this one lives and the result is open.

    Args:
        written: what is written into.
        name: of the lock file; default: `.lock` in the run.

    A lock of the operating system, so a killed process leaves none behind. Not on Windows.

    Raises:
        CheckpointError: another process holds it.
    """
    file = open(name or written / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  the caller keeps it open
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: workers that are forked do not inherit it
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            print(
                f"warning: {written} lies on a file system without locks ({error}); see that one run at a time writes there"
            )
            return file
        file.seek(0)
        raise CheckpointError(
            f"{written} is being written by another process ({file.read().strip()}). If torchrun started both, they do not "
            "know of each other: on CPUs, set ACCELERATE_USE_CPU=true"
        ) from error
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


class Stop:
    """Asks the loop to stop after its present step: SIGTERM, SIGINT (Ctrl-C), or a time limit in minutes. A second
    signal ends the process at once. `with` gives the signals back to who had them."""

    def __init__(self, minutes: float | None) -> None:
        self.signal = 0
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.group: Any = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            self.__exit__()
            signal.raise_signal(number)
        self.signal = number

    def here(self, seconds: float = 0) -> int:
        """As `asked`, of this process alone."""
        return self.signal or (TIME_UP if time.monotonic() + seconds > self.deadline else 0)

    def asked(self, seconds: float) -> int:
        """0, a signal's number, or `TIME_UP` if the next `seconds` would pass the deadline; the same in all
        processes, whichever of them was asked."""
        asked = self.here(seconds)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # On the host, so that asking does not wait for the GPU.
            self.group = self.group or torch.distributed.new_group(backend="gloo")
            flag = torch.tensor(asked)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.group)
            asked = int(flag)
        return asked


def recover(run: Path) -> None:
    """Clear what a killed process left: finish or undo a replaced directory, remove temporary ones."""
    for aside in run.glob(".old-*"):
        path = run / aside.name.removeprefix(".old-")
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, path)
    for work in run.glob(".tmp-*"):
        if work.is_dir():
            shutil.rmtree(work, ignore_errors=True)
        else:
            work.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def problem(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, by its manifest; None if it is complete and unchanged."""
    try:
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"manifest.json cannot be read ({error})"
    for name, known in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != known["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {known['size']}"
        if _sha256(file) != known["sha256"]:
            return f"{name} has changed (SHA-256)"
    return None


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint directories, oldest first, ordered by step number."""
    found = [
        (int(m[1]), path) for path in run.glob("checkpoint-*") if (m := NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def step_of(path: Path) -> int:
    """The step in a checkpoint directory's name."""
    return int(path.name.rsplit("-", 1)[1])


def newest(run: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest intact checkpoint; damaged ones are named and passed over."""
    for path in reversed(checkpoints(run)):
        if (wrong := problem(path)) is None:
            return path
        say(f"{path} is damaged and passed over: {wrong}")
    return None


def save(
    run: Path,
    step: int,
    model: Blip,
    processor: Processor,
    optimizer: torch.optim.Optimizer,
    random_states: dict[str, Tensor],
    progress: dict[str, Any],
    keep: int,
) -> Path:
    """Write `checkpoint-STEP`, then remove all but the newest `keep`.

    Args:
        random_states: by name; see `training`.
        progress: JSON, all else that resuming needs.
    """

    def fill(work: Path) -> None:
        save_pretrained(model, processor, work)
        state = optimizer.state_dict()
        tensors = {f"optimizer.{i}.{k}": v.cpu() for i, values in state["state"].items() for k, v in values.items()}
        tensors.update({f"random.{name}": value for name, value in random_states.items()})
        (work / "state").mkdir()
        safetensors.torch.save_file(tensors, work / "state" / "tensors.safetensors")
        settings = {**progress, "param_groups": state["param_groups"]}
        (work / "state" / "progress.json").write_text(json.dumps(settings, indent=1), "utf-8")

    path = run / f"checkpoint-{step:06d}"
    write_directory(path, fill)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load(path: Path, model: Blip, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put a checkpoint's weights and AdamW moments back.

    Returns:
        (progress, random states), as given to `save`.

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
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    decay = [group["weight_decay"] for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": progress.pop("param_groups")})
    for group, value in zip(optimizer.param_groups, decay, strict=True):  # as set now, not as saved
        group["weight_decay"] = value
    random_states = {n.removeprefix("random."): v for n, v in tensors.items() if n.startswith("random.")}
    return progress, random_states


def save_best(run: Path, model: Blip, processor: Processor, why: dict[str, Any]) -> None:
    """Write `best/`, a model directory of its own, with `best.json` saying what made it the best."""

    def fill(work: Path) -> None:
        save_pretrained(model, processor, work)
        (work / "best.json").write_text(json.dumps(why, indent=1), "utf-8")

    write_directory(run / "best", fill)
