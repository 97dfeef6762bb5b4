"""Signals and time limits: a run is asked to stop, and stops when it is saved."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch

from blip_lite.errors import TIME_UP


class Stop:
    """Asks the loop to stop after its present step: SIGTERM, SIGINT (Ctrl-C), or a time limit in minutes. A second
    signal ends the process at once. `with` gives the signals back to who had them."""

    def __init__(self, minutes: float | None) -> None:
        self.signal = 0
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

    def here(self, seconds: float = 0) -> int:
        """As `asked`, of this process alone."""
        return self.signal or (TIME_UP if time.monotonic() + seconds > self.deadline else 0)

    def asked(self, seconds: float) -> int:
        """0, a signal's number, or `TIME_UP` if the next `seconds` would pass the deadline; the same in all
        processes, whichever of them was asked."""
        asked = self.here(seconds)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # On the host, so that asking does not wait for the GPU.
            self.group = self.group or torch.distributed.new_group(backend="gloo")
            flag = torch.tensor(asked)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.group)
            asked = int(flag)
        return asked
