"""Captions, and what people decide of them -> `reviewed.csv`, which `train` takes.

It has a row for each approved caption, and one for each rejected picture, whose `is_rejected` keeps it out of training.
It is made from a journal beside it, `reviewed.csv.jsonl`: a line for each decision; the last one of a picture holds.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_lite.captioning.inputs import identity, is_url, named
from blip_lite.captioning.journal import to_line
from blip_lite.captioning.outputs import Sidecars, try_to_write, whole, write_sidecar
from blip_lite.data.sources.table import captions_in, read_table, unescaped
from blip_lite.errors import ConfigError, DataError, ImageError
from blip_lite.processing.picture import Picture
from blip_lite.processing.text import has_words
from blip_lite.reports.review import MOST, Item, embed, find_doubts, review_page
from blip_lite.storage import lock

STATUSES = ("approved", "rejected", "")  # "": a decision that was undone
COLUMNS = ("image", "caption", "is_rejected", "machine_caption")


def read_captions(path: Path, allow_urls: bool = False, folder: Path | None = None) -> list[Item]:
    """What `blip-lite caption` wrote, as JSON lines or CSV.

    Args:
        path: of the captions.
        allow_urls: whether pictures at URLs are fetched.
        folder: that of the table to be; default: where the captions are.

    Raises:
        DataError: something else is in it, or none of its pictures is there.
    """
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ConfigError(
            f"{path}: expected a .jsonl or .csv that `blip-lite caption` wrote; beside others lies a .jsonl"
        )
    pairs, seen = [], set[str]()
    try:
        rows = list(read_table(path, strict=False))
        if rows and None in rows[-1][1] and path.suffix == ".jsonl" and not path.read_bytes().endswith(b"\n"):
            rows.pop()  # half a line, of a process that was killed
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    for where, row in rows:
        if None in row:
            raise DataError(f"{where}: {row[None]}")
        name = row.get("image")
        if not isinstance(name, str) or not name or "caption" not in row:
            raise DataError(f"{where}: no image and caption. Name a file that `blip-lite caption` wrote")
        name = unescaped(name)
        here = is_url(name) or os.path.exists(name)
        picture = named(name, None if here else path.parent, allow_urls)
        if identity(picture.image_id) in seen:
            raise DataError(f"{where}: {name} is there twice. Remove one of the two")
        seen.add(identity(picture.image_id))
        row = {key: value_in(row[key]) for key in row}
        if is_url(name) and not allow_urls:
            row["error"] = "a URL; --allow_urls fetches it"
        pairs.append((picture, row))
    if not pairs:
        raise DataError(f"{path}: holds no captions")
    items = items_of(pairs, folder or path.parent)
    if all(item.problem == NO_FILE for item in items):
        raise DataError(
            f"{path}: none of its images is there, e.g. {items[0].picture.image_id}. Run where `caption` ran"
        )
    return items


def value_in(cell: Any) -> Any:
    """A cell of CSV as JSON lines have it: what is a list there is one."""
    if isinstance(cell, str) and cell[:1] == "[":
        with contextlib.suppress(ValueError):  # a caption in brackets
            return json.loads(cell)
    return cell


NO_FILE = "there is no such file"


def items_of(pairs: Iterable[tuple[Picture, dict[str, Any]]], folder: Path) -> list[Item]:
    """(picture, its row in the journal of captions) -> what the page shows, in that order.

    Args:
        folder: that of the table to be, to which its paths are relative.
    """
    pairs = list(pairs)
    names = names_in_table([place_of(picture) for picture, _ in pairs], folder)
    items = []
    for (picture, row), name in zip(pairs, names, strict=True):
        captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"] or ""]
        score: Any = row.get("score")
        score = score[0] if isinstance(score, list) and score else score
        item = Item(picture, name, [line for caption in captions if (line := one_line(str(caption)))])
        try:
            item.score = None if score in (None, "") else float(score)
        except (TypeError, ValueError) as error:
            raise DataError(f"{picture.image_id}: its score is {score!r}; expected a number") from error
        flags = row.get("review") or []
        item.doubts = [str(flag) for flag in (flags if isinstance(flags, list) else [flags])]
        item.problem = str(row.get("error") or problem_of(picture))
        items.append(item)
    find_doubts(items)
    return items


def problem_of(picture: Picture) -> str:
    """Why a picture cannot be a row of a table; "" if it can."""
    if is_url(picture.image_id):
        return ""
    if not isinstance(picture.image, str):
        return "no file of its own, so it can be looked at only; unpack the shard or table to correct its captions"
    if re.search(r"[\r\n]", picture.image):
        return "a line break in its name, which no table takes; rename it"
    return "" if os.path.isfile(picture.image) else NO_FILE


def place_of(picture: Picture) -> str:
    """Where it lies: its URL, or its absolute path."""
    return picture.image_id if is_url(picture.image_id) else os.path.abspath(picture.image_id)


def image_root(places: Iterable[str], folder: Path) -> str | None:
    """The folder that `--image_root` is to name: none where all files lie in `folder`."""
    base = os.path.abspath(folder)
    files = [place for place in places if not is_url(place)]
    if all(place.startswith(os.path.join(base, "")) for place in files):
        return None
    return os.path.commonpath([os.path.dirname(place) for place in files])


def names_in_table(places: Sequence[str], folder: Path) -> list[str]:
    """What a table in `folder` calls images, so that `train` finds them: all by relative paths, or, where one of them
    lies elsewhere, by absolute ones. What a reader would take for something else (`C:`, a blank) gets `./`."""
    if image_root(places, folder) is not None:
        return list(places)
    base = os.path.abspath(folder)
    names = [place if is_url(place) else Path(os.path.relpath(place, base)).as_posix() for place in places]
    return [name if is_url(name) or re.fullmatch(r"[^\W_][\w. /-]*\w", name) else f"./{name}" for name in names]


def one_line(text: str) -> str:
    """A caption without line breaks and what else no line of text holds."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip().encode("utf-8", "replace").decode()


