"""The loop. `train` reads from top to bottom: settings, data, model, optimizer, resume, then for each epoch and
each step: fetch, count targets, forward and backward, check, update, log, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import math
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from blip_lite.data.batches import Batch, epoch_batches, epoch_order, loader
from blip_lite.data.look import FEW
from blip_lite.data.sources.shapes import SCENES
from blip_lite.errors import Stopped, TrainingError
from blip_lite.evaluation.verdicts import of_log, say
from blip_lite.reports.model_card import model_card
from blip_lite.settings import OptimisationSettings, TrainConfig
from blip_lite.storage import command, newest, read_best, read_metrics, write_text
from blip_lite.training.bad_images import BadImages
from blip_lite.training.checkpoint import on_disk, resume, save_best, save_checkpoint, wait_for_checkpoint, writer
from blip_lite.training.feature_cache import cache_features
from blip_lite.training.log import RunLog
from blip_lite.training.run import Progress, Run
from blip_lite.training.run_dir import check_output, open_run
from blip_lite.training.setup import co2_meter, hardware, prepare, show_augmentation, start
from blip_lite.training.signals import Stop
from blip_lite.training.validate import validate

SKIPS_IN_A_ROW = 10  # updates with a non-finite gradient, after which a run is beyond help; looked at so often


def train(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune and write everything into `config.run.output_dir`.

    Returns:
        The last validation's numbers, with `best_bleu` and `best_step`.

    Raises:
        ConfigError, DataError, CheckpointError: before any long work.
        TrainingError: the loss stays non-finite, too many images are bad, or the last checkpoint could not be written.
        Stopped: by a signal or `time_limit`; everything is saved.
    """
    config = config.resolved()
    config.validate()
    stop = Stop(config.run.time_limit)
    accelerator = start(config)
    resumed = check_output(Path(str(config.run.output_dir)), config)
    config = config.replace(scenes=config.data.scenes or (resumed and resumed.data.scenes) or SCENES)
    run = prepare(config, accelerator)
    lock = open_run(run, hardware(accelerator)) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    with stop, writer(run):  # before, a signal ends the process: there is nothing to save
        log, bad_images = begin(run, stop), BadImages(run)

        if run.progress.validation_due and not run.stopped:  # the run was stopped before it
            evaluate_and_keep_best(run, log, stop)
            run.stopped = stop.asked(0) if run.progress.validation_due else 0
            save(run, log)
        while not run.finished and not run.stopped:
            for window in log.waits(stop.awaited(windows(epoch(run), run.accumulation))):
                began = time.perf_counter()
                lr = learning_rate(run.progress.step, run.total_steps, config.optimisation)
                step = train_step(run, window, lr)
                run.progress.step += 1
                run.progress.batches += len(window)
                log.add(step.loss, step.targets, window)
                bad_images.add(window)
                end_of_epoch = run.progress.batches >= run.batches_per_epoch
                if end_of_epoch:
                    run.progress.epoch, run.progress.batches = run.progress.epoch + 1, 0
                report(run, log, bad_images, window, step.grad_norm, lr, end_of_epoch)
                validate_and_save(run, log, stop, end_of_epoch, began)
                if run.finished or run.stopped:
                    break
            if stop.cut:
                run.stopped = stop.signal
                save(run, log)
        return close(run, log, lock)


class Step(NamedTuple):
    """What an optimizer step found, each a tensor on the device: nothing here waits for it."""

    loss: Tensor  # sum over the targets of this process
    targets: Tensor  # target tokens of all processes
    grad_norm: Tensor  # before clipping


def train_step(run: Run, window: list[Batch], lr: float) -> Step:
    """One optimizer step on the batches of `window`, all of this process; the others take theirs at the same time."""
    accelerator, settings = run.accelerator, run.config.optimisation
    # The loss is the mean over every target token of the effective batch, so count them first: over
    # all micro-batches, and all processes.
    targets = torch.full((), sum(batch.num_targets() for batch in window), device=accelerator.device)
    targets = accelerator.reduce(targets, "sum").clamp(min=1)
    total = torch.zeros((), device=accelerator.device)
    run.ddp.train()
    for i, batch in enumerate(window):
        last = i + 1 == len(window)
        with contextlib.nullcontext() if last else accelerator.no_sync(run.ddp):
            loss, _ = run.ddp(*batch.to(accelerator.device, run.processor), settings.label_smoothing)
            accelerator.backward(loss * accelerator.num_processes / targets)  # DDP averages over the processes
        total += loss.detach()
    grad_norm = accelerator.clip_grad_norm_(run.ddp.parameters(), settings.max_grad_norm or math.inf)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    run.skips.step(run.optimizer, grad_norm)  # unless the gradient is not finite
    run.optimizer.zero_grad()
    if run.average:
        run.average.update(run.model, run.progress.step + 1)
    return Step(total, targets, grad_norm)


