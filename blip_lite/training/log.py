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
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from blip_lite.data.batches import Batch
from blip_lite.data.look import samples
from blip_lite.errors import ImageError
from blip_lite.evaluation.metrics import sacrebleu
from blip_lite.model.flops import peak_flops, training_flops
from blip_lite.processing.images import open_image
from blip_lite.processing.picture import Picture
from blip_lite.reports.dashboards import wandb_mode, wandb_run
from blip_lite.storage import read_metrics, write_text
from blip_lite.training.run import Progress, Run
from blip_lite.training.setup import precision

T = TypeVar("T")


class RunLog:
    """Means since the last line, and where they go.

    A dashboard that fails is given up with one warning, and lines that the disk does not take are kept for the next
    write; training goes on.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.settings, self.accelerator = run, run.config.run, run.accelerator
        accelerator, progress = run.accelerator, run.progress
        self.path, self.dashboard = run.folder / "metrics.jsonl", bool(self.settings.dashboards())
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
        if self.dashboard:
            self._try(lambda: self._start(progress.tracker_id))

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

    def evaluation(self, values: dict[str, Any], samples: list[tuple[Picture, str]], improved: bool) -> None:
        """A line with validation's numbers; on the dashboards, the same few images each time with their captions."""
        progress = self.run.progress
        about = {"epoch": progress.epoch + progress.batches / self.run.batches_per_epoch}
        seconds = time.perf_counter() - self.run.begun
        self._write(progress.step, {**about, **values, "val_best_so_far": improved, "seconds": seconds})
        if self.dashboard and self.accelerator.is_main_process:
            self._try(lambda: self._show(progress, values, samples))
        self._say(
            f"step {progress.step}  validation loss {values['val_loss']:.4f}  sacreBLEU {values['val_bleu']:.2f}  "
            f"CIDEr {values['val_cider']:.3f}"
            f"{'  (best so far)' if improved else ''}  {values['val_seconds']:.0f} s"
        )
        if values["val_commonest_caption"] > 0.5 and values["val_images"] > 4:
            self._say(
                f"warning: {values['val_commonest_caption']:.0%} of the validation captions are the same. "
                "Early in training from nothing "
                "this is normal; later it means a learning rate too high, or images that do not match their captions."
            )
        self.since += values["val_seconds"]  # not training

    def close(self) -> None:
        """End the dashboards' runs."""
        self.bar.close()
        self._flush()
        if self.dashboard:
            self._try(self._end)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        self.pending.append(json.dumps({"step": step, **values}) + "\n")
        self._flush()
        if self.dashboard:
            numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
            named = {
                (k.replace("val_", "val/", 1) if k.startswith("val_") else f"train/{k}"): v for k, v in numbers.items()
            }
            self._try(lambda: self._log(step, named))

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

    # ------------------------------------------------------------------------------------- dashboards

    def _try(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # whatever a dashboard's client raises
            self.dashboard = False
            self._say(f"warning: no dashboard from here on ({type(error).__name__}: {error}); metrics.jsonl goes on")

    def _start(self, tracker_id: str) -> None:
        wandb_settings: dict[str, Any] = {}
        if "wandb" in self.settings.dashboards():
            wandb_settings = {
                "name": self.settings.run_name or self.run.folder.name,
                **wandb_run(self.run.folder, tracker_id),
            }
            if self.accelerator.is_main_process:
                wandb_settings |= wandb_mode()
        about = json.loads((self.run.folder / "config.json").read_text("utf-8"))
        settings = {
            **about.pop("settings"),
            **{f"{k}/{n}": v for k, d in about.items() if isinstance(d, dict) for n, v in d.items()},
        }
        settings |= {k: v for k, v in about.items() if not isinstance(v, dict)}
        flat = {
            k: v for k, v in settings.items() if isinstance(v, (int, float, str, bool))
        }  # TensorBoard takes no more
        self.accelerator.init_trackers(self.settings.project, config=flat, init_kwargs={"wandb": wandb_settings})
        if run := self._wandb():
            # Our own step is the axis: W&B's only rises, and drops what a resumed run logs again.
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            self._show_data(run)

    def _show_data(self, run: Any) -> None:
        """A first look at the data: some pictures of each split with their captions."""
        import wandb

        table = wandb.Table(columns=["split", "image_id", "image", "captions"])
        for split, example in samples(self.run.data):
            with contextlib.suppress(ImageError, OSError):  # reported where it is trained on
                picture = open_image(example.open())
                picture.thumbnail((256, 256))
                table.add_data(split, example.image_id, wandb.Image(picture), " | ".join(example.captions))
        run.log({"data/first_look": table, "step": self.run.progress.step})
        if (sheet := self.run.folder / "augmented.png").is_file():
            run.log({"data/augmented": wandb.Image(str(sheet)), "step": self.run.progress.step})

    def _wandb(self) -> Any:
        """The W&B run, on the main process, if there is one."""
        if not self.accelerator.is_main_process:
            return None
        return next((t.tracker for t in self.accelerator.trackers if t.name == "wandb"), None)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                tracker.log({**values, "step": step})
            else:
                tracker.log(values, step=step)

    def _show(self, progress: Progress, values: dict[str, Any], samples: list[tuple[Picture, str]]) -> None:
        rows = [
            (example, caption, " | ".join(example.captions), sacrebleu([caption], [example.captions])["score"])
            for example, caption in samples
        ]
        if run := self._wandb():
            import wandb

            table = wandb.Table(columns=["step", "image", "caption", "references", "sacrebleu"])
            for example, caption, references, bleu in rows:
                picture = open_image(example.open())
                picture.thumbnail((256, 256))
                table.add_data(progress.step, wandb.Image(picture), caption, references, bleu)
            run.log({"val/captions": table, "step": progress.step})
            run.summary.update({"best/val_bleu": progress.best_bleu, "best/step": progress.best_step})
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                lines = [f"{e.image_id} | {caption} | {refs} | {bleu:.1f}" for e, caption, refs, bleu in rows]
                head = "image | caption | references | sacreBLEU\n---|---|---|---\n"
                tracker.writer.add_text("val/captions", head + "\n".join(lines), progress.step)

    def _end(self) -> None:
        run = self._wandb()
        if run and self.settings.wandb_artifacts and (self.run.folder / "best").is_dir():
            import wandb

            artifact = wandb.Artifact(f"{self.run.folder.name}-best", type="model")
            artifact.add_dir(str(self.run.folder / "best"))
            run.log_artifact(artifact, aliases=["best", "latest"])
        for (
            tracker
        ) in self.accelerator.trackers:  # not end_training(): that would close this process's connection alone
            tracker.finish()


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
