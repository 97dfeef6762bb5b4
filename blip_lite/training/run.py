"""A run in memory: what the loop works on, and where it stands."""

from __future__ import annotations

import copy
import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from blip_lite.data.batches import Batch, Captions
from blip_lite.data.dataset import DataSet
from blip_lite.model.blip import Blip
from blip_lite.model.generation import GenerationSettings
from blip_lite.processing.processor import Processor
from blip_lite.processing.threads import Threads
from blip_lite.settings import TrainConfig


@dataclass
class Progress:
    """Where a run is. Saved with each checkpoint; the order of images is a function of (seed, epoch), so this,
    the weights, the optimizer's moments and the random states are all there is to resume."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # the current epoch, from 0
    batches: int = 0  # forward passes done in it, by each process
    best_bleu: float = -1.0
    best_step: int = 0
    best_loss: float = math.inf  # of validation, where it decides
    best_cider: float = -1.0
    not_better: int = 0  # validations in a row without a better one
    validation_due: bool = False  # the run was stopped before or in the validation of this step
    skipped: int = 0  # updates left out because the gradient was not finite
    seconds: float = 0.0  # of all segments of the run
    world: int = 1  # processes
    co2_kg: float = 0.0  # of all segments, by codecarbon; 0: not measured
    tracker_id: str = ""  # of the run on W&B, which a resumed run continues
    resumed: list[dict[str, Any]] = field(default_factory=list)  # of each segment but the first: step, when, changed
    logged_loss: float = 0.0  # sums since the last line of the log
    logged_targets: int = 0


class Skips:
    """Leaves out an update whose gradient is not finite, and counts it, without waiting for the GPU."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count, self.row = torch.zeros(2, device=accelerator.device)

    def step(self, optimizer: Any, grad_norm: Tensor) -> None:
        """`optimizer.step()`, unless the gradient is not finite."""
        bad = (~torch.isfinite(grad_norm)).float()
        # The fused AdamW's own switch: nothing changes where `found_inf` is 1. In fp16 the scaler sets it, and lowers
        # its scale; as it then leaves nothing out itself, Accelerate's `optimizer_step_was_skipped` is never true.
        if not self.accelerator.scaler:
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


class Average:
    """An exponential average of the weights (Polyak and Juditsky 1992): what is validated, and kept as best, where
    `--ema` asks for it.

    Attributes:
        model: with the averaged weights, on the device of the trained one, in float32.
    """

    def __init__(self, model: Blip, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: Blip, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1). The first steps count for more, as the average
        would else hold the untrained weights for 1 / (1 - decay) steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


@dataclass
class Run:
    """What `train_step` needs, and what the steps before and after it share."""

    config: TrainConfig
    accelerator: Accelerator
    data: DataSet
    train_set: Captions
    model: Blip
    ddp: Any  # the model as Accelerate wraps it for several processes
    optimizer: Any
    skips: Skips
    generation: GenerationSettings  # of validation
    batches_per_epoch: int  # forward passes of each process
    steps_per_epoch: int
    total_steps: int
    average: Average | None = None  # of the weights, with --ema
    batches: list[list[int]] = field(default_factory=list)  # of this process, left of the current epoch
    loader: DataLoader[Batch] | None = None  # of these, whatever the epoch
    progress: Progress = field(default_factory=Progress)
    evaluation: dict[str, Any] = field(default_factory=dict)  # the last validation's numbers
    begun: float = field(default_factory=time.perf_counter)  # of this segment, less the seconds of those before
    stopped: int = 0  # why the run ends early: a signal's number, or TIME_UP
    saved: bool = True  # whether the last checkpoint could be written
    writer: Threads | None = None  # of checkpoints, in the loop on a GPU
    writing: Future[None] | None = None  # the one that it is at
    saving_seconds: float = 0.0  # that this took, in the main process
    changed: list[str] = field(default_factory=list)  # what is not as it was before --resume, in words
    meter: Any = None  # of CO2
    co2_before: float = 0.0

    @property
    def folder(self) -> Path:
        return Path(str(self.config.run.output_dir))

    @property
    def processor(self) -> Processor:
        return self.train_set.processor

    @property
    def accumulation(self) -> int:
        return int(self.config.optimisation.gradient_accumulation_steps or 1)

    @property
    def num_workers(self) -> int | None:
        return self.config.loading.num_workers

    @property
    def images_per_step(self) -> int:
        return self.config.loading.batch_size * self.accelerator.num_processes * self.accumulation

    @property
    def shown(self) -> Blip:
        """The model that is validated and kept as best."""
        return self.average.model if self.average else self.model

    @property
    def finished(self) -> bool:
        patience = self.config.regularisation.patience
        return self.progress.step >= self.total_steps or bool(patience and self.progress.not_better >= patience)
