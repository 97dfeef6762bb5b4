"""The journal of captions: a JSON line an image, each once, whoever was killed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from blip_lite.captioning.inputs import identity
from blip_lite.errors import ConfigError
from blip_lite.processing.download import is_url

IN = "\nbegun in "  # a line of the lock's file
BEGINS = b'{"image": '  # each line of a journal


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
        ConfigError: the file holds something else.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip(b"\0 \r\n"):  # what a power failure leaves
                continue
            if not (whole or raw.endswith(b"\n")) and raw[: len(BEGINS)] == BEGINS[: len(raw)]:
                return
            try:
                row = json.loads(raw)
                if not isinstance(row["image"], str) or "caption" not in row:
                    raise KeyError
                yield raw.decode("utf-8"), row
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ConfigError(
                    f"{path}, line {number}: not a line of captions; choose another --output, or --overwrite"
                ) from error


def parts_of(journal: Path) -> list[Path]:
    """What processes with a rank appended to, and one of them alone could not take up: `JOURNAL.rank-N`."""
    return sorted(journal.parent.glob(f"{glob.escape(journal.name)}.rank-*"))


def behind_links(path: Path) -> Path:
    """The file that is written into: what links lead to, so that they stay links, and one file has one lock."""
    return Path(os.path.realpath(path))


def directory_of(journal: Path) -> str | None:
    """Where the command that began the journal ran, by its lock's file; None if that is not known, or not there."""
    real = behind_links(journal)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        told = real.with_name(f".{real.name}.lock").read_text("utf-8").partition(IN)[2]
        return told if told and os.path.isdir(told) else None
    return None


def begin_here(lock: TextIO) -> None:
    """Say in a lock's file that its journal began in this directory."""
    lock.seek(0)
    told = lock.read().partition(IN)[0]
    lock.truncate(0)
    lock.write(f"{told}{IN}{os.getcwd()}")
    lock.flush()


def identity_in(base: str | None, name: str) -> str:
    """The identity of an image that was named in the directory `base`."""
    return identity(name if base is None or is_url(name) else os.path.join(base, name))


def take_up(path: Path, anew: bool = False) -> None:
    """Make one whole journal of what earlier runs, perhaps killed, of perhaps several processes, left: each image once,
    and one that failed first and was captioned later as it was captioned.

    Args:
        path: of the journal; processes with a rank append to `PATH.rank-N`.
        anew: even where there is nothing but a whole journal.

    Raises:
        ConfigError: a file that is no journal.
    """
    parts = [path, *parts_of(path)]
    ends = b"\n"
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as journal:
            journal.seek(-1, os.SEEK_END)
            ends = journal.read()
    if len(parts) == 1 and ends == b"\n" and not (anew and path.is_file()):
        return
    real = behind_links(path)
    base = directory_of(path)
    new, captioned, seen = real.with_name(f".{real.name}.new"), Seen(), Seen()
    for part in parts:
        for _, row in read_journal(part, whole=False):
            if "error" not in row:
                captioned.add(identity_in(base, row["image"]))
    with open(new, "w", encoding="utf-8") as file:
        for part in parts:
            for line, row in read_journal(part, whole=False):
                name = identity_in(base, row["image"])
                if not ("error" in row and name in captioned) and seen.add(name):
                    file.write(line)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, real)
    for part in parts[1:]:
        part.unlink()


def to_line(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # of a file name that is no UTF-8
        line = json.dumps(row)
    return line + "\n"
