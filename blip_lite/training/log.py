"""What a run says of itself: `metrics.jsonl`, printed lines, the progress bar and the dashboards; one
set of numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from blip_lite.data.batches import Batch
from blip_lite.data.look import samples
from blip_lite.evaluation.metrics import sacrebleu
from blip_lite.evaluation.verdicts import COMMONEST, Verdict
from blip_lite.model.flops import peak_flops, training_flops
from blip_lite.reports.dashboards import VERDICTS, Dashboards, small, verdict_rows
from blip_lite.storage import read_metrics, write_text
from blip_lite.training.run import Run
from blip_lite.training.setup import precision
from blip_lite.training.validate import Validation

T = TypeVar("T")


class RunLog:
    """Means since the last line, and where they go.

    Lines that the disk does not take are kept for the next write; training goes on.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.settings, self.accelerator = run, run.config.run, run.accelerator
        accelerator, progress = run.accelerator, run.progress
        self.path = run.folder / "metrics.jsonl"
        self.pending: list[str] = []  # lines not yet on disk
        self.loss = torch.zeros((), device=accelerator.device)  # of this process, since the last line
        self.targets = torch.zeros((), device=accelerator.device)  # of all processes
        self.images, self.flops = 0, 0  # of all processes; of this one
        self.waited, self.since, self.last_step = 0.0, time.perf_counter(), progress.step
        self.peak = peak_flops(accelerator.device, getattr(torch, precision(accelerator)))
        quiet = not (accelerator.is_main_process and sys.stderr.isatty())
        self.bar = tqdm(total=run.total_steps, initial=progress.step, unit="step", disable=quiet)
        if accelerator.is_main_process:  # lines of steps that will be done again go
            kept = [line for line in read_metrics(run.folder) if line["step"] <= progress.step]
            with contextlib.suppress(OSError):  # a full disk: the old file stays
                write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
            self.loss += progress.logged_loss
        self.targets += progress.logged_targets
        self.dashboards: Dashboards | None = None
        if accelerator.is_main_process and self.settings.dashboards():
            self.dashboards = Dashboards(run.folder, self.settings, progress.tracker_id)
            self._begin(self.dashboards)
        if progress.step:  # a resumed run
            self._resumed()

    def add(self, loss: Tensor, targets: Tensor, window: list[Batch]) -> None:
        """A step: the sum of this process's losses, all processes' targets, this process's batches."""
        self.loss += loss
        self.targets += targets
        for batch in window:
            self.images += len(batch.image_ids) * self.accelerator.num_processes
            self.flops += training_flops(self.run.model, batch.pixel_values.ndim == 3, batch.labels)
        self.bar.update()

    def waits(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time spent waiting for them counted."""
        iterator = iter(items)
        while True:
            begun = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - begun
            yield item

    def training(self, lr: float, grad_norm: Tensor, bad_images: int) -> None:
        """A line with the means since the last one."""
        progress = self.run.progress
        loss = (self.accelerator.reduce(self.loss, "sum") / self.targets.clamp(min=1)).item()
        now = time.perf_counter()  # a GPU has only now done what it was given: `item` waited for it
        seconds, elapsed = now - self.since, now - self.run.begun
        rate = self.flops / seconds
        values = {
            "epoch": progress.epoch + progress.batches / self.run.batches_per_epoch,
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": grad_norm.item() if torch.isfinite(grad_norm) else None,
            "images_per_second": self.images / seconds,
            "tokens_per_second": self.targets.item() / seconds,
            "seconds": elapsed,
            "seconds_per_step": seconds / max(1, progress.step - self.last_step),
            "data_wait_share_of_seconds": self.waited / seconds,
            "tflops_per_second": rate / 1e12,  # of each process: useful work, see `training_flops`
            "mfu": rate / self.peak if self.peak else None,  # that, as a share of what the device could do
            "memory_gb": peak_memory(self.accelerator.device) / 1e9,
            "skipped": progress.skipped,
            "bad_images": bad_images,
        }
        self._write(progress.step, values)
        done = progress.step / self.run.total_steps
        left = elapsed * (1 - done) / done / 60
        how_far = f"  {done:.0%}, {left:.1f} min left" if self.bar.disable else ""  # on a terminal the bar tells
        used = f"  MFU {values['mfu']:.0%}" if values["mfu"] is not None else ""
        self._say(
            f"step {progress.step}  epoch {values['epoch']:.2f}  loss {loss:.4f}  lr {lr:.2e}  "
            f"{values['images_per_second']:.1f} images/s{used}{how_far}"
        )
        self.loss.zero_()
        self.targets.zero_()
        self.images, self.flops = 0, 0
        self.waited, self.since, self.last_step = 0.0, now, progress.step

    def evaluation(self, found: Validation, improved: bool) -> None:
        """A line with validation's numbers; on the dashboards, the same few images each time with their captions, and
        the words that the model says too often or too seldom."""
        progress, values = self.run.progress, found.numbers
        about = {"epoch": progress.epoch + progress.batches / self.run.batches_per_epoch}
        seconds = time.perf_counter() - self.run.begun
        self._write(progress.step, {**about, **values, "val_best_so_far": improved, "seconds": seconds})
        if self.dashboards:
            self._show(self.dashboards, found)
        other = values["val_loss_other_image"]
        self._say(
            f"step {progress.step}  validation loss {values['val_loss']:.4f}"
            f"{'' if other is None else f' ({other:.4f} with other images)'}  sacreBLEU {values['val_bleu']:.2f}  "
            f"CIDEr {values['val_cider']:.3f}"
            f"{'  (best so far)' if improved else ''}  {values['val_seconds']:.0f} s"
        )
        if values["val_commonest_caption"] > COMMONEST and values["val_images"] > 4:
            self._say(
                f"warning: {values['val_commonest_caption']:.0%} of the validation captions are the same. "
                "Early in training from nothing "
                "this is normal; later it means a learning rate too high, or images that do not match their captions."
            )
        self.since += values["val_seconds"]  # not training

    def close(self, verdicts: list[Verdict]) -> None:
        """End the dashboards' runs, with what the log says."""
        self.bar.close()
        self._flush()
        if self.dashboards:
            if verdicts:
                step, names = self.run.progress.step, ", ".join(verdict["name"] for verdict in verdicts)
                self.dashboards.table("run/verdicts", VERDICTS, verdict_rows(verdicts), step)
                self.dashboards.summary({"run/verdict_names": names}, step)
            if self.settings.wandb_artifacts and (self.run.folder / "best").is_dir():
                self.dashboards.upload(self.run.folder / "best")
            self.dashboards.close()

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        self.pending.append(json.dumps({"step": step, **values}) + "\n")
        self._flush()
        if self.dashboards:
            named = {
                (k.replace("val_", "val/", 1) if k.startswith("val_") else f"train/{k}"): v for k, v in values.items()
            }
            self.dashboards.numbers(named, step)

    def _flush(self) -> None:
        size = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(self.pending))
            self.pending = []
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # half a line
            self._say(f"warning: {self.path} cannot be written ({error}); its lines are kept for later")

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(line)

    def _resumed(self) -> None:
        """Note this segment of the run: when it began, and what is not as it was before."""
        progress, now = self.run.progress, datetime.now(timezone.utc).isoformat(timespec="seconds")
        progress.resumed.append({"step": progress.step, "when": now, "changed": self.run.changed})
        if self.dashboards:
            rows = [[each["step"], each["when"], "; ".join(each["changed"]) or "nothing"] for each in progress.resumed]
            self.dashboards.table("run/resumed", ("step", "when", "what changed"), rows, progress.step)

    def _begin(self, dashboards: Dashboards) -> None:
        """The settings, and a first look at the data: some pictures of each split with their captions."""
        about = json.loads((self.run.folder / "config.json").read_text("utf-8"))
        settings = about.pop("settings") | {k: v for k, v in about.items() if not isinstance(v, dict)}
        groups = {f"{k}/{n}": v for k, d in about.items() if isinstance(d, dict) for n, v in d.items()}
        dashboards.settings_of_run(settings | groups)
        step = self.run.progress.step
        looks = [
            [example.image_id, split, picture, " | ".join(example.captions)]
            for split, example in samples(self.run.data)
            if (picture := small(example.open()))  # one that cannot be opened is reported where it is trained on
        ]
        dashboards.table("data/first_look", ("image_id", "split", "image", "captions"), looks, step)
        if (sheet := self.run.folder / "augmented.png").is_file():
            with Image.open(sheet) as picture:
                dashboards.table("data/augmented", ("image_id", "image"), [["augmented", picture.convert("RGB")]], step)

    def _show(self, dashboards: Dashboards, found: Validation) -> None:
        step = self.run.progress.step
        rows = [
            [
                e.image_id,
                picture,
                caption,
                " | ".join(e.captions),
                round(sacrebleu([caption], [e.captions])["score"], 1),
            ]
            for e, caption in found.samples
            if (picture := small(e.open()))
        ]
        dashboards.table("val/captions", ("image_id", "image", "caption", "references", "sacrebleu"), rows, step)
        words = [
            [kind, use.word, round(use.model, 1), round(use.human, 1)]
            for kind, uses in zip(("too often", "too seldom"), found.words)
            for use in uses
        ]
        dashboards.table("val/words", ("said", "word", "% of captions", "% of references"), words, step)
        best = {"best/val_bleu": self.run.progress.best_bleu, "best/step": self.run.progress.best_step}
        dashboards.summary(best, step)


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak, or on a CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; `ru_maxrss` would begin with the launcher's
        return int(status.read_text("utf-8").split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
