"""What a run needs before its first step: devices, data, model, optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, set_seed

from blip_lite.captioner import cores
from blip_lite.data.augment import sheet
from blip_lite.data.batches import Captions, epoch_batches, workers_by_cores, workers_that_fit
from blip_lite.data.dataset import DataSet
from blip_lite.data.load import load_data
from blip_lite.data.look import first_look, first_look_page, refuse_what_is_no_caption
from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.evaluation.captions import decoding
from blip_lite.model.blip import Blip, avoid_cudnn_attention
from blip_lite.model.flops import bfloat16_slower
from blip_lite.model.from_scratch import from_scratch
from blip_lite.model.pretrained import load_pretrained, resize
from blip_lite.model.quantize import need_compiler
from blip_lite.processing.processor import Processor
from blip_lite.processing.text import normalize_caption
from blip_lite.settings import (
    FROM_SCRATCH,
    LoadingSettings,
    TrainConfig,
    did_you_mean,
)
from blip_lite.storage import newest
from blip_lite.training.checkpoint import on_disk
from blip_lite.training.optimizer import build_optimizer
from blip_lite.training.run import Average, Run, Skips

# How long processes wait for one that works alone, on a download or a save; NCCL's own limit is ten minutes.
LONGEST_ALONE = timedelta(hours=24)


def start(config: TrainConfig) -> Accelerator:
    """Devices, precision and processes; random seeds."""
    for tracker in config.run.dashboards():
        if importlib.util.find_spec(tracker) is None:
            extra = "train" if tracker == "wandb" else tracker
            raise ConfigError(f"--log_with {tracker}: it is not installed; pip install 'blip_lite[{extra}]'")
    if config.run.country and importlib.util.find_spec("codecarbon") is None:
        raise ConfigError("--country: codecarbon is not installed; pip install 'blip_lite[energy]'")
    if os.environ.get("LOCAL_RANK") and not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        raise ConfigError(
            "LOCAL_RANK is set without RANK and WORLD_SIZE, left over by another program: unset LOCAL_RANK"
        )
    accelerator = Accelerator(
        mixed_precision=pick_precision(config.model.mixed_precision),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=LONGEST_ALONE),
            # Gradients live where they are sent from: one copy less in memory (0.9 GB at base size), the same numbers.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    if (
        accelerator.device.type == "cuda"
        and config.model.mixed_precision == "auto"
        and accelerator.mixed_precision == "no"
    ):
        accelerator.print(
            "float32, as `accelerate launch` says (its default without a config file): --mixed_precision bf16 is faster"
        )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"the launch file asks for {accelerator.distributed_type.value}; this loop is data-parallel only: base and "
            "large BLIP (0.2 and 0.5 billion parameters) fit any GPU whole. Use accelerate_configs/multi_gpu.yaml"
        )
    avoid_cudnn_attention(accelerator.device)
    accelerator.gradient_accumulation_steps = 1  # else `backward` would divide the loss once more
    use_all_cores(accelerator)
    set_seed(config.optimisation.seed)
    return accelerator


def co2_meter(country: str | None) -> Any:
    """codecarbon, started, if `country` is set."""
    if not country:
        return None
    from codecarbon import OfflineEmissionsTracker

    meter = OfflineEmissionsTracker(
        country_iso_code=country, save_to_file=False, log_level="error", allow_multiple_runs=True
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
    return {
        "device": name,
        "processes": accelerator.num_processes,
        "precision": precision(accelerator),
        "board_power_watts": watts,
    }


def prepare(config: TrainConfig, accelerator: Accelerator, needed: Sequence[str] = ("train", "validation")) -> Run:
    """Data, model and optimizer; says what was found. The splits `needed` must have images. Raises ConfigError,
    DataError, CheckpointError."""
    with accelerator.main_process_first():  # downloads and caches are made once
        data = load_data(config.data, config.optimisation.seed, needed)
    for note in data.notes:
        accelerator.print(f"{data.name}: {note}")
    sizes = ", ".join(f"{split} {len(pictures)} images" for split, pictures in data.splits.items())
    accelerator.print(f"{data.name}: {sizes}")
    if config.run.best_metric == "cider" and len(data.splits["validation"]) == 1 and not config.run.resume:
        raise ConfigError(
            "--best_metric cider: there is one validation image, and CIDEr of one image is always 0, as it weighs "
            "words by the images that have them. --best_metric loss can tell"
        )
    accelerator.print(f"{config.model.model}: loading the model")
    model, processor = build_model(config, data)
    for line in first_look(data, processor, config.optimisation):
        accelerator.print(f"{data.name}: {line}")
    if not config.data.caption_column:
        refuse_what_is_no_caption(data)
    generation = decoding(config.decoding, model, processor)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    accelerator.print(f"{config.model.model}: {size:.1f}M parameters, {accelerator.device}, {precision(accelerator)}")
    # The model is on the CPU still.
    on_cpu = accelerator.device.type == "cpu"
    if on_cpu and accelerator.mixed_precision == "bf16" and (slower := bfloat16_slower(model, "--mixed_precision no")):
        accelerator.print(slower)
    optimisation, batch_size = config.optimisation, config.loading.batch_size
    train_set = Captions(data.splits["train"], processor, config.decoding.prompt, optimisation.max_length)
    train_set.captions_per_image, train_set.seed = optimisation.captions_per_image, optimisation.seed
    train_set.augment = config.regularisation.augment
    train_set.parallel_prediction = optimisation.parallel_prediction or 0.0
    train_set.multiple = 8 if config.model.compile else 1  # few lengths, as each is compiled for itself
    say_workers(config.loading, train_set.image_bytes, accelerator)

    # The learning rate is set at each step by `learning_rate`: nothing else is scheduled.
    model.to(accelerator.device)
    average = Average(model, config.regularisation.ema) if config.regularisation.ema else None
    muon_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32  # float16 has no range
    optimizer = build_optimizer(model, optimisation, config.regularisation, muon_dtype)
    ddp, optimizer = accelerator.prepare(model, optimizer)
    rank, world = accelerator.process_index, accelerator.num_processes
    per_epoch = len(epoch_batches(range(len(train_set)), batch_size, rank, world))
    steps_per_epoch = math.ceil(per_epoch / int(optimisation.gradient_accumulation_steps or 1))
    total_steps = optimisation.max_steps or steps_per_epoch * int(optimisation.epochs or 0)
    return Run(
        config, accelerator, data, train_set, model, ddp, optimizer, Skips(accelerator), generation,
        per_epoch, steps_per_epoch, total_steps, average,
    )  # fmt: skip


def say_workers(loading: LoadingSettings, image_bytes: int, accelerator: Accelerator) -> None:
    """Say how many workers decode images."""
    asked = workers_by_cores() if loading.num_workers is None else loading.num_workers
    if (workers := workers_that_fit(asked, loading.batch_size, image_bytes)) < asked:
        accelerator.print(
            f"/dev/shm has room for the batches of {workers} of {asked} workers, so no more are used; "
            "`docker run --shm-size 2g` gives more"
        )
    elif loading.num_workers is None:
        accelerator.print(f"{workers} workers decode images, for {cores()} CPU cores (--num_workers)")


def show_augmentation(run: Run, path: Path) -> None:
    """Write a picture of what `--augment` makes of the first training images."""
    examples, seed = run.data.splits["train"], run.config.optimisation.seed
    if on_disk(str(path), lambda: sheet(examples, run.processor.image_size, seed, path)):
        run.accelerator.print(f"what --augment makes of the first images: {path}")


def show_first_look(run: Run, path: Path) -> None:
    """Write some pictures of each split with their captions as a page."""
    notes = [*run.data.notes, *first_look(run.data, run.processor, run.config.optimisation)]

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(first_look_page(run.data, notes), "utf-8", "backslashreplace")

    if on_disk(str(path), write):
        run.accelerator.print(f"some pictures of each split: {path}")


def precision(accelerator: Accelerator) -> str:
    """What is computed in."""
    name = accelerator.mixed_precision
    return {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(name, name)


def pick_precision(mixed_precision: str) -> str | None:
    """What to tell Accelerate; None leaves it to `accelerate launch`, which has said it in the environment."""
    if mixed_precision != "auto":
        return mixed_precision
    if (given := os.environ.get("ACCELERATE_MIXED_PRECISION")) is not None:
        if given not in ("no", "bf16", "fp16"):
            raise ConfigError(f"ACCELERATE_MIXED_PRECISION={given}: this loop knows no, bf16 and fp16")
        return None
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def use_all_cores(accelerator: Accelerator) -> None:
    """`accelerate launch` without a config file gives a process one thread, which halves the speed of a CPU run."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION") is not None
    if (
        launched
        and accelerator.device.type == "cpu"
        and accelerator.num_processes == 1
        and torch.get_num_threads() == 1 < cores()
    ):
        torch.set_num_threads(cores())
        accelerator.print(f"using {cores()} CPU threads instead of the one that `accelerate launch` set")


