"""Tables: CSV, TSV, JSON lines, lists of JSON objects, and whatever else has columns."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from blip_lite.data.names import CAPTION_COLUMNS, IMAGE_COLUMNS, SPLIT_NAMES
from blip_lite.errors import DataError
from blip_lite.processing.download import cached
from blip_lite.processing.picture import Picture
from blip_lite.settings import DataSettings

T = TypeVar("T")


def pick_columns(columns: Sequence[str], settings: DataSettings, where: str, notes: list[str]) -> tuple[str, list[str]]:
    """The column of the image and those of the captions: as told, else by their usual names."""
    image = settings.image_column or next((c for c in IMAGE_COLUMNS if c in columns), None)
    numbered = [c for c in columns if re.fullmatch(r"(caption|text|sentence)[_ ]?\d+", c)]
    captions = settings.caption_column.split(",") if settings.caption_column else []
    captions = captions or [c for c in CAPTION_COLUMNS if c in columns][:1] or numbered
    there = f"there are: {', '.join(map(str, columns))}"
    if image is None or image not in columns:
        raise DataError(f"{where}: no column {image or 'file_name or image'}; {there}. Name it with --image_column")
    if not captions or not set(captions) <= set(columns):
        raise DataError(
            f"{where}: no column {', '.join(captions) or 'caption (or captions, or text)'}; {there}. Name "
            "it with --caption_column"
        )
    if not (settings.image_column and settings.caption_column):
        notes.append(f"{where}: images are in column {image!r}, captions in {', '.join(map(repr, captions))}")
    return image, captions


def captions_in(value: Any) -> list[str]:
    """All captions in a cell: a text, a list of them (as JSON text too), or Karpathy's `{"raw": ...}`."""
    if isinstance(value, str):
        if value.startswith('["'):
            with contextlib.suppress(ValueError):
                return captions_in(json.loads(value))
        return [value.strip()]
    if isinstance(value, Mapping):
        return captions_in(next((value[c] for c in ("raw", *CAPTION_COLUMNS) if c in value), None))
    if value is None:
        return []
    return [c for item in value for c in captions_in(item)] if isinstance(value, Iterable) else [str(value)]


def inside(root: Path, name: str, where: str) -> Path:
    """`root / name`. Raises DataError if that lies outside of `root`."""
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(os.path.join(base, "")):
        raise DataError(f"{where}: {name} lies outside {root}. If that is meant, say so with --image_root")
    return Path(path)


def table_rows(
    table: Iterable[tuple[str, Mapping[str, Any]]],
    root: Path,
    settings: DataSettings,
    notes: list[str],
    split: str | None = None,
    load: Callable[[int, str], bytes] | None = None,
) -> Iterator[Picture]:
    """Rows of any table.

    Args:
        table: (where, row) pairs.
        root: the folder to which image paths are relative.
        settings: for the columns, and whether URLs may be followed.
        notes: what was guessed is added here.
        split: of all rows; else a column `split` is looked at.
        load: (number of the row, column) -> the bytes again, where the table holds images.
    """
    columns: tuple[str, list[str]] | None = None
    for number, (where, row) in enumerate(table):
        columns = columns or pick_columns(list(row), settings, where, notes)
        image, names = columns
        value = row.get(image)
        captions = tuple(c for name in names for c in captions_in(row.get(name)))
        if len(names) > 1:  # caption_0 to caption_4, of which some images have fewer
            captions = tuple(c for c in captions if c)
        named = row.get("split")
        in_split = split or (SPLIT_NAMES.get(named) if isinstance(named, str) else None)
        if isinstance(value, Mapping):  # {"bytes", "path"}, as `datasets` keeps an image
            value = value.get("bytes") or value.get("path")
        if not value:
            raise DataError(f"{where}: no image in column {image}. Add it, or remove the row.")
        if isinstance(value, bytes):
            assert load is not None
            key = hashlib.sha256(value).hexdigest()[:16]
            yield Picture(key, partial(load, number, image), captions, where, in_split)
        elif not isinstance(value, str):
            raise DataError(f"{where}: column {image} holds {type(value).__name__}; expected a path, a URL or bytes")
        elif re.match(r"https?://", value, re.IGNORECASE):
            if not settings.allow_urls:
                raise DataError(
                    f"{where}: the image is a URL, {value}; --allow_urls downloads such images into a cache"
                )
            yield Picture(value, cached(value), captions, where, in_split, url=value)
        elif re.match(r"[a-z]{2,}:", value, re.IGNORECASE):
            raise DataError(f"{where}: {value}: only paths, http and https URLs are read")
        else:
            yield Picture(value, inside(root, value, where), captions, where, in_split)


def read_table(path: Path, strict: bool = True) -> Iterator[tuple[str, dict[Any, Any]]]:
    """("FILE, line N", row) of a CSV, TSV, JSONL or JSON file (a list of objects).

    Raises DataError for a bad row; if not `strict`, a JSONL row that cannot be read is `{None: REASON}`, and a CSV row
    with too many fields has those under None.
    """

    def bad(where: str, reason: str) -> tuple[str, dict[Any, Any]]:
        if strict:
            raise DataError(f"{where}: {reason}")
        return where, {None: reason}

    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise DataError(f"{path}: expected a list of objects, or the JSON of COCO or Karpathy")
        yield from ((f"{path}, item {number}", row) for number, row in enumerate(content, 1))
        return
    with open(path, encoding="utf-8-sig", newline="", errors="strict" if strict else "surrogateescape") as file:
        if path.suffix != ".jsonl":
            for row in (reader := csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")):
                where = f"{path}, line {reader.line_num}"
                if None in row and strict:  # a comma in a caption without quotes would cut it
                    raise DataError(f"{where}: more fields than columns; put captions with commas in quotes")
                yield where, row
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                yield bad(where, f"not valid JSON ({error})")
                continue
            yield (
                (where, row) if isinstance(row, dict) else bad(where, "expected an object, with file_name and caption")
            )


def utf8(path: Path, rows: Iterator[T]) -> Iterator[T]:
    """The rows; what the file's text is at fault for becomes a DataError."""
    try:
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
