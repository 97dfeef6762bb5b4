"""The runs on W&B: how one is begun, continued, and given an evaluation's numbers."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blip_lite.storage import newest, read_run_config


def wandb_run(run: Path, tracker_id: str) -> dict[str, Any]:
    """What `wandb.init` is to be told, so that it continues the run's own W&B run."""
    return {"dir": str(run), "id": tracker_id, "resume": "allow"}


def wandb_mode() -> dict[str, Any]:
    """Offline where there is no login or no network. Asked first, because `wandb.init` would show a menu or raise."""
    import wandb

    if mode := os.environ.get("WANDB_MODE"):  # said again, as W&B reads it only once a process
        return {"mode": mode}
    with contextlib.suppress(Exception):  # a key, but no network
        if wandb.login(prompt=False):
            return {}
    tqdm.write("W&B: no login or no network; the run is kept offline, `wandb sync` sends it")
    return {"mode": "offline"}


def log_evaluation(run: Path, split: str, result: dict[str, Any]) -> None:
    """Put an evaluation's numbers into the summary of the run's W&B run, if it has one, as `test/CIDEr` and so on.
    A failure is a warning."""
    settings, last = read_run_config(run).run, newest(run)
    if "wandb" not in settings.dashboards() or last is None:
        return
    try:
        import wandb

        tracker_id = json.loads((last / "state" / "progress.json").read_text("utf-8"))["tracker_id"]
        numbers = {f"{split}/{name}": v for name, v in result.items() if isinstance(v, (int, float))}
        with wandb.init(project=settings.project, **wandb_run(run, tracker_id), **wandb_mode()) as continued:
            continued.summary.update(numbers)
    except Exception as error:  # whatever a dashboard's client raises
        tqdm.write(f"warning: the dashboard does not have these numbers ({type(error).__name__}: {error})")
