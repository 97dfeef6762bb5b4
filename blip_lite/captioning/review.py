"""Captions, and what people decide of them -> `reviewed.csv`, which `train` takes.

It has a row for each caption of an approved picture, and of a rejected one, whose `is_rejected` keeps it from training.
It is made from a journal beside it, `reviewed.csv.jsonl`: a line for each decision; the last one of a picture holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip_lite.captioning.inputs import identity, named
from blip_lite.captioning.journal import behind_links, to_line
from blip_lite.captioning.outputs import Sidecars, try_to_write, whole, write_sidecar
from blip_lite.captioning.review_table import (
    COLUMNS,
    STATUSES,
    Decision,
    image_root,
    names_in_table,
    one_line,
    read_edited,
    table_of,
    wrong_with,
)
from blip_lite.data.names import plain
from blip_lite.data.sources.table import read_table, unescaped
from blip_lite.errors import ConfigError, DataError, ImageError
from blip_lite.processing.download import is_url
from blip_lite.processing.picture import Picture
from blip_lite.reports.review import MOST, Item, embed, find_doubts, review_page
from blip_lite.storage import lock


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
        if rows and None in rows[-1][1] and path.suffix.lower() == ".jsonl" and not path.read_bytes().endswith(b"\n"):
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
        with contextlib.suppress(ValueError, RecursionError):  # a caption in brackets
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
    with whole(behind_links(path)) as new:
        new.write_text(page, "utf-8")


def next_command(table: str, places: Sequence[str], folder: Path) -> str:
    """What trains on a table of these images; CHECKPOINT is that which captioned them."""
    words = ["blip-lite", "train", "--dataset", table, "--model", "CHECKPOINT"]
    if root := image_root(places, folder):
        words += ["--image_root", root]
    if any(map(is_url, places)):
        words.append("--allow_urls")
    return shlex.join(words)


class Review:
    """Captions, and what was decided of them, on disk after every decision.

    Args:
        captions: what `blip-lite caption` wrote.
        output: the table; its journal lies beside it. What they hold already is gone on with, and so is what a person
            changed in the table, before and while this runs.
        sidecar_suffix: also keep a text of this suffix beside each approved picture.
        allow_urls: whether pictures at URLs are fetched.

    Raises:
        ConfigError, DataError, CheckpointError: files that are something else, or in use.
    """

    def __init__(
        self, captions: Path, output: Path, sidecar_suffix: str | None = None, allow_urls: bool = False
    ) -> None:
        if output.suffix.lower() != ".csv" or behind_links(output) == behind_links(captions):
            raise ConfigError(f"--output {output}: expected another file that ends in .csv")
        self.output, self.journal = output, output.with_name(output.name + ".jsonl")
        if behind_links(self.journal) == behind_links(captions):
            raise ConfigError(f"--output {output}: its journal would be {captions}; choose another name")
        self.allow_urls, self.items = allow_urls, read_captions(captions, allow_urls)
        self.by_key = {item.key: item for item in self.items}
        self.by_place = {place_of(item.picture): item for item in self.items}
        self.decided: dict[str, Decision] = {}  # those that hold, by place, the last one last
        self.more: dict[str, list[dict[str, str]]] = {}  # what a person wrote beside them, undone ones included
        self.added: list[str] = []  # columns that a person added
        self.texts: dict[str, set[bytes]] = {}  # of sidecars: the machine's, and those of all decisions
        self.saving = threading.Lock()
        for path in (self.output, self.journal):
            try_to_write(path)
        self.lock = lock(output, output.with_name(f".{output.name}.lock"))
        self.sidecars = self.sidecars_of(sidecar_suffix) if sidecar_suffix else {}
        self.written = self.replay()  # the table as we wrote it last
        self.remark = self.take_over()  # what a person has changed in it since
        if self.journal.exists():
            self.write_table()
        for decision in self.decided.values():
            self.write_sidecar(decision)

    def __enter__(self) -> Review:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()

    def replay(self) -> bytes:
        """Read the journal, without half a line that a killed process left. Returns the table that it led to."""
        lines = self.journal.read_bytes().splitlines(keepends=True) if self.journal.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(self.journal, sum(map(len, lines[:-1])))
            lines.pop()
        before: bytes | None = None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                place = row["image"]
                if not is_url(place):
                    place = os.path.join(os.path.abspath(self.output.parent), place)
                more = [dict(cells) for cells in row.get("more", ())]
                decision = Decision(place, row["status"], list(row["captions"]), list(row["machine"]), more)
                if decision.status not in STATUSES:
                    raise ValueError
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ConfigError(f"{self.journal}, line {number}: not a decision; choose another --output") from error
            before = self.table() if number == len(lines) else before
            self.take(decision)
        if self.output.exists() and self.output.read_bytes() == before:
            # Killed before the table was written, or did a person remove the last row since?
            written, decided = self.output.stat().st_mtime_ns, self.journal.stat().st_mtime_ns
            return before if written <= decided else self.table()
        return self.table()

    def take_over(self) -> str:
        """Take over what a person changed in the table since it was written, and say what; mostly "".

        Raises:
            ConfigError: it is no table of a review.
            DataError: what could mean several things; neither the table nor anything else is changed.
        """
        if not self.output.exists() or self.output.read_bytes() == self.written:
            return ""
        if not self.journal.exists():  # of a page that was downloaded, or of somebody else?
            _, row = next(read_table(self.output), ("", {}))
            if not {plain(column) for column in row} >= {plain(column) for column in COLUMNS}:
                raise ConfigError(
                    f"--output {self.output}: is there, but is no table of `review`, and {self.journal.name}, from "
                    "which one is made, is not; choose another"
                )
        machine = {place: item.machine for place, item in self.by_place.items()}
        changed, self.added = read_edited(self.output, self.decided, machine)
        count = Counter(
            "removed" if not one.status else "changed" if one.place in self.decided else "added" for one in changed
        )
        self.append(*changed)
        for decision in changed:
            self.take(decision)
            self.write_sidecar(decision)
        found = ", ".join(f"{count[what]} {what}" for what in ("changed", "added", "removed") if count[what])
        return f"{self.output.name} was edited by hand: {found}" if found else ""

    def take(self, decision: Decision) -> None:
        self.texts.setdefault(decision.place, set()).update(map(text_of, (decision.machine, decision.captions)))
        self.more[decision.place] = decision.more
        self.decided.pop(decision.place, None)
        if decision.status:
            self.decided[decision.place] = decision
        if item := self.by_place.get(decision.place):
            item.status = decision.status
            item.captions = decision.captions if decision.status else item.machine

    def decide(self, key: str, status: str, captions: Sequence[str], seen: Sequence[str] | None = None) -> str:
        """Save a decision. Returns a remark for the person, mostly "".

        Args:
            seen: the status and the captions that the person saw, so that a word of somebody else is not lost unseen.

        Raises:
            ConfigError: no such picture or status, or captions that no data set could be read back with.
            DataError: a person has edited the table meanwhile, so that it could mean several things.
            OSError: it could not be written, and is not taken.
        """
        item = self.by_key.get(key)
        if item is None or item.problem or status not in STATUSES:
            raise ConfigError("no such picture or decision")
        captions = list(filter(None, map(one_line, captions))) if status == "approved" else item.machine
        if status == "approved" and (reason := wrong_with(captions)):
            raise ConfigError(reason)
        place = place_of(item.picture)
        with self.saving:
            remark = self.take_over()
            had = [item.status, *item.captions]
            unseen = seen is not None and list(map(one_line, seen)) != had != [status, *captions]
            decision = Decision(place, status, list(captions), item.machine, self.more.get(place, []))
            self.append(decision)
            self.take(decision)
            self.write_table()
            replaced = (
                f"You replaced what another window had {had[0] or 'undone'}: {item.name}, {' | '.join(had[1:])!r}"
            )
            remarks = [f"{one}. Reload this page to see it" for one in (remark, replaced if unseen else "") if one]
            remarks.append(self.write_sidecar(decision))
            return "; ".join(filter(None, remarks))

    def append(self, *decisions: Decision) -> None:
        """Add lines to the journal, on the disk when this returns; or nothing."""
        base = os.path.join(os.path.abspath(self.output.parent), "")
        rows = [{**asdict(one), "image": one.place.removeprefix(base)} for one in decisions]
        lines = [to_line({k: v for k, v in row.items() if k != "place" and (k != "more" or v)}) for row in rows]
        size = self.journal.stat().st_size if self.journal.exists() else 0
        with open(self.journal, "ab") as file:
            try:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.journal, size)
                raise

    def table(self) -> bytes:
        """`reviewed.csv`, of the decisions that hold."""
        return table_of(list(self.decided.values()), self.output.parent, self.added)

    def write_table(self) -> None:
        table = self.table()
        with whole(behind_links(self.output)) as new:
            new.write_bytes(table)
        self.written = table

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
