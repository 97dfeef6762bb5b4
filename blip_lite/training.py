"""The loop. `train` reads from top to bottom: settings, data, model, optimizer, resume, then for each epoch and
each step: fetch, count targets, forward and backward, check, update, log, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, set_seed
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

import blip_lite
from blip_lite import checkpoint, metrics
from blip_lite.captioner import Captioner
from blip_lite.card import model_card
from blip_lite.config import FROM_SCRATCH, ConfigError, TrainConfig, read_run_config
from blip_lite.data import (
    Batch,
    Captions,
    DataError,
    DataSet,
    Example,
    epoch_batches,
    epoch_order,
    loader,
)
from blip_lite.evaluation import caption_batch, decoding, gather_captions
from blip_lite.features import cache_features
from blip_lite.generation import GenerationSettings
from blip_lite.model import Blip
from blip_lite.pretrained import CheckpointError, from_scratch, load_pretrained
from blip_lite.processing import Processor, normalize_caption
from blip_lite.runlog import RunLog
from blip_lite.sources import load_data

SKIPS_IN_A_ROW = 10  # updates with a non-finite gradient, after which a run is beyond help; looked at so often


SAMPLES = 16  # validation images whose captions are shown at each validation


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and where the last good weights are."""


class Stopped(Exception):
    """A signal or `--time_limit` ended the run early; it is saved. `number` is the signal's, or `TIME_UP`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {'--time_limit' if number == checkpoint.TIME_UP else f'signal {number}'}")
        self.number = number


@dataclasses.dataclass
class Progress:
    """Where a run is. Saved with each checkpoint; the order of images is a function of (seed, epoch), so this,
    the weights, AdamW's moments and the random states are all there is to resume."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # the current epoch, from 0
    batches: int = 0  # forward passes done in it, by each process
    best_bleu: float = -1.0
    best_step: int = 0
    validation_due: bool = False  # the run was stopped before or in the validation of this step
    skipped: int = 0  # updates left out because the gradient was not finite
    seconds: float = 0.0  # of all segments of the run
    world: int = 1  # processes
    co2_kg: float = 0.0  # of all segments, by codecarbon; 0: not measured
    tracker_id: str = ""  # of the run on W&B, which a resumed run continues
    logged_loss: float = 0.0  # sums since the last line of the log
    logged_targets: int = 0


