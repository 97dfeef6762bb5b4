"""Many images -> captions: decode ahead of the model, report what cannot be read, lose nothing that was computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from blip_lite.captioner import Captioner, decoding_threads, default_batch_size
from blip_lite.errors import ConfigError, ImageError
from blip_lite.model.generation import GenerationSettings
from blip_lite.processing.decoder_warnings import about
from blip_lite.processing.picture import Picture
from blip_lite.processing.processor import Processor
from blip_lite.processing.threads import Threads
from blip_lite.processing.word_filter import found_words

SLOW = 1.0  # seconds
MOST_WORKERS = 1024


@dataclass
class Captioned:
    """One image's outcome: `captions` (best first) with the mean log-probability of their tokens, or
    none and an `error`."""

    picture: Picture
    captions: list[str]
    scores: list[float]
    error: str | None = None

    @property
    def image(self) -> str:
        return self.picture.image_id

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
    images: Iterable[str | Picture],
    batch_size: int | None = None,
    prompt: str | None = None,
    workers: int | None = None,
    **settings: Any,
) -> Iterator[Captioned]:
    """Caption images. One that cannot be read gives an error, and the next one follows.

    They come in the order given, unless one is slow to read: the model takes those that are ready.

    Args:
        captioner: the model.
        images: paths, or what `inputs.expand` found; may be endless, only a few batches are held in memory.
        batch_size: images at a time, by default 64 on CUDA, else 8; fewer where memory runs out.
        prompt: how captions shall begin; None: the checkpoint's own, which captions leave out.
        workers: threads that read and decode ahead of the model, by default one a core, 4 to 16.
        **settings: fields of `GenerationSettings`, by default the checkpoint's.

    Raises:
        ConfigError: settings that make no sense.
    """
    batch_size = default_batch_size(captioner.model.device) if batch_size is None else batch_size
    workers = decoding_threads() if workers is None else workers
    if batch_size < 1 or workers < 1:
        raise ConfigError("batch_size and num_workers must be at least 1")
    if workers > MOST_WORKERS:
        raise ConfigError(f"{workers} num_workers are threads that read images; at most {MOST_WORKERS}")
    # Not a generator itself: wrong settings are to fail here, not at the first image.
    return _caption(captioner, iter(images), batch_size, prompt, workers, captioner.settings(**settings))


def _caption(
    captioner: Captioner, images: Iterator[str | Picture], batch_size: int, prompt: str | None, workers: int,
    settings: GenerationSettings,
) -> Iterator[Captioned]:  # fmt: skip
    def decode(picture: Picture) -> torch.Tensor | str:
        try:
            with about(picture.image_id):
                return captioner.pixels(picture.open())
        except ImageError as error:
            reason = str(error)
            for prefix in (
                str(picture.image) if isinstance(picture.image, str) else picture.image_id,
                picture.image_id,
                "<bytes>",
            ):
                reason = reason.removeprefix(f"{prefix}: ")
            return reason
        except OSError as error:  # of a shard that went away
            return f"cannot be read ({error.strerror or error})"

    waiting: list[tuple[Picture, Future[torch.Tensor | str]]] = []
    late: set[Future[torch.Tensor | str]] = set()
    ahead = 3 * batch_size + workers
    pool = Threads(workers)
    try:
        while True:
            for image in islice(images, max(0, ahead - len(waiting))):
                picture = Picture(image, image) if isinstance(image, str) else image
                waiting.append((picture, pool.submit(decode, picture)))
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
            for picture, found in part:
                if isinstance(found, str):
                    yield Captioned(picture, [], [], found)
                else:
                    pairs = next(left)
                    yield Captioned(picture, [text for text, _ in pairs], [score for _, score in pairs])
    finally:
        pool.shutdown()


def review_of(processor: Processor, result: Captioned, entries: Mapping[str, list[str]]) -> list[str] | None:
    """Which of the words somebody is to look at a result has; None if there are no such words."""
    if not entries:
        return None
    return sorted({entry for caption in result.captions for entry in found_words(processor, caption, entries)})