def learning_rate(step: int, total_steps: int, settings: OptimisationSettings) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then the schedule's decay to 0."""
    peak = float(settings.learning_rate or 0)
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    decay = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return peak * decay[settings.lr_schedule]


def epoch(run: Run) -> DataLoader[Batch]:
    """What is left of the current epoch: this process's batches. The workers are those of the epoch before."""
    accelerator, train_set = run.accelerator, run.train_set
    order = epoch_order(len(train_set), run.config.optimisation.seed, run.progress.epoch)
    rank, world = accelerator.process_index, accelerator.num_processes
    run.batches[:] = epoch_batches(order, run.config.loading.batch_size, rank, world)
    if run.loader is None:
        wait_for_checkpoint(run)  # of a validation that was due
        run.loader = loader(train_set, run.batches, run.num_workers, accelerator.device.type == "cuda", lasting=True)
    del run.batches[: run.progress.batches]
    train_set.epoch = run.progress.epoch
    return run.loader


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of one optimizer step at a time; the epoch's last step may have fewer."""
    window: list[Batch] = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


# ------------------------------------------------------------------------------ before, between and after the steps


def begin(run: Run, stop: Stop) -> RunLog:
    """Resume, make the feature cache where it is wanted, open the log."""
    config, accelerator = run.config, run.accelerator
    accelerator.print(f"{run.total_steps} steps, {run.steps_per_epoch} an epoch, {run.images_per_step} images a step")
    run.progress = Progress(world=accelerator.num_processes, tracker_id=secrets.token_hex(4))
    if config.run.resume:
        run.progress = resume(run)
    if config.model.freeze_vision and config.model.feature_cache_gb and run.total_steps > run.steps_per_epoch:
        run.train_set.features = cache_features(run, stop.here)
    if config.regularisation.augment and accelerator.is_main_process:
        show_augmentation(run, run.folder / "augmented.png")
    if accelerator.is_main_process:
        run.meter, run.co2_before = co2_meter(config.run.country), run.progress.co2_kg
        run.saving_seconds = 3 * 4 * sum(p.numel() for p in run.model.parameters()) / 2e8  # at first, as at 200 MB/s
    run.begun = time.perf_counter() - run.progress.seconds
    run.stopped = stop.asked(0)
    return RunLog(run)


def report(
    run: Run, log: RunLog, bad_images: BadImages, window: list[Batch], grad_norm: Tensor, lr: float, end_of_epoch: bool
) -> None:
    """The log's line when it is due. Raises TrainingError for too many bad images, and when no step helps."""
    progress = run.progress
    to_log = progress.step % run.config.run.logging_steps == 0 or run.finished
    bad = bad_images.count() if to_log or end_of_epoch else 0
    if to_log:
        progress.skipped += run.skips.take()
        log.training(lr, grad_norm, bad)
    if end_of_epoch:
        bad_images.close_epoch()
    if progress.step % SKIPS_IN_A_ROW == 0 and run.skips.in_a_row() >= SKIPS_IN_A_ROW:
        images = ", ".join(image_id for batch in window for image_id in batch.image_ids)
        raise TrainingError(
            f"the gradient was not finite in {SKIPS_IN_A_ROW} steps in a row, lastly at step "
            f"{progress.step} on the images "
            f"{images}. Lower --learning_rate, or use --mixed_precision no. Checkpoints and best/ are from before."
        )


def validate_and_save(run: Run, log: RunLog, stop: Stop, end_of_epoch: bool, began: float) -> None:
    """Validate and save when it is due, or save and stop when that was asked for."""
    every, progress = run.config.run, run.progress
    due = progress.step % every.eval_every == 0 if every.eval_every else end_of_epoch
    progress.validation_due = due or run.finished
    run.stopped = stop.asked(2 * (time.perf_counter() - began + run.saving_seconds))
    if progress.validation_due and not run.stopped:
        evaluate_and_keep_best(run, log, stop)
        run.stopped = stop.asked(2 * run.saving_seconds)
    save_now = every.save_every and progress.step % every.save_every == 0
    if save_now or due or end_of_epoch or run.finished or run.stopped:
        save(run, log)


