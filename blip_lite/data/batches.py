"""The order of an epoch, and batches of pixels and token ids."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from blip_lite.captioner import cores
from blip_lite.data.augment import augment, augmented_key
from blip_lite.errors import ImageError
from blip_lite.model.blip import IGNORE, rows_before_targets
from blip_lite.processing.images import open_image
from blip_lite.processing.picture import Picture
from blip_lite.processing.processor import Processor
from blip_lite.processing.text import normalize_caption
from blip_lite.processing.upload import upload

LONGEST_WAIT = 1800  # seconds for a batch, after which a worker is given up
MOST_WORKERS = 8  # of a process unless told; each decodes some 200 images/s at 384 pixels, and a GPU trains on fewer


Tokens = tuple[list[int], list[int]]  # of a caption: what the decoder reads, and what it is to say, of equal lengths


@dataclass
class Batch:
    """One forward pass of one process. Rows of images that could not be decoded, and of captions that are not
    there, have no targets."""

    pixel_values: Tensor  # [I, 3, S, S] uint8, or the cached features [I, P, D] of a frozen encoder
    input_ids: Tensor  # [I, K, T]
    labels: Tensor  # [I, K, T], IGNORE where no loss is wanted
    target_rows: Tensor  # [targets], found here, as the host would wait for a GPU that finds them
    image_ids: list[str]
    bad: dict[str, str]  # why each image that could not be decoded could not, by its id

    def num_targets(self) -> int:
        return len(self.target_rows)

    def pin_memory(self) -> Batch:
        pixel_values, input_ids, labels, target_rows = (tensor.pin_memory() for tensor in self.tensors())
        return Batch(pixel_values, input_ids, labels, target_rows, self.image_ids, self.bad)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.pixel_values, self.input_ids, self.labels, self.target_rows

    def to(self, device: torch.device, processor: Processor) -> tuple[Tensor, ...]:
        """What `Blip.forward` takes, in its order, on a device: pixels are normalised there."""
        pixels, *others = (upload(tensor, device) for tensor in self.tensors())
        return processor.normalize(pixels), *others


class Captions(Dataset[Any]):
    """Decodes and tokenises pictures. An image that cannot be decoded becomes its reason.

    Attributes:
        features: a `feature_cache.Features`, from which images come instead of being decoded.
        captions_per_image: how many captions of an image an epoch takes; None: all. `seed` and `epoch` say which.
        augment: whether images are changed, in each epoch otherwise.
        parallel_prediction: share of captions whose words the decoder does not read, others in each epoch.
        multiple: captions are padded to a multiple of so many tokens.
        epoch: from 0; workers see it change.
    """

    def __init__(self, examples: Sequence[Picture], processor: Processor, prompt: str, max_length: int) -> None:
        self.examples, self.processor = examples, processor
        self.prompt, self.max_length = prompt, max_length
        self.features: Any = None
        self.captions_per_image: int | None = None
        self.augment = False
        self.parallel_prediction = 0.0
        self.multiple = 1
        self.seed, self._epoch = 0, multiprocessing.RawValue("q", 0)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def epoch(self) -> int:
        return self._epoch.value

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.value = epoch

    @property
    def image_bytes(self) -> int:
        """What an image takes in a batch."""
        return 2 * math.prod(self.features.shape[1:]) if self.features else 3 * self.processor.image_size**2

    def captions(self, example: Picture) -> list[str]:
        """Those of an image that this epoch takes."""
        usable = [c for c in example.captions if normalize_caption(c)]
        if not self.captions_per_image:
            return usable
        return draw_captions(usable, self.captions_per_image, f"{self.seed}/{example.image_id}", self.epoch)

    def pixels(self, example: Picture) -> Tensor:
        """`[3, S, S]` uint8. Raises ImageError, OSError."""
        image = example.open()
        if self.augment:
            key = augmented_key(self.seed, self.epoch, example.image_id)
            image = augment(open_image(image), example.captions, self.processor.image_size, key)
        return self.processor.rgb(image)

    def tokens(self, example: Picture) -> list[Tokens]:
        said = [self.processor.encode(caption, self.prompt, self.max_length) for caption in self.captions(example)]
        return [(self.read(tokens, f"{example.image_id}/{k}"), tokens) for k, tokens in enumerate(said)]

    def read(self, tokens: list[int], key: str) -> list[int]:
        """What the decoder reads of a caption that it learns to say: all of it, or in parallel prediction (Tschannen et
        al. 2023, https://arxiv.org/abs/2306.07915) its start and nothing but [MASK], so that each word must come from
        the image. Theirs then looks ahead, too; ours stays causal. A function of seed, epoch and key."""
        share = self.parallel_prediction
        if not share or random.Random(f"{self.seed}/{self.epoch}/{key}").random() >= share:
            return tokens
        start = len(self.processor.prompt_ids(self.prompt))
        return [*tokens[:start], *[self.processor.mask_token_id] * (len(tokens) - start)]

    def __getitem__(self, index: int) -> tuple[str, Tensor | str, list[Tokens]]:
        # A negative index -1-i asks for a place-holder: image i without captions (see `epoch_batches`).
        position = index if index >= 0 else -1 - index
        example = self.examples[position]
        try:
            pixels: Tensor | str = self.features.get(position) if self.features else self.pixels(example)
        except (ImageError, OSError) as error:
            pixels = str(error)
        return example.image_id, pixels, self.tokens(example) if index >= 0 else []


def draw_captions(captions: Sequence[str], count: int, seed: str, epoch: int) -> list[str]:
    """`count` of an image's captions for an epoch: a round through all of them in an order of the image's own, which
    goes on where the last epoch stopped. So none comes twice in an epoch, nor again before all others have come."""
    if count >= len(captions):
        return list(captions)
    order = sorted(captions, key=lambda caption: hashlib.sha256(f"{seed}/{caption}".encode()).digest())
    return [order[(epoch * count + k) % len(order)] for k in range(count)]


def collate(
    items: Sequence[tuple[str, Tensor | str, list[Tokens]]],
    processor: Processor,
    prompt_length: int,
    multiple: int = 1,
) -> Batch:
    """Stack items; captions are padded to the batch's longest, and on to a `multiple` of so many tokens; images to its
    largest number of captions.

    Args:
        items: what `Captions` returns.
        processor: for the padding id and the image size.
        prompt_length: leading tokens that are no target, `[DEC]` included.
    """
    captions = [tokens if isinstance(pixels, Tensor) else [] for _, pixels, tokens in items]
    most = max(1, max(len(rows) for rows in captions))
    longest = max((len(said) for rows in captions for _, said in rows), default=2)
    padded = math.ceil(longest / multiple) * multiple
    input_ids = torch.full((len(items), most, padded), processor.pad_token_id)
    input_ids[:, :, 0] = processor.bos_token_id
    labels = torch.full_like(input_ids, IGNORE)
    for i, rows in enumerate(captions):
        for k, (read, said) in enumerate(rows):
            input_ids[i, k, : len(read)] = torch.tensor(read)
            labels[i, k, prompt_length : len(said)] = torch.tensor(said[prompt_length:])
    decoded = [pixels for _, pixels, _ in items if isinstance(pixels, Tensor)]
    size = processor.image_size
    blank = torch.zeros_like(decoded[0]) if decoded else torch.zeros(3, size, size, dtype=torch.uint8)
    pixel_values = torch.stack([pixels if isinstance(pixels, Tensor) else blank for _, pixels, _ in items])
    bad = {image_id: pixels for image_id, pixels, _ in items if isinstance(pixels, str)}
    image_ids = [image_id for image_id, _, _ in items]
    return Batch(pixel_values, input_ids, labels, rows_before_targets(labels), image_ids, bad)


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch, a pure function of (seed, epoch): so resuming is slicing."""
    return np.random.default_rng([seed, epoch]).permutation(num_images).tolist()


def epoch_batches(order: Sequence[int], batch_size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """This process's batches of an epoch: process r takes its `batch_size` of every `world * batch_size` images.

    All processes get the same number of batches, and every image comes once. A process that would go without in
    the last batch gets a place-holder (a negative index): forward and backward must run everywhere.
    """
    batches = []
    for start in range(0, len(order), batch_size * world):
        mine = order[start : start + batch_size * world][rank::world]
        batches.append(list(mine) if mine else [-1 - order[start]])
    return batches


def _ignore_first_signal(_: int) -> None:
    """A signal to the whole process group (Ctrl-C, Slurm) is for the trainer, which finishes its step; a worker ends
    when it is told, or at a second SIGTERM, in peace, else torch would raise an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, lambda *_: os._exit(0)))


def end_workers() -> None:
    """The first SIGTERM for all workers; torch sends the second to those that are stuck in a read for 5 s."""
    for worker in multiprocessing.active_children():
        worker.terminate()


def workers_by_cores() -> int:
    """How many workers a training process has unless told: a core each, of those that the processes here share."""
    return min(MOST_WORKERS, max(2, cores() // processes_here()))


def processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def workers_that_fit(num_workers: int, batch_size: int, image_bytes: int) -> int:
    """How many workers' batches `/dev/shm` has room for; Docker gives 64 MB, and where it is full, a worker waits for
    ever. Each keeps two batches ready."""
    if not num_workers or not Path("/dev/shm").is_dir():
        return num_workers
    free = shutil.disk_usage("/dev/shm").free / processes_here()
    return min(num_workers, int(0.8 * free / (2 * batch_size * image_bytes)))


def loader(
    dataset: Captions,
    batches: Sequence[list[int]],
    num_workers: int | None,
    pin_memory: bool = False,
    lasting: bool = False,
) -> DataLoader[Batch]:
    """Decode these batches ahead, in worker processes; the order does not depend on their number.

    Args:
        dataset: the images.
        batches: indices of each batch.
        num_workers: None: by the cores.
        pin_memory: for a CUDA device.
        lasting: whether workers live on after the last batch, for the next ones that `batches` will hold.
    """
    prompt_length = len(dataset.processor.prompt_ids(dataset.prompt))
    num_workers = workers_by_cores() if num_workers is None else num_workers
    num_workers = workers_that_fit(num_workers, max(map(len, batches), default=1), dataset.image_bytes)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(
            collate, processor=dataset.processor, prompt_length=prompt_length, multiple=dataset.multiple
        ),
        num_workers=num_workers,
        timeout=LONGEST_WAIT if num_workers else 0,
        pin_memory=pin_memory,
        persistent_workers=lasting and num_workers > 0,
        worker_init_fn=_ignore_first_signal,
        generator=torch.Generator(),  # else each epoch's start draws from the global one, and resuming moves it
    )
