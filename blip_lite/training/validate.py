"""Loss, sacreBLEU and CIDEr of the validation images."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from blip_lite.captioner import Captioner, pick_dtype
from blip_lite.data.batches import Captions, epoch_batches, loader
from blip_lite.errors import TrainingError
from blip_lite.evaluation.captions import caption_batch, gather_captions
from blip_lite.evaluation.metrics import cider, failure_groups, sacrebleu
from blip_lite.model.blip import Blip
from blip_lite.processing.picture import Picture
from blip_lite.reports.words import WordUse, word_surprises
from blip_lite.training.run import Run

SAMPLE_IMAGES = 16  # validation images whose captions are shown at each validation


class Validation(NamedTuple):
    """What a validation found.

    Attributes:
        numbers: as in `metrics.jsonl`.
        samples: the first few images, the same ones each time, with their captions.
        words: that are said too often, and too seldom.
    """

    numbers: dict[str, Any]
    samples: list[tuple[Picture, str]]
    words: tuple[list[WordUse], list[WordUse]]


def as_used(run: Run) -> Blip:
    """The model to validate, in evaluation mode: under mixed precision on a GPU a copy in the dtype that `Captioner`
    picks there, of half the size; else the one that is trained."""
    model, accelerator = run.shown.eval(), run.accelerator
    dtype = pick_dtype("auto", accelerator.device) if accelerator.mixed_precision != "no" else model.dtype
    return model if dtype == model.dtype else copy.deepcopy(model).to(dtype)


@torch.no_grad()
def validate(run: Run, stopping: Callable[[], int] = lambda: 0) -> Validation | None:
    """Loss, sacreBLEU and CIDEr on the validation images, shared out among the processes. None if `stopping()` said so
    meanwhile. `val_loss_other_image` is the loss of each caption beside the image before its own, None of a single
    image: if it is no higher, the model speaks without looking.

    Under mixed precision it computes as `Captioner` and `evaluate` do: the best is the best as it is used.
    The captions are made from pixels alone: `caption_batch` has no argument for a reference.
    """
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize(run.accelerator.device)  # steps that are not done yet are training
    start = time.perf_counter()
    config, accelerator, processor = run.config, run.accelerator, run.processor
    prompt, examples = config.decoding.prompt, run.data.splits["validation"]
    model = as_used(run)
    captioner = Captioner(model, processor)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = epoch_batches(range(len(examples)), config.loading.batch_size, rank, world)
    images = Captions(examples, processor, prompt, config.optimisation.max_length)
    ready = loader(images, batches, run.num_workers, accelerator.device.type == "cuda")
    # loss and targets, and both with other images (float32: Apple's GPUs have no float64)
    sums = torch.zeros(4, device=accelerator.device)
    before: torch.Tensor | None = None
    mine: list[tuple[str, str]] = []
    failed: dict[str, str] = {}
    for indices, batch in zip(batches, ready, strict=True):
        failed |= batch.bad
        if stopping():
            return None
        pixels, *captioned = batch.to(accelerator.device, processor)
        features = model.encode(pixels.to(model.dtype))  # once, for the loss and the captions
        loss, targets = model(features, *captioned)
        sums[0] += loss
        sums[1] += targets
        others = torch.cat([features[-1:] if before is None else before, features[:-1]])  # each has the one before it
        if before is not None or len(features) > 1:
            sums[2] += model(others, *captioned)[0]
            sums[3] += targets
        before = features[-1:].clone()
        batch = dataclasses.replace(batch, pixel_values=features)
        mine += caption_batch(captioner, batch, indices, run.generation, prompt)
    loss_sum, num_targets, other_sum, other_targets = accelerator.reduce(sums, "sum").tolist()
    captions, failures = gather_captions(mine, failed, [e.image_id for e in examples])
    if not captions:
        raise TrainingError(f"no validation image could be decoded, e.g. {next(iter(failures.values()))}")
    references = {e.image_id: list(e.captions) for e in examples if e.image_id in captions}
    bleu = sacrebleu(list(captions.values()), list(references.values()))
    groups = failure_groups(list(captions.values()))
    loss = loss_sum / max(1, num_targets)
    evaluation = {
        "val_loss": loss,
        "val_loss_other_image": other_sum / other_targets if other_targets else None,
        "val_bleu": bleu["score"],
        "val_bleu_signature": bleu["signature"],
        "val_cider": cider(captions, references),
        "val_images": len(captions),
        "val_failed_images": len(failures),
        "val_commonest_caption": groups["commonest_caption"],
        "val_repetition": groups["repetition"],
        "val_distinct_captions": len(set(captions.values())),
        "val_seconds": time.perf_counter() - start,
    }
    samples = [(e, captions[e.image_id]) for e in examples if e.image_id in captions][:SAMPLE_IMAGES]
    return Validation(evaluation, samples, word_surprises(captions, references))