def train(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune and write everything into `config.output_dir`.

    Returns:
        The last validation's numbers, with `best_bleu` and `best_step`.

    Raises:
        ConfigError, DataError, CheckpointError: before any long work.
        TrainingError: the loss stays non-finite, or the last checkpoint could not be written.
        Stopped: by a signal or `time_limit`; everything is saved.
    """
    config = config.resolved()
    config.validate()
    with checkpoint.Stop(config.time_limit) as stop:
        return fine_tune(config, stop)


def fine_tune(config: TrainConfig, stop: checkpoint.Stop) -> dict[str, Any]:
    """`train`, with settings that are complete, until it is done or `stop` is asked."""
    accelerator = start(config)
    say = accelerator.print
    run = Path(str(config.output_dir))
    check_output(run, config)
    data, model, train_set = load(config, accelerator)
    processor = train_set.processor
    settings = decoding(config, model, processor)
    locked = open_run(run, config, data, model, hardware(accelerator)) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()

    # Optimizer. Its learning rate is set at each step by `learning_rate`: nothing else is scheduled.
    model.to(accelerator.device)
    ddp, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    rank, world = accelerator.process_index, accelerator.num_processes
    accumulation, workers = int(config.gradient_accumulation_steps or 1), int(config.num_workers or 0)
    per_epoch = len(epoch_batches(range(len(train_set)), config.batch_size, rank, world))
    steps_per_epoch = math.ceil(per_epoch / accumulation)
    total_steps = config.max_steps or steps_per_epoch * int(config.epochs or 0)
    say(f"{total_steps} steps, {steps_per_epoch} an epoch, {config.batch_size * world * accumulation} images a step")

    progress = Progress(world=world, tracker_id=secrets.token_hex(4))
    if config.resume:
        progress = resume(run, model, optimizer, accelerator, config)
    if config.freeze_vision and config.feature_cache_gb and total_steps > steps_per_epoch:
        train_set.features = cache_features(
            run / "features",
            config.feature_cache_gb,
            model,
            train_set,
            config.batch_size,
            workers,
            accelerator,
            stop.here,
        )
    log = RunLog(run, config, accelerator, progress, total_steps)
    meter, co2_before = (co2_meter(config) if accelerator.is_main_process else None), progress.co2_kg
    started = time.perf_counter() - progress.seconds
    bad_images: set[str] = set()  # of this process, in this epoch
    named: set[str] = set()  # those already reported
    skips = Skips(accelerator)
    evaluation: dict[str, Any] = {}
    # Why the run stops; whether the last save worked, and how many seconds it took, at first as at 200 MB/s.
    stopped, saved, saving = stop.asked(0), True, 3 * 4 * sum(p.numel() for p in model.parameters()) / 2e8

    def evaluate_and_keep_best() -> None:
        """Validate; keep the best. If asked to stop meanwhile, leave it due."""
        nonlocal evaluation
        stopping = lambda: stop.asked(2 * saving)  # noqa: E731
        found = validate(ddp, processor, data.splits["validation"], config, settings, accelerator, stopping)
        if found is None:
            return
        evaluation, samples = found
        improved = evaluation["val_bleu"] > progress.best_bleu
        if improved and accelerator.is_main_process:
            why = {"step": progress.step, **evaluation}
            improved = on_disk("best/", lambda: checkpoint.save_best(run, model, processor, why))
        if improved:
            progress.best_bleu, progress.best_step = evaluation["val_bleu"], progress.step
        progress.validation_due = False
        log.evaluation(progress, evaluation, samples, improved, per_epoch)

    def save() -> None:
        nonlocal saved, saving
        begun = time.perf_counter()
        progress.skipped += skips.take()
        progress.seconds = begun - started
        progress.co2_kg = co2_before + (meter.flush() or 0.0 if meter else 0.0)
        progress.logged_loss = accelerator.reduce(log.loss, "sum").item()
        progress.logged_targets = int(log.targets)
        saved = save_checkpoint(run, model, processor, optimizer, progress, config, accelerator)
        saving = time.perf_counter() - begun

    if progress.validation_due and not stopped:
        evaluate_and_keep_best()
        stopped = stop.asked(0) if progress.validation_due else 0
        save()
    while progress.step < total_steps and not stopped:
        order = epoch_order(len(train_set), config.seed, progress.epoch)
        mine = epoch_batches(order, config.batch_size, rank, world)[progress.batches :]
        train_set.epoch = progress.epoch
        batches = loader(train_set, mine, workers, pin_memory=accelerator.device.type == "cuda")
        for window in log.waits(windows(batches, accumulation)):
            begun = time.perf_counter()
            # The loss is the mean over every target token of the effective batch, so count them first: over
            # all micro-batches, and all processes.
            targets = torch.tensor(sum(batch.num_targets() for batch in window), device=accelerator.device)
            targets = accelerator.reduce(targets, "sum").clamp(min=1)
            ddp.train()
            for i, batch in enumerate(window):
                last = i + 1 == len(window)
                with contextlib.nullcontext() if last else accelerator.no_sync(ddp):
                    loss, _ = ddp(*batch.to(accelerator.device), config.label_smoothing)
                    accelerator.backward(loss * world / targets)  # world: DDP averages over the processes
                log.loss += loss.detach()
            log.targets += targets
            log.images += sum(len(batch.image_ids) for batch in window) * world

            grad_norm = accelerator.clip_grad_norm_(ddp.parameters(), config.max_grad_norm or math.inf)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress.step, total_steps, config)
            skips.step(optimizer, grad_norm)
            optimizer.zero_grad()
            log.bar.update()
            progress.step += 1
            progress.batches += len(window)
            report_bad_images(window, bad_images, named)

            end_of_epoch, finished = progress.batches >= per_epoch, progress.step >= total_steps
            if end_of_epoch:
                progress.epoch, progress.batches = progress.epoch + 1, 0
            to_log = progress.step % config.logging_steps == 0 or finished
            bad = count_bad_images(bad_images, len(train_set), config, accelerator) if to_log or end_of_epoch else 0
            if to_log:
                progress.skipped += skips.take()
                log.training(progress, optimizer.param_groups[0]["lr"], grad_norm, per_epoch, bad)
            if end_of_epoch:
                list_bad_images(bad_images, progress.epoch)
                bad_images.clear()
            if progress.step % SKIPS_IN_A_ROW == 0 and skips.in_a_row() >= SKIPS_IN_A_ROW:
                raise not_finite(window, progress.step)

            due = progress.step % config.eval_every == 0 if config.eval_every else end_of_epoch
            progress.validation_due = due or finished
            stopped = stop.asked(2 * (time.perf_counter() - begun + saving))
            if progress.validation_due and not stopped:
                evaluate_and_keep_best()
                stopped = stop.asked(2 * saving)
            save_now = config.save_every and progress.step % config.save_every == 0
            if save_now or due or end_of_epoch or finished or stopped:
                save()
            if finished or stopped:
                break

    log.close()
    if accelerator.is_main_process and not saved:
        raise TrainingError(f"the last checkpoint could not be written; the last good one: {checkpoint.newest(run)}")
    if meter:
        meter.stop()
    if locked:
        on_disk("README.md", lambda: checkpoint.write_text(run / "README.md", model_card(run)))
        locked.close()
    if stopped and (progress.step < total_steps or progress.validation_due):
        say(f"stopped at step {progress.step} of {total_steps}{', saved' * (progress.step > 0)}; --resume goes on")
        raise Stopped(stopped)
    say(
        f"done in {progress.seconds:.0f} s: best validation sacreBLEU {progress.best_bleu:.2f} at step {progress.best_step}, in {run / 'best'}"
    )
    return {**evaluation, "best_bleu": progress.best_bleu, "best_step": progress.best_step}


# ------------------------------------------------------------------------------- what the loop is made of


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then the schedule's decay to 0."""
    peak = float(config.learning_rate or 0)
    warmup = round(config.warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    decay = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return peak * decay[config.lr_schedule]


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


def start(config: TrainConfig) -> Accelerator:
    """Devices, precision and processes; random seeds."""
    for tracker in config.dashboards():
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"--log_with {tracker}: it is not installed; pip install {tracker}")
    if config.country and importlib.util.find_spec("codecarbon") is None:
        raise ConfigError("--country: codecarbon is not installed; pip install codecarbon")
    accelerator = Accelerator(
        mixed_precision=pick_precision(config), log_with=config.dashboards() or None, project_dir=config.output_dir
    )
    if accelerator.device.type == "cuda" and config.mixed_precision == "auto" and accelerator.mixed_precision == "no":
        accelerator.print(
            "float32, as `accelerate launch` says (its default without a config file): --mixed_precision bf16 is faster"
        )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"the launch file asks for {accelerator.distributed_type.value}; this loop is data-parallel only: base and "
            "large BLIP (0.2 and 0.5 billion parameters) fit any GPU whole. Use accelerate_configs/multi_gpu.yaml"
        )
    accelerator.gradient_accumulation_steps = 1  # else `backward` would divide the loss once more
    use_all_cores(accelerator)
    set_seed(config.seed)
    return accelerator


