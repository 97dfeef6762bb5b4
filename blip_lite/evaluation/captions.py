"""A split -> captions, shared out among the processes, made from pixels alone and kept as they are made."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from blip_lite.captioner import Captioner, pick_dtype
from blip_lite.data.batches import Batch, Captions, epoch_batches, loader
from blip_lite.errors import ConfigError
from blip_lite.model.blip import Blip
from blip_lite.model.flops import bfloat16_slower
from blip_lite.model.generation import GenerationSettings
from blip_lite.model.pretrained import DECODING
from blip_lite.processing.picture import Picture
from blip_lite.processing.processor import Processor
from blip_lite.processing.progress import Progress
from blip_lite.settings import DecodingSettings, LoadingSettings, TrainConfig


def decoding(settings: DecodingSettings, model: Blip, processor: Processor) -> GenerationSettings:
    """The decoding settings of a run. Raises ConfigError where this model cannot decode so."""
    positions, text = len(processor.prompt_ids(settings.prompt)) + settings.max_new_tokens, model.config.text
    if positions > text.max_position_embeddings:
        raise ConfigError(
            f"prompt and --max_new_tokens take {positions} positions; the model has {text.max_position_embeddings}"
        )
    if settings.num_beams > 1 and 2 * settings.num_beams + 1 > text.vocab_size:
        raise ConfigError(f"--num_beams {settings.num_beams} is too many for a vocabulary of {text.vocab_size} tokens")
    try:
        return GenerationSettings(**{name: getattr(settings, name) for name in DECODING})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def gather_captions(
    mine: list[tuple[str, str]], failed: dict[str, str], expected: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Put the processes' (image id, caption) pairs and failures together, captions in the split's order.

    Raises:
        RuntimeError: an image of the split has neither a caption nor a failure, or has two.
    """
    pairs = gather_object(mine)
    failures = {image_id: reason for each in gather_object([failed]) for image_id, reason in each.items()}
    captions = dict(pairs)
    if len(pairs) != len(captions) or sorted([*captions, *failures]) != sorted(expected):
        raise RuntimeError(f"{len(pairs)} captions and {len(failures)} failures for {len(expected)} images")
    return {image_id: captions[image_id] for image_id in expected if image_id in captions}, failures


def caption_batch(
    captioner: Captioner, batch: Batch, indices: list[int], settings: GenerationSettings, prompt: str
) -> list[tuple[str, str]]:
    """(image id, caption) of the batch's images, but for place-holders and those that could not be decoded. Only the
    pixels of the batch are looked at."""
    good = [i for i, image_id in enumerate(batch.image_ids) if indices[i] >= 0 and image_id not in batch.bad]
    if not good:
        return []
    pixels = batch.pixel_values if len(good) == len(indices) else batch.pixel_values[good]
    found = captioner.caption_pixels(pixels, settings, [prompt] * len(good), with_prompt=False)
    return [(batch.image_ids[i], row[0]) for i, row in zip(good, found, strict=True)]


def caption_images(
    captioner: Captioner,
    examples: Sequence[Picture],
    settings: GenerationSettings,
    prompt: str,
    loading: LoadingSettings,
    kept: Callable[[list[tuple[str, str]]], None] = lambda _: None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Caption examples, shared out among the processes. `kept` gets this process's (image id, caption) pairs, batch
    by batch.

    Returns:
        Captions by image id (the same on every process), without the prompt; and why each image that could not be
        decoded could not, by its id.
    """
    state = PartialState()
    bare = [Picture(e.image_id, e.image) for e in examples]  # no reference goes further than this line
    batches = epoch_batches(range(len(bare)), loading.batch_size, state.process_index, state.num_processes)
    mine: list[tuple[str, str]] = []
    failed: dict[str, str] = {}
    on_cuda = captioner.model.device.type == "cuda"
    data: Iterable[Batch] = loader(Captions(bare, captioner.processor, "", 40), batches, loading.num_workers, on_cuda)
    if state.is_main_process:
        data = Progress(data, "captioned", len(batches), "batches")
    for indices, batch in zip(batches, data, strict=True):
        failed |= batch.bad
        found = caption_batch(captioner, batch, indices, settings, prompt)
        kept(found)
        mine += found
    return gather_captions(mine, failed, [e.image_id for e in examples])


def caption_with(
    ckpt: str, examples: Sequence[Picture], config: TrainConfig, dtype: str, folder: Path
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Captions and failures by image id, as in `caption_images`; and what is to be known of how they were made.

    Captions are kept in `folder` as they are made, so that an evaluation that was cut off goes on, and one that is
    repeated takes no time: under a hash of weights, decoding settings, precision and images.
    """
    state, prompt = PartialState(), config.decoding.prompt
    captioner = Captioner.from_pretrained(ckpt, state.device, pick_dtype(dtype, state.device))
    generation = decoding(config.decoding, captioner.model, captioner.processor)
    provenance: dict[str, Any] = {
        "checkpoint": ckpt,
        "checkpoint_sha256": weights_hash(captioner.model),
        "decoding": {**dataclasses.asdict(generation), "prompt": prompt},
        "dtype": str(captioner.model.dtype).removeprefix("torch."),
    }
    identity = json.dumps(
        {**provenance, "checkpoint": "", "device": state.device.type, "images": [e.stamp() for e in examples]}
    )
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    before: dict[str, str] = {}
    seconds = 0.0
    for path in folder.glob(f"{key}.*.jsonl"):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # half a line of a killed process
                row = json.loads(line)
                before |= row["captions"]
                seconds += row["seconds"] if path.name == f"{key}.0.jsonl" else 0.0
    todo = [e for e in examples if e.image_id not in before]
    half = captioner.model.dtype == torch.bfloat16
    if half and todo and (slower := bfloat16_slower(captioner.model, "--dtype float32")):
        state.print(slower)
    state.wait_for_everyone()  # all have read before one writes
    state.print(f"{ckpt}: captioning {len(todo)} images" + (f", {len(before)} are done" if before else ""))
    start = time.perf_counter()
    with open(folder / f"{key}.{state.process_index}.jsonl", "a", encoding="utf-8", errors="backslashreplace") as file:

        def keep(found: list[tuple[str, str]]) -> None:
            nonlocal start, seconds
            now = time.perf_counter()
            seconds += now - start
            file.write("\n" + json.dumps({"captions": dict(found), "seconds": now - start}, ensure_ascii=False))
            file.flush()
            start = now

        captions, failures = caption_images(captioner, todo, generation, prompt, config.loading, keep)
    captions |= before
    seconds = float(broadcast_object_list([seconds])[0])
    provenance |= {"seconds": seconds, "images_per_second": len(captions) / max(seconds, 1e-9)}
    return {e.image_id: captions[e.image_id] for e in examples if e.image_id in captions}, failures, provenance


def weights_hash(model: Blip) -> str:
    """SHA-256 of all weights by name, as they are in memory."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
