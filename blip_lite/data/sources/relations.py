"""Two tables, as a database exports them: pictures with their numbers, and captions of these numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from blip_lite.data.names import IMAGE_COLUMNS, caption_columns, find_column, plain
from blip_lite.data.sources.table import PROBE, read_table

SUFFIXES = (".csv", ".tsv")
_PICTURES = ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "file", "files")


def with_names(
    rows: Iterable[tuple[str, Mapping[str, Any]]], path: Path, notes: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of captions; where they say a picture's number alone (`image_id`), and a table beside has the name of each
    (`images.csv` with `id,file_name`), with that in a column `image`."""
    rows = iter(rows)
    first = list(islice(rows, PROBE))
    found = pictures_beside(path, [row for _, row in first])
    if found is None:
        yield from chain(first, rows)
        return
    table, column, names = found
    notes.append(f"{path.name}: the names of the images are in {table.name}, by {column}")
    for where, row in chain(first, rows):
        yield where, {**row, "image": names.get(number(row.get(column)), row.get(column))}


def pictures_beside(path: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[Path, str, dict[str, str]] | None:
    """(the table beside, the column of captions that it is about, number -> name of the picture). It has another
    column of that name, or one `id` and is called after pictures, with all the numbers of `rows`, each once."""
    columns = [column for column in (rows[0] if rows else ()) if column is not None]
    if not columns or find_column(columns, IMAGE_COLUMNS):
        return None
    keys = [c for c in columns if plain(c) != "id" and plain(c).endswith("id")]
    for table in sorted(p for p in path.parent.iterdir() if p.suffix.lower() in SUFFIXES and p != path):
        others = [row for _, row in read_table(table, strict=False)]
        there = [column for column in (others[0] if others else ()) if column is not None]
        file = find_column(there, [name for name in IMAGE_COLUMNS if not name.endswith("url")])
        if file is None or caption_columns(there):
            continue
        for key in keys:
            of_pictures = plain(table.stem) in _PICTURES and plain(key).removesuffix("id") in _PICTURES
            column = find_column(there, [key, "id"] if of_pictures else [key])
            names = {number(row.get(column)): str(row.get(file)).strip() for row in others}
            if column and len(names) == len(others) and all(number(row.get(key)) in names for row in rows):
                return table, key, names
    return None


def number(value: Any) -> str:
    """`7` and pandas' `7.0` are one."""
    return re.sub(r"(?<=\d)\.0$", "", str(value).strip())