def co2_meter(config: TrainConfig) -> Any:
    """codecarbon, started, if `country` is set."""
    if not config.country:
        return None
    from codecarbon import OfflineEmissionsTracker

    meter = OfflineEmissionsTracker(
        country_iso_code=config.country, save_to_file=False, log_level="error", allow_multiple_runs=True
    )
    meter.start()
    return meter


def hardware(accelerator: Accelerator) -> dict[str, Any]:
    """What the run runs on. `board_power_watts`: what a GPU may draw at most, by nvidia-smi; None if not known."""
    name, watts = platform.processor() or platform.machine(), None
    with contextlib.suppress(OSError, IndexError):  # Linux
        name = Path("/proc/cpuinfo").read_text("utf-8").split("model name\t: ")[1].split("\n")[0]
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
        with contextlib.suppress(OSError, ValueError):
            query = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
            found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
            watts = float((found or [""])[0])
    return {"device": name, "processes": accelerator.num_processes, "board_power_watts": watts}


def load(config: TrainConfig, accelerator: Accelerator) -> tuple[DataSet, Blip, Captions]:
    """The data, the model, and the training images as the model takes them; says what was found."""
    with accelerator.main_process_first():  # downloads and caches are made once
        data = load_data(config)
    for note in data.notes:
        accelerator.print(f"{data.name}: {note}")
    sizes = ", ".join(f"{split} {len(examples)} images" for split, examples in data.splits.items())
    accelerator.print(f"{data.name}: {sizes}")
    model, processor = build_model(config, data)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    accelerator.print(
        f"{config.model}: {size:.1f}M parameters, {accelerator.device}, precision {accelerator.mixed_precision}"
    )
    train_set = Captions(data.splits["train"], processor, config.prompt, config.max_length)
    train_set.captions_per_image, train_set.seed = config.captions_per_image, config.seed
    return data, model, train_set


