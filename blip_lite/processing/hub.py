"""The Hugging Face Hub, or its clients' cache where it does not answer: within seconds, not after six attempts."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS = 4.0  # in which the Hub has to answer anything at all


def from_hub(get: Callable[[], T]) -> T:
    """What `get` brings from the Hub by its clients, or from their cache.

    Raises:
        LookupError: it cannot be had; the message says why, and what helps.
    """
    silent = silence()
    try:
        with offline() if silent else contextlib.nullcontext():
            return get()
    except Exception as error:  # the clients raise a dozen unrelated types; all mean "cannot be had"
        reason = silent or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LookupError(
            f"not to be had from the Hub ({reason}){', and not in its cache' if silent else ''}. Is the name right? "
            "What is private or gated needs `hf auth login`. Without a network, give the path of a local folder, or "
            "bring the cache (~/.cache/huggingface) of a machine that has it and set HF_HUB_OFFLINE=1."
        ) from error


def silence() -> str:
    """Why the Hub cannot be asked; nothing if it answers, whatever it says. Its own clients ask six times, 23 s."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            found.append("")
        except Exception as error:  # of whatever library the client uses now
            found.append(f"{constants.ENDPOINT} does not answer: {error}")

    asking = threading.Thread(target=ask, daemon=True)  # looking a name up has no time limit of its own
    asking.start()
    asking.join(SECONDS)
    return found[0] if found else f"{constants.ENDPOINT} does not answer within {SECONDS:g} s"


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within, the Hub's clients use their cache alone, as with HF_HUB_OFFLINE, which they read once, at import."""
    from huggingface_hub import constants

    holders: list[Any] = [constants]
    if "datasets" in sys.modules:
        holders.append(sys.modules["datasets"].config)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value
