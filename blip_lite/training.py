"""The loop. `train` reads from top to bottom: settings, data, model, optimizer, resume, then for each epoch and
each step: fetch, count targets, forward and backward, check, update, log, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from tqdm import tqdm

import blip_lite
from blip_lite import checkpoint, metrics
from blip_lite.captioner import Captioner
from blip_lite.config import FROM_SCRATCH, ConfigError, TrainConfig, read_run_config
from blip_lite.data import (
    Batch,
    Captions,
    DataError,
    DataSet,
    Example,
    epoch_batches,
    epoch_order,
    load_data,
    loader,
)
from blip_lite.evaluation import caption_batch, decoding, gather_captions
from blip_lite.features import cache_features
from blip_lite.generation import GenerationSettings
from blip_lite.model import Blip
from blip_lite.pretrained import from_scratch, load_pretrained
from blip_lite.processing import Processor, normalize_caption

SKIPS_IN_A_ROW = 10  # updates with a non-finite gradient, after which a run is beyond help


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and where the last good weights are."""


@dataclasses.dataclass
class Progress:
    """Where a run is. Saved with each checkpoint; the order of images is a function of (seed, epoch), so this,
    the weights, AdamW's moments and the random states are all there is to resume."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # the current epoch, from 0
    batches: int = 0  # forward passes done in it, by each process
    best_bleu: float = -1.0
    best_step: int = 0
    skipped: int = 0  # updates left out because the gradient was not finite
    seconds: float = 0.0  # of all segments of the run
    world: int = 1  # processes


def train(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune and write everything into `config.output_dir`.

    Returns:
        The last validation's numbers, with `best_bleu` and `best_step`.

    Raises:
        ConfigError, DataError, CheckpointError: before any long work.
        TrainingError: the loss stays non-finite.
    """
    config = config.resolved()
    config.validate()
    accelerator = start(config)
    say = accelerator.print
    run = Path(str(config.output_dir))
    check_output(run, config)
    data, model, train_set = load(config, accelerator)
    processor = train_set.processor
    settings = decoding(config, model, processor)
    if accelerator.is_main_process:
        open_run(run, config, data, model)
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

    progress = Progress(world=world)
    if config.resume:
        progress = resume(run, model, optimizer, accelerator)
    if config.freeze_vision and config.feature_cache_gb and total_steps > steps_per_epoch:
        train_set.features = cache_features(
            run / "features", config.feature_cache_gb, model, train_set, config.batch_size, workers, accelerator
        )
    log = RunLog(run, config, accelerator, progress)
    bar = tqdm(
        total=total_steps,
        initial=progress.step,
        unit="step",
        disable=not (accelerator.is_main_process and sys.stderr.isatty()),
    )
    started = time.perf_counter() - progress.seconds
    bad_images: set[str] = set()
    skips_in_a_row = 0
    evaluation: dict[str, Any] = {}

    while progress.step < total_steps:
        order = epoch_order(len(train_set), config.seed, progress.epoch)
        mine = epoch_batches(order, config.batch_size, rank, world)[progress.batches :]
        batches = loader(train_set, mine, workers, pin_memory=accelerator.device.type == "cuda")
        for window in windows(batches, accumulation):
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
            if accelerator.scaler or torch.isfinite(grad_norm):  # fp16's scaler must see the overflow to react
                optimizer.step()
            skipped = accelerator.optimizer_step_was_skipped if accelerator.scaler else not torch.isfinite(grad_norm)
            optimizer.zero_grad()
            progress.step += 1
            progress.batches += len(window)
            progress.skipped += skipped
            skips_in_a_row = skips_in_a_row + 1 if skipped else 0
            if skips_in_a_row == SKIPS_IN_A_ROW:
                raise not_finite(window, progress.step)
            report_bad_images(window, bad_images, len(train_set) / world, config)

            bar.update()
            end_of_epoch, finished = progress.batches >= per_epoch, progress.step >= total_steps
            if end_of_epoch:
                progress.epoch, progress.batches = progress.epoch + 1, 0
            progress.seconds = time.perf_counter() - started
            if progress.step % config.logging_steps == 0 or finished:
                log.training(progress, optimizer.param_groups[0]["lr"], grad_norm, per_epoch, len(bad_images))

            due = progress.step % config.eval_every == 0 if config.eval_every else end_of_epoch
            if due or finished:
                evaluation = validate(ddp, processor, data.splits["validation"], config, settings, accelerator)
                improved = evaluation["val_bleu"] > progress.best_bleu
                if improved:
                    progress.best_bleu, progress.best_step = evaluation["val_bleu"], progress.step
                    if accelerator.is_main_process:
                        checkpoint.save_best(run, model, processor, {"step": progress.step, **evaluation})
                log.evaluation(progress, evaluation, improved, per_epoch)
            save_now = config.save_every and progress.step % config.save_every == 0
            if save_now or due or end_of_epoch or finished:
                save(run, model, processor, optimizer, progress, config, accelerator)
            if finished:
                break

    bar.close()
    log.close()
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
    tracker = None if config.log_with == "none" else config.log_with
    if tracker and importlib.util.find_spec(tracker) is None:
        raise ConfigError(f"--log_with {tracker}: it is not installed; pip install {tracker}")
    accelerator = Accelerator(mixed_precision=pick_precision(config), log_with=tracker, project_dir=config.output_dir)
    if accelerator.device.type == "cuda" and config.mixed_precision == "auto" and accelerator.mixed_precision == "no":
        accelerator.print(
            "float32, as `accelerate launch` says (its default without a config file): --mixed_precision bf16 is faster"
        )
    accelerator.gradient_accumulation_steps = 1  # else `backward` would divide the loss once more
    use_all_cores(accelerator)
    set_seed(config.seed)
    return accelerator


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
    return data, model, Captions(data.splits["train"], processor, config.prompt, config.max_length)


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