def build_model(config: TrainConfig, data: DataSet) -> tuple[Blip, Processor]:
    """The model to train, in float32, with checkpointing and freezing as configured."""
    # A resumed run takes its model, and the vocabulary of one from nothing, from its own checkpoint.
    saved = newest(Path(str(config.run.output_dir)), lambda _: None) if config.run.resume else None
    saved = Path(config.run.resume_from) if config.run.resume_from else saved
    if config.model.model in FROM_SCRATCH and not saved:
        longest = config.optimisation.max_words
        captions = [normalize_caption(c, longest) for example in data.splits["train"] for c in example.captions]
        model, processor = from_scratch(config.model.model, captions, config.optimisation.seed)
    else:
        try:
            model, processor = load_pretrained(saved or config.model.model)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{did_you_mean(config.model.model, FROM_SCRATCH)}") from error
    if config.optimisation.max_length > model.config.text.max_position_embeddings:
        raise ConfigError(
            f"--max_length {config.optimisation.max_length}: the model has "
            f"{model.config.text.max_position_embeddings} positions"
        )
    if len(processor.prompt_ids(config.decoding.prompt)) + 2 > config.optimisation.max_length:
        raise ConfigError(
            f"--prompt leaves no room for a caption within --max_length {config.optimisation.max_length} tokens"
        )
    if config.model.image_size:
        resize(model, processor, config.model.image_size)
    if config.regularisation.dropout is not None:
        model.set_dropout(config.regularisation.dropout)
    if config.optimisation.parallel_prediction:
        _ = processor.mask_token_id  # refused here, not in a worker
    processor.max_words = config.optimisation.max_words
    decoding = dataclasses.asdict(config.decoding)  # travels with every checkpoint
    processor.prompt, processor.decoding = decoding.pop("prompt"), decoding
    model.gradient_checkpointing = bool(config.model.gradient_checkpointing)
    if config.model.compile:
        need_compiler("--compile")
        model.compiled = True
    if config.model.freeze_vision:
        model.freeze_vision()
    return model, processor