def pick_precision(config: TrainConfig) -> str | None:
    """What to tell Accelerate; None leaves it to `accelerate launch`, which has said it in the environment."""
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if os.environ.get("ACCELERATE_MIXED_PRECISION") is not None:
        return None
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def use_all_cores(accelerator: Accelerator) -> None:
    """`accelerate launch` without a config file gives a process one thread, which halves the speed of a CPU run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION") is not None
    if (
        launched
        and accelerator.device.type == "cpu"
        and accelerator.num_processes == 1
        and torch.get_num_threads() == 1 < cores
    ):
        torch.set_num_threads(cores)
        accelerator.print(f"using {cores} CPU threads instead of the one that `accelerate launch` set")


def build_model(config: TrainConfig, data: DataSet) -> tuple[Blip, Processor]:
    """The model to train, in float32, with checkpointing and freezing as configured."""
    # A resumed run takes its model, and the vocabulary of one from nothing, from its own checkpoint.
    saved = checkpoint.newest(Path(str(config.output_dir)), lambda _: None) if config.resume else None
    saved = Path(config.resume_from) if config.resume_from else saved
    if config.model in FROM_SCRATCH and not saved:
        captions = [normalize_caption(c) for example in data.splits["train"] for c in example.captions]
        model, processor = from_scratch(config.model, captions, config.seed)
    else:
        model, processor = load_pretrained(saved or config.model)
    if config.max_length > model.config.text.max_position_embeddings:
        raise ConfigError(
            f"--max_length {config.max_length}: the model has {model.config.text.max_position_embeddings} positions"
        )
    if len(processor.prompt_ids(config.prompt)) + 2 > config.max_length:
        raise ConfigError(f"--prompt leaves no room for a caption within --max_length {config.max_length} tokens")
    model.gradient_checkpointing = bool(config.gradient_checkpointing)
    if config.freeze_vision:
        model.freeze_vision()
    return model, processor


def build_optimizer(model: Blip, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and embeddings, none on biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=float(config.learning_rate or 0), betas=(0.9, 0.999), fused=True)


class Skips:
    """Leaves out an update whose gradient is not finite, and counts it, without waiting for the GPU."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count, self.row = torch.zeros(2, device=accelerator.device)

    def step(self, optimizer: Any, grad_norm: Tensor) -> None:
        """`optimizer.step()`, unless the gradient is not finite."""
        if self.accelerator.scaler:  # fp16: the scaler looks, and lowers its scale
            optimizer.step()
            bad = torch.tensor(float(self.accelerator.optimizer_step_was_skipped), device=self.count.device)
        else:  # the fused AdamW's own switch, made for scalers: nothing changes where `found_inf` is 1
            bad = (~torch.isfinite(grad_norm)).float()
            optimizer.optimizer.grad_scale, optimizer.optimizer.found_inf = None, bad
            optimizer.step()
        self.count = self.count + bad
        self.row = (self.row + 1) * bad

    def take(self) -> int:
        """How many since the last call."""
        count, self.count = int(self.count), torch.zeros_like(self.count)
        return count

    def in_a_row(self) -> int:
        return int(self.row)


