"""Signals and time limits: a run is asked to stop, and stops when it is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import torch

from blip_lite.data.batches import end_workers
from blip_lite.errors import TIME_UP

T = TypeVar("T")


def in_company() -> bool:
    """Whether other processes train with this one."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


class NoLongerWaiting(BaseException):
    """A signal came while the loop waited for images."""


class Stop:
    """Asks the loop to stop after its present step: SIGTERM, SIGINT (Ctrl-C), or a time limit in minutes, which begins
    here. A second signal ends the process at once. `with` takes the signals, and gives them back to who had them.

    Attributes:
        signal: the first one's number, or 0.
        cut: whether it ended a wait for images.
    """

    def __init__(self, minutes: float | None) -> None:
        self.signal, self.waiting, self.cut = 0, False, False
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.group: Any = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            self.__exit__()
            signal.raise_signal(number)
        self.signal = number
        if os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nstopping when this step is done and saved; once more ends at once\n")  # `print` may be busy
        if self.waiting:
            raise NoLongerWaiting

    def awaited(self, items: Iterable[T]) -> Iterator[T]:
        """The items. A signal ends the wait for one, be a read stuck for ever; not where other processes wait for this
        one at each step."""
        try:
            self.waiting = not in_company()
            for item in items:
                self.waiting = False
                yield item
                self.waiting = not in_company()
        except NoLongerWaiting:
            self.cut = True
            end_workers()
        finally:
            self.waiting = False

    def here(self, seconds: float = 0) -> int:
        """As `asked`, of this process alone."""
        return self.signal or (TIME_UP if time.monotonic() + seconds > self.deadline else 0)

    def asked(self, seconds: float) -> int:
        """0, a signal's number, or `TIME_UP` if the next `seconds` would pass the deadline; the same in all
        processes, whichever of them was asked."""
        asked = self.here(seconds)
        if in_company():
            # On the host, so that asking does not wait for the GPU.
            self.group = self.group or torch.distributed.new_group(backend="gloo")
            flag = torch.tensor(asked)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.group)
            asked = int(flag)
        return asked
