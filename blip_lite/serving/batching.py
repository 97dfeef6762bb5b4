"""One thread owns the model and captions what waits together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blip_lite.captioner import Captioner
from blip_lite.model.generation import GenerationSettings

Pairs = list[tuple[str, float]]  # (caption, score), best first


@dataclass(eq=False)
class Job:
    """One image that waits: pixels `[3, S, S]`, how to caption it, and where its captions will be."""

    pixels: Tensor
    settings: GenerationSettings
    prompt: str | None = None
    future: Future[Pairs] = field(default_factory=Future)


class Batcher:
    """Captions the image that waits longest, in one batch with those that wait with the same settings.

    What is drawn (`do_sample`) depends on the batch, so those images are captioned with their own request's only.
    """

    def __init__(self, captioner: Captioner, batch_size: int, on_batch: Callable[[int], None]) -> None:
        """`on_batch` is told the number of images of each batch."""
        self.captioner, self.batch_size, self.on_batch = captioner, batch_size, on_batch
        self.waiting: list[Job] = []
        self.ready = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="captions", daemon=True)
        self.thread.start()

    def submit(self, jobs: Sequence[Job]) -> list[Future[Pairs]]:
        """Queue the images of one request, which share their `settings` object. A future that is cancelled in time is
        never captioned."""
        with self.ready:
            self.waiting += jobs
            self.ready.notify()
        return [job.future for job in jobs]

    def _work(self) -> None:
        while True:
            with self.ready:
                self.ready.wait_for(lambda: self.waiting)
                batch = self._next()
            if jobs := [job for job in batch if job.future.set_running_or_notify_cancel()]:
                self._caption(jobs)

    def _next(self) -> list[Job]:
        """Take the next batch out of `waiting`."""
        settings = self.waiting[0].settings
        alike = [
            job
            for job in self.waiting
            if (job.settings is settings if settings.do_sample else job.settings == settings)
        ]
        batch = alike[: self.batch_size]
        self.waiting = [job for job in self.waiting if job not in batch]
        return batch

    def _caption(self, jobs: list[Job]) -> None:
        """All in one; if that fails, in halves, to find the one at fault."""
        self.on_batch(len(jobs))
        try:
            pixels = torch.stack([job.pixels for job in jobs])
            found = self.captioner.caption_and_score(pixels, jobs[0].settings, [job.prompt for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                self._caption(jobs[: len(jobs) // 2])
                self._caption(jobs[len(jobs) // 2 :])
        else:
            for job, pairs in zip(jobs, found, strict=True):
                job.future.set_result(pairs)
