"""Many images -> captions: decode ahead of the model, report what cannot be read, lose nothing that was computed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip_lite.captioner import Captioner
from blip_lite.generation import GenerationSettings
from blip_lite.inputs import Source
from blip_lite.processing import ImageError, Processor
from blip_lite.words import found_words

SLOW = 1.0  # seconds
BEGINS = b'{"image": '  # each line of a journal


@dataclass
class Captioned:
    """One image's outcome: `captions` (best first) with the mean log-probability of their tokens, or none and an `error`."""

    source: Source
    captions: list[str]
    scores: list[float]
    error: str | None = None

    @property
    def image(self) -> str:
        return self.source.name

    def row(self, scores: bool = False, review: list[str] | None = None) -> dict[str, Any]:
        """What the output holds of it: a caption, or a list where there are several."""

        def one(values: list[Any]) -> Any:
            return values[0] if len(values) == 1 else values

        if self.error:
            return {"image": self.image, "caption": None, "error": self.error}
        found: dict[str, Any] = {"image": self.image, "caption": one(self.captions)}
        if scores:
            found["score"] = one([round(score, 4) for score in self.scores])
        return found if review is None else {**found, "review": review}


def caption_files(
    captioner: Captioner,
    images: Iterable[str | Source],
    batch_size: int = 8,
    prompt: str = "",
    workers: int = 4,
    **settings: Any,
) -> Iterator[Captioned]:
    """Caption images. One that cannot be read gives an error, and the next one follows.

    They come in the order given, unless one is slow to read: the model takes those that are ready.

    Args:
        captioner: the model.
        images: paths, or what `inputs.expand` found; may be endless, only a few batches are held in memory.
        batch_size: images at a time.
        prompt: how captions shall begin.
        workers: threads that read and decode ahead of the model.
        **settings: fields of `GenerationSettings`.

    Raises:
        ValueError: settings that make no sense.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError("batch_size and workers must be at least 1")
    # Not a generator itself: wrong settings are to fail here, not at the first image.
    return _caption(captioner, iter(images), batch_size, prompt, workers, GenerationSettings(**settings))


def _caption(
    captioner: Captioner, images: Iterator[str | Source], batch_size: int, prompt: str, workers: int,
    settings: GenerationSettings,
) -> Iterator[Captioned]:  # fmt: skip
    def decode(source: Source) -> torch.Tensor | str:
        try:
            return captioner.processor.pixels(source.load())
        except ImageError as error:
            reason = str(error)
            for prefix in (str(source.image) if isinstance(source.image, str) else source.name, source.name, "<bytes>"):
                reason = reason.removeprefix(f"{prefix}: ")
            return reason
        except OSError as error:  # of a shard that went away
            return f"cannot be read ({error.strerror or error})"

    waiting: list[tuple[Source, Future[torch.Tensor | str]]] = []
    late: set[Future[torch.Tensor | str]] = set()
    ahead = 3 * batch_size + workers
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            for image in islice(images, max(0, ahead - len(waiting))):
                source = Source(image, image) if isinstance(image, str) else image
                waiting.append((source, pool.submit(decode, source)))
            if not waiting:
                return
            # The first in line, in order; but the model waits for none of them longer than a second, and only once.
            jobs = [job for _, job in waiting]
            late |= wait([job for job in jobs if job not in late][:batch_size], SLOW).not_done
            ready = [at for at, job in enumerate(jobs) if job.done()][:batch_size]
            if not ready:
                wait(jobs, return_when=FIRST_COMPLETED)
                continue
            part = [(waiting[at][0], jobs[at].result()) for at in ready]
            waiting = [pair for at, pair in enumerate(waiting) if at not in ready]
            late &= {job for _, job in waiting}
            pixels = [found for _, found in part if isinstance(found, torch.Tensor)]
            captions: list[list[tuple[str, float]]] = []
            if pixels:
                captions = captioner.caption_and_score(torch.stack(pixels), settings, [prompt] * len(pixels))
            left = iter(captions)
            for source, found in part:
                if isinstance(found, str):
                    yield Captioned(source, [], [], found)
                else:
                    pairs = next(left)
                    yield Captioned(source, [text for text, _ in pairs], [score for _, score in pairs])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# -------------------------------------------------------------------------------------------- the journal


def key_of(name: str) -> int:
    """64 bits of a hash: of ten million images two fall together once in 350,000 times."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Seen:
    """Which images were met, 8 bytes each."""

    def __init__(self) -> None:
        self.old = np.empty(0, np.uint64)  # sorted
        self.new: set[int] = set()

    def __len__(self) -> int:
        return len(self.old) + len(self.new)

    def __contains__(self, name: str) -> bool:
        key = key_of(name)
        at = int(np.searchsorted(self.old, np.uint64(key)))
        return key in self.new or (at < len(self.old) and int(self.old[at]) == key)

    def add(self, name: str) -> bool:
        """Remember an image; whether it is a new one."""
        if name in self:
            return False
        self.new.add(key_of(name))
        if len(self.new) > 2**16:
            self.old = np.sort(np.concatenate([self.old, np.fromiter(self.new, np.uint64)]))
            self.new = set()
        return True


def read_journal(path: Path, whole: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, row) of a JSON-lines file of captions.

    Args:
        path: the file; need not exist.
        whole: else half a line at the end, of a killed process, is passed over.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not (whole or raw.endswith(b"\n")) and raw[: len(BEGINS)] == BEGINS[: len(raw)]:
                return
            try:
                row = json.loads(raw)
                if not isinstance(row["image"], str) or "caption" not in row:
                    raise KeyError
                yield raw.decode("utf-8"), row
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a line of captions; choose another --output, or --overwrite"
                ) from error


def parts_of(journal: Path) -> list[Path]:
    """What processes with a rank appended to, and one of them alone could not take up: `JOURNAL.rank-N`."""
    return sorted(journal.parent.glob(f"{glob.escape(journal.name)}.rank-*"))


def take_up(path: Path, retry_failed: bool = False) -> None:
    """Make one whole journal of what earlier runs, perhaps killed, of perhaps several processes, left: each image once.

    Args:
        path: of the journal; processes with a rank append to `PATH.rank-N`.
        retry_failed: take the lines with an error out, so that their images are tried again.

    Raises:
        ValueError: a file that is no journal.
    """
    parts = [path, *parts_of(path)]
    ends = b"\n"
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as journal:
            journal.seek(-1, os.SEEK_END)
            ends = journal.read()
    if len(parts) == 1 and ends == b"\n" and not (retry_failed and path.is_file()):
        return
    new, seen = path.with_name(f".{path.name}.new"), Seen()
    with open(new, "w", encoding="utf-8") as file:
        for part in parts:
            for line, row in read_journal(part, whole=False):
                if not (retry_failed and "error" in row) and seen.add(row["image"]):
                    file.write(line)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    for part in parts[1:]:
        part.unlink()


def to_line(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # of a file name that is no UTF-8
        line = json.dumps(row)
    return line + "\n"


def review_of(processor: Processor, result: Captioned, entries: Mapping[str, list[str]]) -> list[str] | None:
    """Which of the words somebody is to look at a result has; None if there are no such words."""
    if not entries:
        return None
    return sorted({entry for caption in result.captions for entry in found_words(processor, caption, entries)})