def on_disk(what: str, write: Callable[[], object]) -> bool:
    """Write; a full or failing disk is a warning, not the end: what was there before is intact."""
    try:
        write()
        return True
    except (OSError, SafetensorError) as error:
        tqdm.write(f"warning: {what} could not be written ({error}); the next save tries again", file=sys.stderr)
        return False


def out_of_memory(config: TrainConfig) -> str:
    """What would fit, when the device's memory did not."""
    batch, accumulation = max(1, config.batch_size // 2), 2 * int(config.gradient_accumulation_steps or 1)
    advice = [f"--batch_size {batch} --gradient_accumulation_steps {accumulation} (the same effective batch)"]
    if not config.gradient_checkpointing:
        advice.insert(0, "--gradient_checkpointing")
    if config.mixed_precision == "no":
        advice.append("--mixed_precision bf16")
    return f"the device's memory is too small for these settings. Try {', or '.join(advice)}; --plan measures it first."


def not_finite(window: list[Batch], step: int) -> TrainingError:
    images = ", ".join(image_id for batch in window for image_id in batch.image_ids)
    return TrainingError(
        f"the gradient was not finite in {SKIPS_IN_A_ROW} steps in a row, lastly at step {step} on the images {images}. "
        "Lower --learning_rate, or use --mixed_precision no. Checkpoints and best/ are from before."
    )


def report_bad_images(window: list[Batch], bad: set[str], named: set[str]) -> None:
    """Collect images that could not be decoded; name each once a run."""
    for image_id, reason in ((i, r) for batch in window for i, r in batch.bad.items()):
        bad.add(image_id)
        if image_id not in named:
            named.add(image_id)
            tqdm.write(f"skipped, an image that cannot be decoded: {image_id}: {reason}", file=sys.stderr)


def count_bad_images(bad: set[str], num_images: int, config: TrainConfig, accelerator: Accelerator) -> int:
    """How many images all processes could not decode in this epoch. Raises DataError when they are too many."""
    count = int(accelerator.reduce(torch.tensor(len(bad), device=accelerator.device), "sum"))
    if count > config.max_bad_images * num_images:
        raise DataError(
            f"{count} of {num_images} training images could not be decoded, more than --max_bad_images "
            f"{config.max_bad_images:g} allows{f'; the last: {sorted(bad)[-1]}' if bad else ''}. Repair or remove them, or raise the share."
        )
    return count


def list_bad_images(known: set[str], epoch: int) -> None:
    """At the end of an epoch, once more, all that this process could not decode."""
    if known:
        names = ", ".join(sorted(known)[:20]) + (", ..." if len(known) > 20 else "")
        tqdm.write(f"epoch {epoch}: {len(known)} images could not be decoded: {names}", file=sys.stderr)


@torch.no_grad()
def validate(
    ddp: Any,
    processor: Processor,
    examples: list[Example],
    config: TrainConfig,
    settings: GenerationSettings,
    accelerator: Accelerator,
    stopping: Callable[[], int] = lambda: 0,
) -> tuple[dict[str, Any], list[tuple[Example, str]]] | None:
    """Loss and sacreBLEU on the validation images, shared out among the processes; and the first few with their
    captions. None if `stopping()` said so meanwhile.

    The captions are made from pixels alone: `caption_batch` has no argument for a reference.
    """
    start = time.perf_counter()
    model = accelerator.unwrap_model(ddp).eval()
    captioner = Captioner(model, processor)
    batches = epoch_batches(
        range(len(examples)), config.batch_size, accelerator.process_index, accelerator.num_processes
    )
    data = loader(
        Captions(examples, processor, config.prompt, config.max_length), batches, int(config.num_workers or 0)
    )
    sums = torch.zeros(2, device=accelerator.device)  # loss, targets (float32: Apple's GPUs have no float64)
    mine: list[tuple[str, str]] = []
    failed: dict[str, str] = {}
    for indices, batch in zip(batches, data, strict=True):
        failed |= batch.bad
        if stopping():
            return None
        with accelerator.autocast():
            loss, targets = model(*batch.to(accelerator.device))
            sums += torch.stack([loss.float(), targets.float()])
            mine += caption_batch(captioner, batch, indices, settings, config.prompt)
    loss_sum, num_targets = accelerator.reduce(sums, "sum").tolist()
    captions, failures = gather_captions(mine, failed, [e.image_id for e in examples])
    if not captions:
        raise DataError(f"no validation image could be decoded, e.g. {next(iter(failures.values()))}")
    bleu = metrics.sacrebleu(list(captions.values()), [e.captions for e in examples if e.image_id in captions])
    groups = metrics.failure_groups(list(captions.values()))
    loss = loss_sum / max(1, num_targets)
    evaluation = {
        "val_loss": loss,
        "val_bleu": bleu["score"],
        "val_bleu_signature": bleu["signature"],
        "val_images": len(captions),
        "val_failed_images": len(failures),
        "val_commonest_caption": groups["commonest_caption"],
        "val_repetition": groups["repetition"],
        "val_seconds": time.perf_counter() - start,
    }
    return evaluation, [(e, captions[e.image_id]) for e in examples if e.image_id in captions][:SAMPLES]


# ----------------------------------------------------------------------------------- the run's directory


# Settings that a resumed run must share with its beginning, for it to go on as the same run.
MUST_NOT_CHANGE = (
    "model",
    "batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "captions_per_image",
    "prompt",
    "seed",
    "freeze_vision",
    "mixed_precision",
    "learning_rate",
    "lr_schedule",
    "warmup_ratio",
    "weight_decay",
    "label_smoothing",
    "max_grad_norm",
)
FORGETTABLE = (
    "resume", "resume_from", "allow_config_change", "overwrite", "sanity", "audit", "plan", "time_limit",
)  # fmt: skip


def check_output(run: Path, config: TrainConfig) -> None:
    """Raises ConfigError if the output directory holds another run, or something that is no run, CheckpointError if
    `resume_from` is damaged. Changes nothing."""
    if run.exists() and not run.is_dir():
        raise ConfigError(f"--output_dir {run} is a file")
    if not run.is_dir() or not any(entry.name != ".lock" for entry in run.iterdir()):
        return
    if not (config.resume or config.overwrite):
        holds = (run / "config.json").is_file()
        remedy = (
            "continue it with --resume, replace it with --overwrite, or choose another" if holds else "choose another"
        )
        raise ConfigError(f"--output_dir {run} {'holds a run' if holds else 'is not empty'}: {remedy}")
    if config.resume_from and (damage := checkpoint.problem(Path(config.resume_from))):
        raise CheckpointError(f"--resume_from {config.resume_from}: {damage}")
    before = read_run_config(run)  # never resume in, or delete, a directory that is no run of ours
    if config.resume and checkpoint.checkpoints(run):
        changed = {n: (getattr(before, n), getattr(config, n)) for n in MUST_NOT_CHANGE}
        wrong = [f"{n} was {old!r}, is now {new!r}" for n, (old, new) in changed.items() if old != new]
        if wrong and (not config.allow_config_change or before.freeze_vision != config.freeze_vision):
            raise ConfigError(
                f"--resume: {run} would become another run: {'; '.join(wrong)}. --allow_config_change does it all the same (not for freeze_vision: other weights have moments)"
            )


def open_run(run: Path, config: TrainConfig, data: DataSet, model: Blip, machine: dict[str, Any]) -> TextIO | None:
    """Make the output directory ours, locked while the returned file is open, and write `config.json`: the settings, the data's fingerprint, the versions.

    Raises:
        ConfigError: the data are not those of the run that is resumed.
        CheckpointError: another process is writing into it.
    """
    run.mkdir(parents=True, exist_ok=True)
    locked = checkpoint.lock(run)
    if config.overwrite:
        for entry in run.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()
    checkpoint.recover(run)
    settings = {n: v for n, v in dataclasses.asdict(config).items() if n not in FORGETTABLE}
    if config.resume and checkpoint.checkpoints(run):
        before = json.loads((run / "config.json").read_text("utf-8"))
        if before["data_fingerprint"] != data.fingerprint():
            raise ConfigError(f"--resume: the data are not those that {run} began with (another fingerprint)")
        for name, value in settings.items():
            if before["settings"].get(name) != value:
                print(f"--resume: {name} was {before['settings'].get(name)!r}, is now {value!r}")
    content = {
        "settings": settings,
        "images": {split: len(examples) for split, examples in data.splits.items()},
        "data_fingerprint": data.fingerprint(),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "hardware": machine,
        "versions": versions(),
    }
    try:
        checkpoint.write_text(run / "config.json", json.dumps(content, indent=2) + "\n")
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


def save_checkpoint(
    run: Path,
    model: Blip,
    processor: Processor,
    optimizer: Any,
    progress: Progress,
    config: TrainConfig,
    accelerator: Accelerator,
) -> bool:
    """Write a checkpoint: all that `resume` needs. False, after a warning, if the disk did not take it."""
    # torch's random states of every process; they only matter to models with dropout
    mine = {f"cpu.{accelerator.process_index}": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine[f"cuda.{accelerator.process_index}"] = torch.cuda.get_rng_state()
    random_states = {name: value for each in gather_object([mine]) for name, value in each.items()}
    done = True
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        saved = {**dataclasses.asdict(progress), "scaler": scaler}
        done = on_disk(
            f"checkpoint-{progress.step:06d}",
            lambda: checkpoint.save(
                run, progress.step, model, processor, optimizer, random_states, saved, config.save_total_limit
            ),
        )
    accelerator.wait_for_everyone()
    return done


def resume(run: Path, model: Blip, optimizer: Any, accelerator: Accelerator, config: TrainConfig) -> Progress:
    """Load the run's newest intact checkpoint, or `resume_from`. Raises ConfigError if the number of processes has
    changed in the middle of an epoch."""
    chosen = [config.resume_from]
    if accelerator.is_main_process and not config.resume_from:  # it decides for all
        chosen = [str(checkpoint.newest(run) or "")]
    broadcast_object_list(chosen)
    if not chosen[0]:
        accelerator.print(f"--resume: {run} has no checkpoint; starting afresh")
        return Progress(world=accelerator.num_processes, tracker_id=secrets.token_hex(4))
    path = Path(chosen[0])
    if not path.is_dir():
        raise CheckpointError(f"{path} is not on this machine: --output_dir must be one that all machines share")
    saved, random_states = checkpoint.load(path, model, optimizer)
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
    best = run / "best" / "best.json"
    if best.is_file() and json.loads(best.read_text("utf-8"))["step"] > progress.step:
        progress.best_bleu, progress.best_step = -1.0, 0  # best/ is of a future that may not come again
    accelerator.wait_for_everyone()  # all have read
    if config.resume_from and accelerator.is_main_process:  # else the next --resume would find them
        for later in checkpoint.checkpoints(run):
            if checkpoint.step_of(later) > progress.step:
                shutil.rmtree(later)
    accelerator.print(f"resuming from {path}: step {progress.step}, epoch {progress.epoch + 1}")
    return progress