def wrong_with(captions: Sequence[str]) -> str | None:
    """Why a data set could not be read back with these captions; None if it can."""
    if not captions:
        return "an approved picture needs a caption"
    for caption in captions:
        if not has_words(caption):
            return f"{caption!r} has no letter and no digit"
        if captions_in(caption) != [caption]:
            return f"a table reads {caption!r} as empty, or as a list"
    return None


def write_page(path: Path, items: Sequence[Item], more: bool = False) -> None:
    """The page as one file: of the first pictures that it holds, the doubtful ones first.

    Args:
        more: there are pictures that are not among the items.
    """
    held = sorted(items, key=lambda item: item.order)[:MOST]
    embed(held)
    less = (
        f"The page holds {MOST} pictures and stays below 10 MB. The others are left out; `blip-lite review` shows all."
    )
    page = review_page(
        held,
        next_command("reviewed.csv", [place_of(item.picture) for item in held if not item.problem], path.parent),
        folder=os.path.abspath(path.parent),
        left_out=less if more or len(items) > MOST else "",
    )
    with whole(path) as new:
        new.write_text(page, "utf-8")


def next_command(table: str, places: Sequence[str], folder: Path) -> str:
    """What trains on a table of these images; CHECKPOINT is that which captioned them."""
    words = ["blip-lite", "train", "--dataset", table, "--model", "CHECKPOINT"]
    if root := image_root(places, folder):
        words += ["--image_root", root]
    if any(map(is_url, places)):
        words.append("--allow_urls")
    return shlex.join(words)


@dataclass
class Decision:
    """What a person said of the picture at `place`; `status` is one of `STATUSES`."""

    place: str
    status: str
    captions: list[str]
    machine: list[str]


