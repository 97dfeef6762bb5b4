"""Threads that nobody waits for without end: one may hang in a read of a broken disk for ever."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 2.0  # seconds in which threads end: one that Python cuts off inside of torch aborts the process


class Threads(Executor):
    """As `ThreadPoolExecutor`, whose threads Python joins before it ends, so that Ctrl-C would not end it. What waits
    when the pool is left is dropped, and a thread that is stuck is left behind."""

    def __init__(self, count: int) -> None:
        self.jobs = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _work(self) -> None:
        while job := self.jobs.get():
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, call  # and the memory that they hold, which an idle thread would keep

    def submit(self, call: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        future = Future[T]()
        self.jobs.put((future, lambda: call(*args, **options)))
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Waits for `PATIENCE` at most."""
        with contextlib.suppress(queue.Empty):
            while job := self.jobs.get_nowait():
                job[0].cancel()
        for _ in self.threads:
            self.jobs.put(None)
        end = time.monotonic() + PATIENCE
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
