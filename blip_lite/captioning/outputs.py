"""The journal of captions -> the file that was asked for: CSV, Parquet, COCO's results; a `.txt` beside each image."""

from __future__ import annotations

import argparse
import codecs
import csv
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from blip_lite.captioning.inputs import lists_in
from blip_lite.captioning.journal import Seen, behind_links, parts_of, read_journal
from blip_lite.data.sources.encoding import utf16_of
from blip_lite.errors import ConfigError, DataError, ImageError
from blip_lite.processing.images import IMAGE_SUFFIXES, OTHER_PICTURES
from blip_lite.processing.picture import Picture
from blip_lite.settings import TABLES

SUFFIXES = (".jsonl", ".csv", ".parquet", ".json")


def journal_of(output: Path) -> Path:
    """Where captions are kept as they are made: the output itself if it is JSON lines, else `OUTPUT.jsonl` beside it.

    Raises:
        ConfigError: a suffix that is no format.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"--output {output}: expected a file that ends in {', '.join(SUFFIXES)}")
    return output if output.suffix == ".jsonl" else output.with_name(output.name + ".jsonl")


def discard(output: Path) -> None:
    """Delete what an earlier run wrote, its journal and what its processes left of it included."""
    for old in earlier(output):
        behind_links(old).unlink(missing_ok=True)


def earlier(output: Path) -> list[Path]:
    """Where earlier runs kept their captions."""
    return [output, journal_of(output), *parts_of(journal_of(output))]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that appears complete or not at all: write to the path given."""
    new = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}.new-{os.getpid()}")  # short
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def try_to_write(path: Path) -> None:
    """Raises ConfigError, before the first image, if a file cannot be written."""
    try:  # the file itself is neither made nor removed: another process may have it open
        path.parent.mkdir(parents=True, exist_ok=True)
        real = behind_links(path)
        if real.exists() and not real.is_file():
            kind = "a folder" if real.is_dir() else "a pipe or a device, not a file"
            raise ConfigError(f"{path}: cannot be written ({kind})")
        with open(real, "r+b") if os.path.lexists(real) else tempfile.TemporaryFile(dir=real.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error


PAGE = b"<title>Correct captions</title>"  # in the head of each page that `--html` wrote


def try_to_write_page(path: Path) -> None:
    """`try_to_write` of `--html`. Another file than a page of ours may be one that is needed: a picture, a
    checkpoint's, somebody's page."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--html {path}: expected a file that ends in .html")
    try_to_write(path)
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(4096)
        if head and PAGE not in head:
            raise ConfigError(f"--html {path}: is a page that blip-lite did not write; choose another name")


def convert(journal: Path, output: Path) -> None:
    """Write the captions of a journal as the format that the output's suffix says. Constant memory, but for COCO's
    results, which hold each id.

    In CSV several captions of an image are a JSON list.
    """
    if output == journal:
        return
    write: dict[str, Callable[[Path, Path], None]] = {".csv": to_csv, ".parquet": to_parquet, ".json": to_coco}
    with whole(behind_links(output)) as new:
        write[output.suffix](journal, new)
        made = os.stat(journal).st_mtime_ns
        os.utime(new, ns=(made, made))  # as old as its journal: what is younger was changed


def is_edited(journal: Path, output: Path) -> bool:
    """Whether somebody changed what `convert` made of the journal: it is younger, and says something else."""
    if output == journal or not output.is_file() or os.stat(output).st_mtime_ns <= os.stat(journal).st_mtime_ns:
        return False
    with tempfile.TemporaryDirectory(dir=behind_links(output).parent) as folder:
        again = Path(folder, f"again{output.suffix}")
        convert(journal, again)
        return not (begins_as_table if output.suffix == ".parquet" else begins_as_text)(output, again)


def begins_as_text(output: Path, again: Path) -> bool:
    """Whether a CSV or JSON file is how another one begins: what was made before some more captions does."""
    left = output.stat().st_size - 2  # JSON's end
    with open(again, "rb") as made, open(output, "rb") as there:
        while left > 0:
            size = min(left, 1 << 20)
            if made.read(size) != there.read(size):
                return False
            left -= size
    return True


def begins_as_table(output: Path, again: Path) -> bool:
    """Whether the rows of a Parquet file are the first ones of another one. Its bytes are another library's, too."""
    import pyarrow as pa
    import pyarrow.parquet

    def rows(path: Path) -> Iterator[dict[str, Any]]:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from (row for batch in file.iter_batches(10_000) for row in batch.to_pylist())

    try:
        made = rows(again)
        return all(row == next(made, None) for row in rows(output))
    except (pa.ArrowException, OSError):  # no Parquet
        return False


def columns(journal: Path) -> dict[str, bool]:
    """The columns of a journal, and whether any row has a list there."""
    found = {"image": False, "caption": False}
    for _, row in read_journal(journal):
        for name, value in row.items():
            found[name] = found.get(name, False) or isinstance(value, list)
    return found


def to_csv(journal: Path, output: Path) -> None:
    with open(output, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(columns(journal)))
        writer.writeheader()
        for _, row in read_journal(journal):
            lists = {k: json.dumps(v, ensure_ascii=False) for k, v in row.items() if isinstance(v, list)}
            writer.writerow({**row, **lists, "image": no_formula(row["image"])})


def no_formula(name: str) -> str:
    """A file's name that no spreadsheet runs: `=1.png` -> `./=1.png`, the same file."""
    return f"./{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def to_parquet(journal: Path, output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    # Several captions an image make lists; a failure has none, so one list anywhere makes the column one of lists.
    fields: list[tuple[str, Any]] = []
    for name, has_list in columns(journal).items():
        kind = pa.float64() if name == "score" else pa.string()
        fields.append((name, pa.list_(kind) if has_list else kind))
    schema = pa.schema(fields)

    def cell(value: Any, kind: Any) -> Any:
        if pa.types.is_list(kind) and value is not None and not isinstance(value, list):
            value = [value]  # one of a run that asked for one
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value

    rows = (row for _, row in read_journal(journal))
    with pyarrow.parquet.ParquetWriter(output, schema) as writer:
        while part := list(islice(rows, 10_000)):
            cells = {f.name: [cell(row.get(f.name), f.type) for row in part] for f in schema}
            writer.write_table(pa.table(cells, schema))


def to_coco(journal: Path, output: Path) -> None:
    """COCO's results: `[{"image_id", "caption"}]`, of images that have a caption, the best one each.

    The id is the number at the end of the file's name (`COCO_val2014_000000391895.jpg`: 391895) if all names have one,
    else the name without suffix, else, if two images share that, what the journal calls the image.
    """
    names = [row["image"] for _, row in read_journal(journal) if row["caption"] is not None]
    stems = [Path(name).stem for name in names]
    numbers = [int(m[1]) if (m := re.search(r"(?:^|_)(\d+)$", stem)) else None for stem in stems]
    ids: list[Any] = numbers if None not in numbers else stems
    ids = ids if len(set(ids)) == len(ids) else names
    at = iter(ids)
    with open(output, "w", encoding="utf-8", errors="backslashreplace") as file:
        separator = "["
        for _, row in read_journal(journal):
            if row["caption"] is not None:
                best = row["caption"] if isinstance(row["caption"], str) else row["caption"][0]
                file.write(separator + json.dumps({"image_id": next(at), "caption": best}))
                separator = ",\n"
        file.write("[]\n" if separator == "[" else "]\n")


def write_sidecar(path: Path, captions: list[str], existing: str) -> bool:
    """Write captions, one a line, beside their image; whether that was done.

    Args:
        path: of the text.
        captions: of the image.
        existing: what to do with a text that is there: skip, overwrite, append, prepend.

    Raises:
        ImageError: a text in UTF-16, to which nothing can be added.
    """
    if path.exists() and existing == "skip":
        return False
    text = "".join(caption + "\n" for caption in captions).encode("utf-8", "backslashreplace")
    if path.exists() and existing in ("append", "prepend"):
        there = path.read_bytes()  # in UTF-8 or one of the older encodings
        if utf16_or_32(path):
            raise ImageError(f"{path} is in UTF-16 or UTF-32, to which no UTF-8 can be added: save it as UTF-8")
        mark = codecs.BOM_UTF8 if there.startswith(codecs.BOM_UTF8) else b""
        there = there.removeprefix(mark)
        old, new = there.splitlines(), text.splitlines()
        if (old[-len(new) :] if existing == "append" else old[: len(new)]) == new:
            return False  # the command was run before
        if existing == "append":
            text = there + (b"\n" if there and not there.endswith(b"\n") else b"") + text
        else:
            text += there
        text = mark + text
    with whole(path) as new_file:
        new_file.write_bytes(text)
    return True


def utf16_or_32(path: Path) -> bool:
    """Whether a text is in one of the two, which no program reads with UTF-8 behind it."""
    try:
        return utf16_of(path) is not None
    except DataError:
        return True


EMPTY = "empty caption"  # a flag for review


class Sidecars:
    """Which texts belong to which image: one each."""

    def __init__(self, suffix: str, inputs: Iterable[str]) -> None:
        """Raises ConfigError for a suffix that is none, or one of pictures or tables, which would be written over."""
        kept = {*IMAGE_SUFFIXES, *OTHER_PICTURES, *TABLES, ".tar"}
        if not re.fullmatch(r"\.[^./\\]+", suffix) or suffix.lower() in kept:
            raise ConfigError(f"--sidecar_suffix {suffix}: expected one of texts, like .txt or .caption")
        self.suffix, self.owners, self.inputs = suffix, Seen(), {os.path.abspath(name) for name in lists_in(inputs)}

    def of(self, picture: Picture) -> Path:
        """`photo.jpg` -> `photo.txt`. Raises ImageError for an image that is no file of its own, for the second of two
        that would share one, and where it would overwrite what is read."""
        if not isinstance(picture.image, str):
            raise ImageError("--sidecar: no file that a text could lie beside; use --output")
        text = Path(picture.image).with_suffix(self.suffix)
        if os.path.abspath(text) in self.inputs:
            raise ImageError(f"--sidecar: {text} is a list that is read; use --output or --sidecar_suffix")
        if not self.owners.add(os.path.abspath(text)):
            raise ImageError(f"--sidecar: {text} is that of another image of this name; use --output")
        return text


def write_sidecars(journal: Path, args: argparse.Namespace) -> tuple[int, int]:
    """Write the captions of a journal beside those of its images that are files. Returns how many were written, and
    how many could not be."""
    written = failed = 0
    sidecars = Sidecars(args.sidecar_suffix, args.images)
    for _, row in read_journal(journal):
        if row["caption"] is not None and os.path.isfile(row["image"]):
            captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
            if EMPTY in row.get("review", ()) or not any(map(str.strip, captions)):
                continue
            try:
                text = sidecars.of(Picture(row["image"], row["image"]))
                written += write_sidecar(text, captions, args.existing)
            except (ImageError, OSError) as error:
                failed += 1
                print(f"error: {row['image']}: {error}", file=sys.stderr)
    return written, failed