def evaluate_and_keep_best(run: Run, log: RunLog, stop: Stop) -> None:
    """Validate; keep the best. If asked to stop meanwhile, leave it due."""
    wait_for_checkpoint(run)  # from an epoch ago
    found = validate(run, lambda: stop.asked(2 * run.saving_seconds))
    if found is None:
        return
    run.evaluation = found.numbers
    progress, metric, evaluation = run.progress, best_metric(run), run.evaluation
    bleu, cider, loss = evaluation["val_bleu"], evaluation["val_cider"], evaluation["val_loss"]
    if metric == "loss" and progress.best_step and progress.best_loss == math.inf:  # a score chose it before --resume
        progress.best_loss = read_best(run.folder / "best").get("val_loss", math.inf)
    better = {
        "sacrebleu": bleu > progress.best_bleu,
        "cider": cider > progress.best_cider,
        "loss": loss < progress.best_loss,
    }
    improved = better[metric] or not progress.best_step
    progress.not_better = 0 if improved else progress.not_better + 1
    if improved and run.accelerator.is_main_process:
        why = {"step": progress.step, "chosen_by": metric, **evaluation}
        improved = on_disk("best/", lambda: save_best(run.folder, run.shown, run.processor, why))
    if improved:
        progress.best_bleu, progress.best_cider, progress.best_step = bleu, cider, progress.step
        if metric == "loss":  # a loss that is no number is beaten by any
            progress.best_loss = loss if math.isfinite(loss) else sys.float_info.max
    progress.validation_due = False
    log.evaluation(found, improved)


def best_metric(run: Run) -> str:
    """What chooses the best: as asked for, else sacreBLEU; of few images the loss, which says more than a score, as it
    is a mean over tokens. Not in a run that began with a version that did not know this."""
    if run.config.run.best_metric != "auto":
        return run.config.run.best_metric
    began_by_score = run.progress.best_step and run.progress.best_loss == math.inf
    return "loss" if len(run.data.splits["validation"]) < FEW and not began_by_score else "sacrebleu"


def save(run: Run, log: RunLog) -> None:
    """A checkpoint of the run as it stands."""
    wait_for_checkpoint(run)  # there is memory on the host for one
    progress = run.progress
    progress.skipped += run.skips.take()  # waits for a GPU
    progress.seconds = time.perf_counter() - run.begun
    progress.co2_kg = run.co2_before + (run.meter.flush() or 0.0 if run.meter else 0.0)
    progress.logged_loss = run.accelerator.reduce(log.loss, "sum").item()
    progress.logged_targets = int(log.targets)
    save_checkpoint(run)


def close(run: Run, log: RunLog, lock: Any) -> dict[str, Any]:
    """The last words of a run. Raises TrainingError if its last checkpoint is not on disk, Stopped if it
    was stopped."""
    wait_for_checkpoint(run)
    progress, main = run.progress, run.accelerator.is_main_process
    said = of_log(read_metrics(run.folder)) if main else []
    log.close(said)
    if main and not run.saved:
        raise TrainingError(f"the last checkpoint could not be written; the last good one: {newest(run.folder)}")
    if run.meter:
        run.meter.stop()
    if lock:
        on_disk("README.md", lambda: write_text(run.folder / "README.md", model_card(run.folder, said)))
        for line in say(said):
            run.accelerator.print(line)
        lock.close()
    if run.stopped and (not run.finished or progress.validation_due):
        run.accelerator.print(
            f"stopped at step {progress.step} of {run.total_steps}{', saved' * (progress.step > 0)}; --resume goes on"
        )
        raise Stopped(run.stopped)
    metric, patience = best_metric(run), run.config.regularisation.patience
    score = f"sacreBLEU {progress.best_bleu:.2f}, CIDEr {progress.best_cider:.3f}"
    score += f" (chosen by its loss, {progress.best_loss:.4f})" if metric == "loss" else f" (chosen by {metric})"
    if progress.step < run.total_steps and not run.stopped:
        run.accelerator.print(f"stopped early: no better one in {patience} validations (--patience)")
    run.accelerator.print(
        f"done in {progress.seconds:.0f} s: best validation {score} at step {progress.best_step}, "
        f"in {run.folder / 'best'}"
    )
    names = ("best", "metrics.jsonl", "config.json", "README.md")
    run.accelerator.print(f"written: {', '.join(str(run.folder / name) for name in names)}")
    run.accelerator.print(f"next: {command('evaluate')} --run {shlex.quote(str(run.folder))}")
    return {**run.evaluation, "best_bleu": progress.best_bleu, "best_step": progress.best_step}
