"""Many files -> captions: decode ahead of the model, report what cannot be read, write each line at once."""

from __future__ import annotations

import array
import glob
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
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
    """Files as they are, folders as the images in them, recursively and in name order; `-` is one path a line on
    standard input, a `.txt` file one path a line in it, and a name with `*`, `?` or `[` that is no file a pattern. Nothing
    is held but one folder's names.

    Raises:
        ValueError: a list that cannot be read.
    """
    for argument in arguments:
        if argument == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(argument):
            for folder, folders, names in os.walk(argument):
                folders.sort()
                yield from (os.path.join(folder, n) for n in sorted(names) if Path(n).suffix.lower() in IMAGE_SUFFIXES)
        elif argument.lower().endswith(".txt"):
            try:
                with open(argument, encoding="utf-8") as file:
                    yield from (line.rstrip("\n") for line in file if line.strip())
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{argument}: a list of paths that cannot be read ({error})") from error
        elif not os.path.exists(argument) and glob.has_magic(argument):
            yield from sorted(glob.glob(argument, recursive=True))
        else:
            yield argument


class Done:
    """The images that an earlier, perhaps killed, run wrote to a JSON-lines file; 8 bytes each.

    Args:
        path: need not exist. Half a line at its end is cut off.
        retry_failed: take lines with an error out of the file, so that their images are tried again.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path, retry_failed: bool = False) -> None:
        keys = array.array("Q")
        self.failed = 0
        if path.is_file():
            with open(path, "rb+") as file:
                end = 0
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        file.truncate(end)  # of a killed process
                        break
                    end += len(line)
                    try:
                        row = json.loads(line)
                        keys.append(key_of(row["image"]))
                        self.failed += "error" in row
                    except (ValueError, KeyError, TypeError) as error:
                        raise ValueError(
                            f"{path}, line {number}: not a line of captions; choose another --output, or --overwrite"
                        ) from error
            if retry_failed and self.failed:
                new = path.with_name(f".{path.name}.new")
                with open(path, encoding="utf-8") as old, open(new, "w", encoding="utf-8") as file:
                    file.writelines(line for line in old if "error" not in json.loads(line))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(new, path)
                self.__init__(path)  # type: ignore[misc]
                return
        self.keys = np.sort(np.frombuffer(keys, np.uint64)) if keys else np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, image: str) -> bool:
        at = int(np.searchsorted(self.keys, np.uint64(key_of(image))))
        return at < len(self.keys) and int(self.keys[at]) == key_of(image)


def key_of(image: str) -> int:
    """64 bits of a hash: of ten million images two fall together once in 200,000 times."""
    return int.from_bytes(hashlib.blake2b(image.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


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
