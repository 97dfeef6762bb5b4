"""The run's directory: is it free, is it ours, what does it say of the run?"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

import blip_lite
from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.settings import TrainConfig
from blip_lite.storage import BEFORE, checkpoints, lock, problem, read_run_config, recover, write_text
from blip_lite.training.run import Run

# Settings that a resumed run must share with its beginning, for it to go on as the same run.
MUST_NOT_CHANGE = (
    "model",
    "batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "max_words",
    "captions_per_image",
    "prompt",
    "seed",
    "freeze_vision",
    "mixed_precision",
    "optimizer",
    "learning_rate",
    "lr_schedule",
    "warmup_ratio",
    "weight_decay",
    "label_smoothing",
    "parallel_prediction",
    "max_grad_norm",
    "image_size",
    "augment",
    "dropout",
    "ema",
    "vision_learning_rate_factor",
    "layer_decay",
)
# Of these, those with which the optimizer's moments are of other weights, in other groups, or of another shape.
OTHER_MOMENTS = ("optimizer", "freeze_vision", "vision_learning_rate_factor", "layer_decay", "image_size")


FORGETTABLE = (
    "resume", "resume_from", "allow_config_change", "overwrite", "sanity", "audit", "plan", "time_limit",
)  # fmt: skip


def check_output(run: Path, config: TrainConfig) -> TrainConfig | None:
    """The settings of the run that is resumed, if one is. Changes nothing.

    Raises:
        ConfigError: the output directory holds another run, or something that is no run.
        CheckpointError: `resume_from` is damaged.
    """
    if run.exists() and not run.is_dir():
        raise ConfigError(f"--output_dir {run} is a file")
    above = next(folder for folder in (run, *run.absolute().parents) if folder.exists() or folder.is_symlink())
    if not above.exists():
        raise ConfigError(f"--output_dir {run}: {above} is a link to nothing")
    try:  # in the first folder that is there, as that is where the run's would be made
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ConfigError(f"--output_dir {run} cannot be written: {above}: {error.strerror}") from error
    if not run.is_dir() or not any(entry.name != ".lock" for entry in run.iterdir()):
        return None
    if not (config.run.resume or config.run.overwrite):
        holds = (run / "config.json").is_file()
        remedy = (
            "continue it with --resume, replace it with --overwrite, or choose another" if holds else "choose another"
        )
        raise ConfigError(f"--output_dir {run} {'holds a run' if holds else 'is not empty'}: {remedy}")
    if config.run.resume_from and (damage := problem(Path(config.run.resume_from))):
        raise CheckpointError(f"--resume_from {config.run.resume_from}: {damage}")
    before = read_run_config(run)  # never resume in, or delete, a directory that is no run of ours
    if not (config.run.resume and checkpoints(run)):
        return None
    earlier, now = before.flat(), config.flat()
    changed = {n: (earlier[n], now[n]) for n in MUST_NOT_CHANGE}
    wrong = [f"{n} was {old!r}, is now {new!r}" for n, (old, new) in changed.items() if old != new]
    if wrong and (not config.run.allow_config_change or any(earlier[n] != now[n] for n in OTHER_MOMENTS)):
        raise ConfigError(
            f"--resume: {run} would become another run: {'; '.join(wrong)}. --allow_config_change does "
            "it all the same (not for optimizer, freeze_vision, image_size and rates of layers: other weights have "
            "moments)"
        )
    return before


def open_run(of: Run, machine: dict[str, Any]) -> TextIO:
    """Make the output directory ours, locked while the returned file is open, and write `config.json`: the settings,
    the data's fingerprint, the versions.

    Raises:
        ConfigError: the data are not those of the run that is resumed.
        CheckpointError: another process is writing into it.
    """
    run, config, data = of.folder, of.config, of.data
    run.mkdir(parents=True, exist_ok=True)
    locked = lock(run)
    if config.run.overwrite:
        for entry in run.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()
    recover(run)
    settings = {n: v for n, v in config.flat().items() if n not in FORGETTABLE}
    if config.run.resume and checkpoints(run):
        before = json.loads((run / "config.json").read_text("utf-8"))
        by_rows = "order" not in before  # a version whose order was that of the rows
        if before["data_fingerprint"] != data.fingerprint(in_row_order=by_rows):
            raise ConfigError(f"--resume: the data are not those that {run} began with (another fingerprint)")
        if by_rows:
            print(
                "--resume: this run began with a version that took images in the order of the data's rows, not of "
                "their ids: in the epoch that goes on, some images come twice and others not at all"
            )
        now = {**settings, **machine, **versions()}
        then = {**BEFORE, **before["settings"], **before.get("hardware", {}), **before["versions"]}
        of.changed = [f"{n} was {then.get(n)!r}, is now {v!r}" for n, v in now.items() if then.get(n) != v]
        for line in of.changed:
            print(f"--resume: {line}")
    content = {
        "settings": settings,
        "images": {split: len(examples) for split, examples in data.splits.items()},
        "data_fingerprint": data.fingerprint(),
        "order": "by id",
        "num_parameters": sum(p.numel() for p in of.model.parameters()),
        "hardware": machine,
        "versions": versions(),
    }
    try:
        write_text(run / "config.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        if not (run / "config.json").is_file():
            raise ConfigError(f"--output_dir {run} cannot be written: {error}") from error
        print(f"warning: {run / 'config.json'} could not be written ({error}); it stays as it was")
    return locked


def versions() -> dict[str, str | None]:
    """Of the packages, and the commit of the working copy that the package lies in, if it is one."""
    packages = ("torch", "accelerate", "transformers", "datasets", "tokenizers", "safetensors", "sacrebleu")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ) if shutil.which("git") else None  # fmt: skip
    return {
        "blip_lite": blip_lite.__version__,
        "git_commit": (commit.stdout.strip() or None) if commit else None,
        "python": sys.version.split()[0],
        **{name: importlib.metadata.version(name) for name in packages},
    }