def not_finite(window: list[Batch], step: int) -> TrainingError:
    images = ", ".join(image_id for batch in window for image_id in batch.image_ids)
    return TrainingError(
        f"the gradient was not finite in {SKIPS_IN_A_ROW} steps in a row, lastly at step {step} on the images {images}. "
        "Lower --learning_rate, or use --mixed_precision no. Checkpoints and best/ are from before."
    )


def report_bad_images(window: list[Batch], known: set[str], num_images: float, config: TrainConfig) -> None:
    """Name images that could not be decoded, once each. Raises DataError when they are too many for this process's
    share, `num_images`, of the images."""
    for image_id, reason in ((i, r) for batch in window for i, r in batch.bad.items()):
        if image_id not in known:
            known.add(image_id)
            tqdm.write(f"skipped, an image that cannot be decoded: {image_id}: {reason}", file=sys.stderr)
    if len(known) > config.max_bad_images * num_images:
        raise DataError(
            f"{len(known)} of {num_images:.0f} training images could not be decoded, more than --max_bad_images "
            f"{config.max_bad_images:g} allows; the last: {sorted(known)[-1]}. Repair or remove them, or raise the share."
        )


@torch.no_grad()
def validate(
    ddp: Any,
    processor: Processor,
    examples: list[Example],
    config: TrainConfig,
    settings: GenerationSettings,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Loss and sacreBLEU on the validation images, shared out among the processes.

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
    return {
        "val_loss": loss,
        "val_bleu": bleu["score"],
        "val_bleu_signature": bleu["signature"],
        "val_images": len(captions),
        "val_failed_images": len(failures),
        "val_commonest_caption": groups["commonest_caption"],
        "val_repetition": groups["repetition"],
        "val_seconds": time.perf_counter() - start,
    }


# ----------------------------------------------------------------------------------- the run's directory


# Settings that a resumed run must share with its beginning, for it to go on as the same run.
MUST_NOT_CHANGE = (
    "batch_size",
    "gradient_accumulation_steps",
    "seed",
    "freeze_vision",
    "prompt",
    "max_length",
    "model",
)


def check_output(run: Path, config: TrainConfig) -> None:
    """Raises ConfigError if the output directory holds another run, or something that is no run. Changes nothing."""
    if run.exists() and not run.is_dir():
        raise ConfigError(f"--output_dir {run} is a file")
    if not run.is_dir() or not any(run.iterdir()):
        return
    if not (config.resume or config.overwrite):
        holds = (run / "config.json").is_file()
        remedy = (
            "continue it with --resume, replace it with --overwrite, or choose another" if holds else "choose another"
        )
        raise ConfigError(f"--output_dir {run} {'holds a run' if holds else 'is not empty'}: {remedy}")
    before = read_run_config(run)  # never resume in, or delete, a directory that is no run of ours
    if config.resume and checkpoint.checkpoints(run):
        changed = {n: (getattr(before, n), getattr(config, n)) for n in MUST_NOT_CHANGE}
        if wrong := [f"{n} was {old!r}, is now {new!r}" for n, (old, new) in changed.items() if old != new]:
            raise ConfigError(f"--resume: {run} would become another run: {'; '.join(wrong)}")


def open_run(run: Path, config: TrainConfig, data: DataSet, model: Blip) -> None:
    """Make the output directory ours and write `config.json`: the settings, the data's fingerprint, the versions.

    Raises:
        ConfigError: the data are not those of the run that is resumed.
    """
    if config.overwrite and run.is_dir():
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.recover(run)
    settings = {
        n: v for n, v in dataclasses.asdict(config).items() if n not in ("resume", "overwrite", "sanity", "plan")
    }
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
        "versions": {"blip_lite": blip_lite.__version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }
    (run / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def save(
    run: Path,
    model: Blip,
    processor: Processor,
    optimizer: Any,
    progress: Progress,
    config: TrainConfig,
    accelerator: Accelerator,
) -> None:
    """Write a checkpoint: all that `resume` needs."""
    # torch's random states of every process; they only matter to models with dropout
    mine = {f"cpu.{accelerator.process_index}": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine[f"cuda.{accelerator.process_index}"] = torch.cuda.get_rng_state()
    random_states = {name: value for each in gather_object([mine]) for name, value in each.items()}
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        saved = {**dataclasses.asdict(progress), "scaler": scaler}
        checkpoint.save(run, progress.step, model, processor, optimizer, random_states, saved, config.save_total_limit)
    accelerator.wait_for_everyone()


def resume(run: Path, model: Blip, optimizer: Any, accelerator: Accelerator) -> Progress:
    """Load the run's newest intact checkpoint. Raises ConfigError if the number of processes has changed."""
    path = checkpoint.newest(run, accelerator.print)
    if path is None:
        accelerator.print(f"--resume: {run} has no checkpoint; starting afresh")
        return Progress(world=accelerator.num_processes)
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
    accelerator.print(f"resuming from {path}: step {progress.step}, epoch {progress.epoch + 1}")
    return progress


class RunLog:
    """`metrics.jsonl`, the printed lines and the dashboard: the same numbers in all three.

    A dashboard that fails is given up with one warning; training goes on.
    """

    def __init__(self, run: Path, config: TrainConfig, accelerator: Accelerator, progress: Progress) -> None:
        self.accelerator, self.dashboard = accelerator, config.log_with != "none"
        self.path = run / "metrics.jsonl"
        self.loss = torch.zeros((), device=accelerator.device)  # of this process, since the last line
        self.targets = torch.zeros((), device=accelerator.device)  # of all processes
        self.images, self.since, self.last_step = 0, time.perf_counter(), progress.step
        if accelerator.is_main_process:  # lines of steps that will be done again go
            lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
            if lines and not lines[-1].endswith("}"):
                lines.pop()  # half written, when the run was killed
            kept = [line for line in lines if json.loads(line)["step"] <= progress.step]
            self.path.write_text("".join(line + "\n" for line in kept), "utf-8")
        if self.dashboard:
            self._start(run, config)

    def _start(self, run: Path, config: TrainConfig) -> None:
        init: dict[str, Any] = {}
        try:
            if config.log_with == "wandb":
                import wandb

                init = {"name": config.run_name or run.name, "dir": str(run)}
                # Asked first, because wandb.init without a login shows a menu or raises.
                if self.accelerator.is_main_process and not os.environ.get("WANDB_MODE") and not _logged_in(wandb):
                    self.accelerator.print(
                        "W&B: no login or no network; the run is kept offline, `wandb sync` sends it"
                    )
                    init["mode"] = "offline"
            flat = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, (int, float, str, bool))}
            self.accelerator.init_trackers(config.project, config=flat, init_kwargs={"wandb": init})
        except Exception as error:  # whatever the dashboard's client raises
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.dashboard = False
        self.accelerator.print(
            f"warning: no dashboard from here on ({type(error).__name__}: {error}); metrics.jsonl goes on"
        )

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.dashboard:
            numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
            prefixed = {
                (k.replace("val_", "val/", 1) if k.startswith("val_") else f"train/{k}"): v for k, v in numbers.items()
            }
            try:
                self.accelerator.log(prefixed, step=step)
            except Exception as error:
                self._give_up(error)

    def training(self, progress: Progress, lr: float, grad_norm: Tensor, per_epoch: int, bad_images: int) -> None:
        """A line with the means since the last one."""
        seconds = time.perf_counter() - self.since
        loss = (self.accelerator.reduce(self.loss, "sum") / self.targets.clamp(min=1)).item()
        values = {
            "epoch": progress.epoch + progress.batches / per_epoch,
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": grad_norm.item() if torch.isfinite(grad_norm) else None,
            "images_per_second": self.images / seconds,
            "tokens_per_second": self.targets.item() / seconds,
            "seconds_per_step": seconds / max(1, progress.step - self.last_step),
            "memory_gb": peak_memory(self.accelerator.device) / 1e9,
            "skipped": progress.skipped,
            "bad_images": int(self.accelerator.reduce(torch.tensor(bad_images, device=self.loss.device), "sum")),
        }
        self._write(progress.step, values)
        self._say(
            f"step {progress.step}  epoch {values['epoch']:.2f}  loss {loss:.4f}  lr {lr:.2e}  {values['images_per_second']:.1f} images/s"
        )
        self.loss.zero_()
        self.targets.zero_()
        self.images, self.since, self.last_step = 0, time.perf_counter(), progress.step

    def evaluation(self, progress: Progress, values: dict[str, Any], improved: bool, per_epoch: int) -> None:
        """A line with validation's numbers."""
        self._write(progress.step, {"epoch": progress.epoch + progress.batches / per_epoch, **values})
        self._say(
            f"step {progress.step}  validation loss {values['val_loss']:.4f}  sacreBLEU {values['val_bleu']:.2f}"
            f"{'  (best so far)' if improved else ''}  {values['val_seconds']:.0f} s"
        )
        if values["val_commonest_caption"] > 0.5 and values["val_images"] > 4:
            self._say(
                f"warning: {values['val_commonest_caption']:.0%} of the validation captions are the same. Early in training from nothing "
                "this is normal; later it means a learning rate too high, or images that do not match their captions."
            )
        self.since += values["val_seconds"]  # not training

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(line)

    def close(self) -> None:
        if self.dashboard:
            try:
                self.accelerator.end_training()
            except Exception as error:
                self._give_up(error)


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # a key, but no network
        return False


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak, or on a CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
