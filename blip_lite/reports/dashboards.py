"""What a run shows on W&B, TensorBoard and trackio: numbers, and tables with pictures."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from blip_lite.errors import ImageError
from blip_lite.processing.images import ImageInput, open_image
from blip_lite.settings import DASHBOARDS, RunSettings
from blip_lite.storage import newest, read_run_config

PICTURE = 256  # pixels a side, at most


class Dashboards:
    """Those that `--log_with` names, of one run, by Accelerate's trackers; on the main process alone.

    One that fails is given up with a warning, and the others go on: training does not depend on them.

    Args:
        run: the run's folder.
        settings: the run's.
        tracker_id: of the run; a resumed one has the same, and goes on where it was.
    """

    def __init__(self, run: Path, settings: RunSettings, tracker_id: str) -> None:
        self.run, self.settings, self.tracker_id = run, settings, tracker_id
        self.trackers: list[Any] = []
        self.drawn: set[str] = set()  # pictures that TensorBoard has
        for name in settings.dashboards():
            with self._given_up(name):
                self.trackers.append(self._start(name))

    def settings_of_run(self, values: Mapping[str, Any]) -> None:
        """What the run was told; numbers and texts, as TensorBoard takes no more."""
        flat = {name: value for name, value in values.items() if isinstance(value, (int, float, str, bool))}
        self._each(lambda tracker: tracker.store_init_configuration(flat))

    def numbers(self, values: Mapping[str, Any], step: int) -> None:
        """A point of each curve; what is no number is left out."""
        found = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self._each(lambda tracker: self._log(tracker, found, step))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int) -> None:
        """A table. Its cells are numbers, texts and pictures; the first of a row with a picture names that."""
        kept = [list(row) for row in rows]
        self._each(lambda tracker: self._table(tracker, name, list(columns), kept, step))

    def summary(self, values: Mapping[str, Any], step: int) -> None:
        """What stands for the whole run, numbers and texts: in W&B's list of runs; the others have none, and get it as
        the rest."""

        def put(tracker: Any) -> None:
            if tracker.name == "wandb":
                tracker.tracker.summary.update(dict(values))
            else:
                tracker.log(dict(values), step=step)

        self._each(put)

    def upload(self, folder: Path) -> None:
        """A checkpoint, as an artifact of W&B."""

        def send(tracker: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"{self.run.resolve().name}-{folder.name}", type="model")
            artifact.add_dir(str(folder))
            tracker.tracker.log_artifact(artifact, aliases=[folder.name, "latest"])

        self._each(send, ("wandb",))

    def close(self) -> None:
        """End what was begun; until then some of it may be on no disk."""
        self._each(lambda tracker: tracker.finish())

    def _start(self, name: str) -> Any:
        from accelerate import tracking

        project, title = self.settings.project, self.settings.run_name or self.run.resolve().name
        if name == "wandb":
            own = {"name": title, "dir": str(self.run), "id": self.tracker_id, "resume": "allow"}
            tracker = tracking.WandBTracker(project, **own, **wandb_mode())
        elif name == "trackio":  # it knows runs by their names alone
            tracker = tracking.TrackioTracker(project, name=f"{title}-{self.tracker_id}", resume="allow", embed=False)
        else:
            tracker = tracking.TensorBoardTracker(project, logging_dir=self.run)
        tracker.start()
        if name == "wandb":  # our own step is the axis: W&B's only rises, and drops what a resumed run logs again
            tracker.tracker.define_metric("step")
            tracker.tracker.define_metric("*", step_metric="step")
        return tracker

    @staticmethod
    def _log(tracker: Any, values: dict[str, Any], step: int) -> None:
        if tracker.name == "wandb":
            tracker.log({**values, "step": step})
        else:
            tracker.log(values, step=step)

    def _table(self, tracker: Any, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        if tracker.name == "tensorboard":  # its texts are Markdown and hold no pictures: these lie beside, once
            for row in rows:
                for picture in (cell for cell in row if isinstance(cell, Image.Image)):
                    if (tag := f"{name}/{row[0]}") not in self.drawn:
                        self.drawn.add(tag)
                        tracker.writer.add_image(tag, np.asarray(picture), step, dataformats="HWC")
            tracker.writer.add_text(name, markdown(columns, rows), step)
            tracker.writer.flush()
            return
        client: Any = importlib.import_module(tracker.name)  # wandb and trackio call these things alike
        cells = [[client.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows]
        self._log(tracker, {name: client.Table(columns=columns, data=cells)}, step)

    def _each(self, call: Callable[[Any], object], names: Sequence[str] = DASHBOARDS) -> None:
        for tracker in [tracker for tracker in self.trackers if tracker.name in names]:
            with self._given_up(tracker.name):
                call(tracker)

    @contextlib.contextmanager
    def _given_up(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a dashboard's client raises
            self.trackers = [tracker for tracker in self.trackers if tracker.name != name]
            why = f"{name}: {type(error).__name__}: {error}"
            tqdm.write(f"warning: no dashboard from here on ({why}); the files in {self.run} go on")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, for TensorBoard's tab of texts: its pictures are in another one."""

    def line(cells: Iterable[Any]) -> str:
        texts = ("see Images" if isinstance(cell, Image.Image) else " ".join(str(cell).split()) for cell in cells)
        return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"

    return "\n".join([line(columns), "|---" * len(columns) + "|", *map(line, rows)])


def small(image: ImageInput) -> Image.Image | None:
    """A picture of at most `PICTURE` pixels a side; None if it cannot be opened."""
    with contextlib.suppress(ImageError, OSError):
        picture = open_image(image).copy()
        picture.thumbnail((PICTURE, PICTURE))
        return picture
    return None


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


VERDICTS = ("verdict", "what was seen", "what to do next")


def verdict_rows(verdicts: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """For a table of `VERDICTS`."""
    return [[verdict["name"], verdict["text"], verdict["advice"]] for verdict in verdicts]


def log_evaluation(run: Path, split: str, result: dict[str, Any]) -> None:
    """Put an evaluation's numbers, as `test/CIDEr` and so on, and its verdicts on the run's dashboards. A failure is a
    warning."""
    settings, last = read_run_config(run).run, newest(run)
    if not settings.dashboards() or last is None:
        return
    progress = json.loads((last / "state" / "progress.json").read_text("utf-8"))
    step, verdicts = result.get("step") or progress["step"], result.get("verdicts", [])
    numbers = {f"{split}/{name}": v for name, v in result.items() if isinstance(v, (int, float))}
    dashboards = Dashboards(run, settings, progress["tracker_id"])
    dashboards.summary(numbers, step)
    if verdicts:
        dashboards.summary({f"{split}/verdict_names": ", ".join(v["name"] for v in verdicts)}, step)
        dashboards.table(f"{split}/verdicts", VERDICTS, verdict_rows(verdicts), step)
    dashboards.close()