class Review:
    """Captions, and what was decided of them, on disk after every decision.

    Args:
        captions: what `blip-lite caption` wrote.
        output: the table; its journal lies beside it. What they hold already is gone on with.
        sidecar_suffix: also keep a text of this suffix beside each approved picture.
        allow_urls: whether pictures at URLs are fetched.

    Raises:
        ConfigError, DataError, CheckpointError: files that are something else, or in use.
    """

    def __init__(
        self, captions: Path, output: Path, sidecar_suffix: str | None = None, allow_urls: bool = False
    ) -> None:
        if output.suffix.lower() != ".csv" or output.resolve() == captions.resolve():
            raise ConfigError(f"--output {output}: expected another file that ends in .csv")
        self.output, self.journal = output, output.with_name(output.name + ".jsonl")
        if self.journal.resolve() == captions.resolve():
            raise ConfigError(f"--output {output}: its journal would be {captions}; choose another name")
        self.allow_urls, self.items = allow_urls, read_captions(captions, allow_urls)
        self.by_key = {item.key: item for item in self.items}
        self.decided: dict[str, Decision] = {}  # by place
        self.texts: dict[str, set[bytes]] = {}  # of sidecars: the machine's, and those of all decisions
        self.saving = threading.Lock()
        for path in (self.output, self.journal):
            try_to_write(path)
        self.lock = lock(output, output.with_name(f".{output.name}.lock"))
        self.take_up()
        self.sidecars = self.sidecars_of(sidecar_suffix) if sidecar_suffix else {}
        for item in self.items:
            if decision := self.decided.get(place_of(item.picture)):
                item.status, item.captions = decision.status, decision.captions
                self.write_sidecar(decision)

    def __enter__(self) -> Review:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock:
            self.lock.close()

    def take_up(self) -> None:
        """Read the journal; mend what a killed process left, refuse what somebody else wrote."""
        if self.output.exists() and not self.journal.exists():
            raise ConfigError(
                f"--output {self.output}: is there, but {self.journal.name}, from which it is made, "
                "is not; choose another"
            )
        if not self.journal.exists():
            return
        lines = self.journal.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(self.journal, sum(map(len, lines[:-1])))
            lines.pop()
        before = b""
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                place = row["image"]
                if not is_url(place):
                    place = os.path.join(os.path.abspath(self.output.parent), place)
                decision = Decision(place, row["status"], list(row["captions"]), list(row["machine"]))
                if decision.status not in STATUSES:
                    raise ValueError
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{self.journal}, line {number}: not a decision; choose another --output") from error
            before = self.table() if number == len(lines) else before
            self.take(decision)
        there = self.output.read_bytes() if self.output.exists() else None
        if there not in (None, before, self.table()):  # before: killed between the two
            raise ConfigError(
                f"--output {self.output}: was changed by something else, and would be written over. Train on it, or "
                "move it away and go on from its journal"
            )
        self.write_table()

    def take(self, decision: Decision) -> None:
        self.texts.setdefault(decision.place, set()).update(map(text_of, (decision.machine, decision.captions)))
        self.decided.pop(decision.place, None)
        if decision.status:
            self.decided[decision.place] = decision

    def decide(self, key: str, status: str, captions: Sequence[str]) -> str:
        """Save a decision. Returns a remark for the person, mostly "".

        Raises:
            ConfigError: no such picture or status, or captions that no data set could be read back with.
            OSError: it could not be written, and is not taken.
        """
        item = self.by_key.get(key)
        if item is None or item.problem or status not in STATUSES:
            raise ConfigError("no such picture or decision")
        captions = list(filter(None, map(one_line, captions))) if status == "approved" else item.machine
        if status == "approved" and (reason := wrong_with(captions)):
            raise ConfigError(reason)
        decision = Decision(place_of(item.picture), status, list(captions), item.machine)
        with self.saving:
            self.append(decision)
            self.take(decision)
            item.status, item.captions = status, decision.captions
            self.write_table()
            return self.write_sidecar(decision)

    def append(self, decision: Decision) -> None:
        """Add a line to the journal, on the disk when this returns; or nothing."""
        base = os.path.join(os.path.abspath(self.output.parent), "")
        row = {**vars(decision), "image": decision.place.removeprefix(base)}
        del row["place"]
        size = self.journal.stat().st_size if self.journal.exists() else 0
        with open(self.journal, "ab") as file:
            try:
                file.write(to_line(row).encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.journal, size)
                raise

    def table(self) -> bytes:
        """`reviewed.csv`: names that are no UTF-8 with `\\udc..`, as `train` reads them."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        names = names_in_table(list(self.decided), self.output.parent)
        for name, one in zip(names, self.decided.values(), strict=True):
            machine = " | ".join(one.machine)
            if one.status == "rejected":
                writer.writerow((name, machine, "true", machine))
            else:
                writer.writerows((name, caption, "false", machine) for caption in one.captions)
        return text.getvalue().encode("utf-8", "backslashreplace")

    def write_table(self) -> None:
        with whole(self.output) as new:
            new.write_bytes(self.table())

    def sidecars_of(self, suffix: str) -> dict[str, Path]:
        """The text of each picture that may have one, by place. Raises ConfigError for a suffix that is none."""
        texts, found = Sidecars(suffix, ()), {}
        for item in self.items:
            try:
                found[place_of(item.picture)] = texts.of(item.picture)
                self.texts.setdefault(place_of(item.picture), set()).add(text_of(item.machine))
            except ImageError as error:  # no file, or a second one of this name
                item.doubts.append(str(error))
        return found

    def write_sidecar(self, decision: Decision) -> str:
        """Keep an approved picture's text beside it, and none beside others. One that neither the machine nor this
        review wrote stays. Returns a remark."""
        path = self.sidecars.get(decision.place)
        if path is None:
            return ""
        if path.exists() and path.read_bytes() not in self.texts[decision.place]:
            return f"{path.name} holds another text and stays as it is"
        if decision.status == "approved":
            write_sidecar(path, decision.captions, "overwrite")
        else:
            path.unlink(missing_ok=True)
        return ""

    def progress(self) -> str:
        """`12 of 30 approved, 3 rejected`."""
        count = [item.status for item in self.items if not item.problem]
        return f"{count.count('approved')} of {len(count)} approved, {count.count('rejected')} rejected"

    def then(self) -> str:
        return next_command(str(self.output), list(self.decided), self.output.parent)

    def page(self) -> str:
        """The page as it is now; its pictures are at `picture/KEY`."""
        for item in self.items:
            item.src = "" if item.problem else f"picture/{item.key}"
        return review_page(self.items, self.then(), saves_to=str(self.output))


def text_of(captions: Sequence[str]) -> bytes:
    """What a sidecar holds."""
    return "".join(caption + "\n" for caption in captions).encode("utf-8", "backslashreplace")
