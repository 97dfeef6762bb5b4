"""How far a long job is: a bar on a terminal, else a line now and then, so that a log shows that it lives."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")

EVERY = 30.0  # seconds


class Progress(Generic[T]):
    """The items of a job, with words about how many are done, how fast, and how long the rest takes.

    Attributes:
        total: how many there are, or None; may be set while it runs.
    """

    def __init__(self, items: Iterable[T], what: str, total: int | None = None, unit: str = "images") -> None:
        self.items, self.what, self.total, self.unit = items, what, total, unit

    def __iter__(self) -> Iterator[T]:
        if sys.stderr.isatty():
            bar = tqdm(self.items, self.what, self.total, unit=f" {self.unit}", delay=1)
            for item in bar:
                bar.total = self.total
                yield item
            return
        began = said = time.monotonic()
        for done, item in enumerate(self.items, 1):
            yield item
            if (now := time.monotonic()) - said >= EVERY:
                said, rate = now, done / (now - began)
                left = f", {(self.total - done) / rate / 60:.1f} min left" if self.total else ""
                of = f" of {self.total}" if self.total else ""
                print(f"{self.what}: {done}{of} {self.unit}, {rate:.1f} {self.unit}/s{left}", file=sys.stderr)
