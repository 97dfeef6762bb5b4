"""Many files -> captions: decode ahead of the model, report what cannot be read, write each line at once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch

from blip_lite.captioner import Captioner
from blip_lite.generation import GenerationSettings
from blip_lite.processing import IMAGE_SUFFIXES, ImageError


@dataclass
class Captioned:
    """One image's outcome: `captions` (best first), or none and an `error`."""

    image: str
    captions: list[str]
    error: str | None = None

    def as_json(self) -> str:
        caption: Any = None if self.error else self.captions[0] if len(self.captions) == 1 else self.captions
        line = {"image": self.image, "caption": caption, **({"error": self.error} if self.error else {})}
        return json.dumps(line, ensure_ascii=False)


def expand(arguments: Iterable[str]) -> Iterator[str]:
    """Files as they are, folders as the images in them, recursively and in name order."""
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            yield from (str(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        else:
            yield argument


def caption_files(
    captioner: Captioner, paths: Iterable[str], batch_size: int = 8, prompt: str = "", workers: int = 4, **settings: Any
) -> Iterator[Captioned]:
    """Caption files, in the order given. A file that cannot be read gives an error, and the next one follows.

    Args:
        captioner: the model.
        paths: may be endless; only a few batches are held in memory.
        batch_size: images at a time.
        prompt: how captions shall begin.
        workers: threads that decode ahead of the model.
        **settings: fields of `GenerationSettings`.

    Raises:
        ValueError: settings that make no sense.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError("batch_size and workers must be at least 1")
    # Not a generator itself: wrong settings are to fail here, not at the first image.
    return _caption(captioner, iter(paths), batch_size, prompt, workers, GenerationSettings(**settings))


def _caption(
    captioner: Captioner, paths: Iterator[str], batch_size: int, prompt: str, workers: int, settings: GenerationSettings
) -> Iterator[Captioned]:
    def decode(path: str) -> torch.Tensor | str:
        try:
            return captioner.processor.pixels(path)
        except ImageError as error:
            return str(error).removeprefix(f"{path}: ")

    waiting: deque[tuple[str, Future[torch.Tensor | str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for path in islice(paths, 3 * batch_size - len(waiting)):
                waiting.append((path, pool.submit(decode, path)))
            if not waiting:
                return
            part = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            decoded = [job.result() for _, job in part]
            pixels = [found for found in decoded if isinstance(found, torch.Tensor)]
            captions: list[list[str]] = []
            if pixels:
                captions = captioner.caption_pixels(torch.stack(pixels), settings, [prompt] * len(pixels))
            left = iter(captions)
            for (path, _), found in zip(part, decoded, strict=True):
                yield Captioned(path, [], found) if isinstance(found, str) else Captioned(path, next(left))


def write_lines(results: Iterable[Captioned], output: TextIO) -> tuple[int, int]:
    """Write one JSON line an image, flushed at once. Returns (captioned, failed)."""
    captioned = failed = 0
    for result in results:
        output.write(result.as_json() + "\n")
        output.flush()
        captioned, failed = captioned + (result.error is None), failed + (result.error is not None)
    return captioned, failed
