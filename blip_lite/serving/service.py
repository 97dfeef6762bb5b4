"""Images in, captions out, for the HTTP interface and the page alike: within limits, in batches, counted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import prometheus_client as prometheus
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from torch import Tensor

from blip_lite.captioner import Captioner, cores
from blip_lite.errors import ConfigError, ImageError, TooLarge
from blip_lite.processing.picture import Picture
from blip_lite.serving.batching import Batcher, Job, Pairs
from blip_lite.serving.requests import look
from blip_lite.serving.schema import Captioned, Failed, Parameters, Scored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to serve. `name` is what the model is called; `token` None asks for none."""

    name: str
    batch_size: int = 8  # images
    max_queue: int = 64  # images in the house
    timeout: float = 60.0  # seconds from the first byte of a request to its answer
    max_body: int = 32  # MiB
    allow_urls: bool = False
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_queue", "timeout", "max_body"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected more than 0")
        if self.token is not None and not self.token.strip():
            raise ConfigError("BLIP_LITE_TOKEN is empty: give it a token, or unset it to ask for none")


class Service:
    """Requests -> images -> captions, within the limits, counted.

    Attributes:
        inside: images that are read, wait or are captioned now.
    """

    def __init__(self, captioner: Captioner, options: Options) -> None:
        self.captioner, self.options, self.inside = captioner, options, 0
        self.decoding = ThreadPoolExecutor(cores(), "decoding")  # each may hold a picture of 50 megapixels
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.images = prometheus.Counter("blip_lite_images", "images answered", ["outcome"], registry=registry)
        self.requests = prometheus.Counter("blip_lite_requests", "answers of /caption", ["status"], registry=registry)
        self.seconds = prometheus.Histogram("blip_lite_request_seconds", "time to the answer", registry=registry)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128]
        batches = prometheus.Histogram("blip_lite_batch_images", "images of a batch", registry=registry, buckets=sizes)
        waiting = prometheus.Gauge("blip_lite_images_inside", "images that are not answered yet", registry=registry)
        waiting.set_function(lambda: self.inside)
        self.batcher = Batcher(captioner, options.batch_size, batches.observe)

    @contextlib.contextmanager
    def places(self, images: int) -> Iterator[None]:
        """Room for so many images. Raises HTTPException 503 if there is none now."""
        if self.inside + images > self.options.max_queue:
            raise HTTPException(503, f"busy: {self.inside} images wait; try again", {"Retry-After": "1"})
        self.inside += images
        try:
            yield
        finally:
            self.inside -= images

    async def caption(
        self, pictures: Sequence[Picture], parameters: dict[str, Any], end: float
    ) -> list[Captioned | Failed]:
        """Caption images before `end`, in the time of `time.monotonic()`; what is wrong with one is its result.

        Raises:
            HTTPException: 422 for parameters that make no sense together, 503 if there is no room or no time.
        """
        prompt = parameters.get("prompt")
        try:
            settings = self.captioner.settings(**{k: v for k, v in parameters.items() if k != "prompt"})
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error

        async def work() -> list[Captioned | Failed]:
            pixels = await asyncio.gather(*map(self.pixels, pictures), return_exceptions=True)
            jobs = [Job(one, settings, prompt) for one in pixels if isinstance(one, Tensor)]
            futures = map(asyncio.wrap_future, self.batcher.submit(jobs))
            captions = iter(await asyncio.gather(*futures, return_exceptions=True))
            return [self.result(next(captions) if isinstance(one, Tensor) else one) for one in pixels]

        with self.places(len(pictures)):
            return await within(end, work(), 503, f"no answer within {self.options.timeout:g} s; try again")

    async def pixels(self, picture: Picture) -> Tensor:
        """`[3, S, S]` uint8, on the model's device. Raises ImageError."""
        data: Any = await asyncio.to_thread(picture.open)  # may be fetched
        return await asyncio.get_running_loop().run_in_executor(
            self.decoding, lambda: self.captioner.pixels(look(data))
        )

    def result(self, outcome: Pairs | BaseException) -> Captioned | Failed:
        """What the client is told of an image."""
        self.images.labels("failed" if isinstance(outcome, BaseException) else "captioned").inc()
        if not isinstance(outcome, BaseException):
            all = [Scored(caption=caption, score=round(score, 4)) for caption, score in outcome]
            return Captioned(**all[0].model_dump(), captions=all if len(all) > 1 else None)
        if isinstance(outcome, (ImageError, ConfigError)):
            status = 413 if isinstance(outcome, TooLarge) else 422
            return Failed(error=str(outcome).removeprefix("<bytes>: "), status=status)
        log.error("an image could not be captioned", exc_info=outcome)
        return Failed(error="the server failed; its log says why", status=500)


async def within(end: float, work: Coroutine[Any, Any, Any], status: int, message: str) -> Any:
    """What `work` returns before `end`, in the time of `time.monotonic()`; else HTTPException."""
    try:
        return await asyncio.wait_for(work, max(0.0, end - time.monotonic()))
    except asyncio.TimeoutError:
        raise HTTPException(status, message, {"Retry-After": "1"} if status == 503 else None) from None


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What pydantic finds wrong -> HTTPException with a sentence: 400 for what is no JSON, else 422."""
    try:
        yield
    except ValidationError as error:
        raise HTTPException(400 if error.errors()[0]["type"] == "json_invalid" else 422, sentence(error)) from None


def sentence(error: ValidationError | RequestValidationError) -> str:
    """What pydantic found wrong, for people."""
    found = []
    unknown = [str(one["loc"][-1])[:40] for one in error.errors() if one["type"] == "extra_forbidden"]
    if unknown:
        found.append(f"{', '.join(unknown[:3])}: unknown; known are {', '.join(Parameters.model_fields)}")
    for one in [one for one in error.errors() if one["type"] != "extra_forbidden"][:3]:
        where = ".".join(str(part) for part in one["loc"] if part != "query")
        found.append(f"{where}: {one['msg']}" if where else one["msg"])
    return "; ".join(found)
