"""Files and directories that appear whole or not at all; what a run's directory holds."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.settings import TrainConfig, check

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = re.compile(r"checkpoint-(\d+)")


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
        manifest = {str(f.relative_to(work)): {"size": f.stat().st_size, "sha256": sha256(f)} for f in files}
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
        work.write_text(text, "utf-8", "backslashreplace")  # file names that are no UTF-8
        _fsync(work)
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def lock(written: Path, name: Path | None = None, note: str = "") -> TextIO:
    """Keep other processes from writing into a run, or a file, for as long as this one lives and the result is open.

    Args:
        written: what is written into.
        name: of the lock file; default: `.lock` in the run.
        note: is kept in the lock file.

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
                f"warning: {written} lies on a file system without locks ({error}); see that one run at a "
                "time writes there"
            )
            return file
        file.seek(0)
        both = ". If torchrun started both, they do not know of each other: on CPUs, set ACCELERATE_USE_CPU=true"
        raise CheckpointError(
            f"{written} is being written by another process ({file.read().partition(chr(10))[0]}){'' if name else both}"
        ) from error
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}{note}")
    file.flush()
    return file


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


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal. Raises OSError."""
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
        if sha256(file) != known["sha256"]:
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


def step_in(ckpt: str | Path) -> int | None:
    """The optimizer step that a checkpoint directory is of, as far as it says so."""
    path = Path(ckpt)
    return step_of(path) if NAME.fullmatch(path.name) else read_best(path).get("step")


def is_run(folder: Path) -> bool:
    """Whether the folder's `config.json` is that of a run; a model's has the same name."""
    with contextlib.suppress(OSError, ValueError):
        return "settings" in json.loads((folder / "config.json").read_text("utf-8"))
    return False


def newest(run: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest intact checkpoint; damaged ones are named and passed over."""
    for path in reversed(checkpoints(run)):
        if (wrong := problem(path)) is None:
            return path
        say(f"{path} is damaged and passed over: {wrong}")
    return None


# What runs did that do not say it, as they are from before there was a choice.
BEFORE = {"scenes": 2500, "optimizer": "adamw", "parallel_prediction": 0.0}


def read_run_config(run: Path) -> TrainConfig:
    """The settings of a run, from its `config.json`. Raises ConfigError."""
    path = run / "config.json"
    try:
        values = {**BEFORE, **json.loads(path.read_text("utf-8"))["settings"]}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{run}: not a run of train.py, {path.name} cannot be read ({error})") from error
    return TrainConfig.of(**check(TrainConfig, values, str(path)))


def command(name: str) -> str:
    """How to call another command, from where this one was called: `python evaluate.py`, or `blip-lite evaluate`."""
    return (
        f"python {name}.py"
        if Path(sys.argv[0]).suffix == ".py" and Path(f"{name}.py").is_file()
        else f"blip-lite {name}"
    )


def read_best(best: Path) -> dict[str, Any]:
    """What made a run's best checkpoint the best: `best.json`; empty if it does not say."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((best / "best.json").read_text("utf-8")))
    return {}


def lines_of(text: str) -> list[str]:
    """The lines of a JSONL file that are not empty. `str.splitlines` would also cut at U+2028 and its like, which may
    stand inside JSON's strings."""
    return [line for line in text.split("\n") if line.strip()]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; none if there is no such file. One that a killed process left half is
    passed over."""
    path, found = run / "metrics.jsonl", []
    for line in lines_of(path.read_text("utf-8")) if path.is_file() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
