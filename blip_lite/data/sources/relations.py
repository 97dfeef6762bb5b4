"""Two tables, as a database exports them: pictures with their numbers, and captions of these numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from blip_lite.data.names import IMAGE_COLUMNS, caption_columns, find_column, plain, split_of_name, words_in
from blip_lite.data.sources.marks import is_empty
from blip_lite.data.sources.table import ANNOTATIONS, PROBE, header_of, read_table
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES

_WORDS = ("image", "img", "picture", "pic", "photo", "file", "media", "asset")
_PICTURES = {*_WORDS, *(f"{word}s" for word in _WORDS)}
_KEY = re.compile(
    rf"(?:{'|'.join(_WORDS)})(?:id|uid|uuid|no|nr|num|number|key|fk|ref|idx|index)|(?:id|fk)(?:image|img)"
)
_FILES = [name for name in IMAGE_COLUMNS if not name.endswith("url")]

Row = Mapping[str, Any]


class Relation(NamedTuple):
    """What a table beside says of the pictures.

    Attributes:
        table: that table.
        key: the captions' column that holds numbers of pictures.
        rows: of that table, by number, with the picture's name under `image`.
        called: whether the table is called after pictures, and so about nothing else.
    """

    table: Path
    key: str
    rows: dict[str, Row]
    called: bool


def with_pictures(
    rows: Iterable[tuple[str, Row]], path: Path, are_there: Callable[[Sequence[str]], bool], notes: list[str]
) -> Iterator[tuple[str, Row]]:
    """Rows of captions; where they say a picture's number alone (`image_id`), and a table beside has the name of each
    (`images.csv` with `id,file_name`), with what that one says of the picture.

    Args:
        rows: (where, row) of the table `path`.
        are_there: whether there are pictures of such names.
        notes: what was found is added here.
    """
    rows = iter(rows)
    first = list(islice(rows, PROBE))
    found = relation_of(path, [row for _, row in first], are_there)
    if found is None:
        yield from chain(first, rows)
        return
    name, key = found.table.name, found.key
    notes.append(
        f"{path.name}: {key} is that of {name}, which names the images. --image_column {key} takes it for names"
    )
    silent: list[str] = []
    for where, row in chain(first, rows):
        picture = found.rows.get(number(row.get(key)))
        if picture is None:
            silent.append(f"{where}: {row.get(key)}")
        yield where, {**(picture or {"image": None}), **{column: row[column] for column in row if column != key}}
    if silent:
        notes.append(f"{len(silent)} rows have a {key} that is not in {name}: {', '.join(silent[:3])}")


def relation_of(path: Path, rows: Sequence[Row], are_there: Callable[[Sequence[str]], bool]) -> Relation | None:
    """The relation of captions to the table beside that names their pictures, if any. Raises DataError for two that say
    different things."""
    found: list[Relation] = []
    keys = keys_of(rows)
    for table in tables_beside(path) if keys else ():
        called = is_called_after_pictures(table)
        try:
            found += [one for key in keys if (one := related(table, key, rows, called, are_there))]
        except (DataError, OSError, ValueError) as error:
            if called:
                raise (
                    error if isinstance(error, DataError) else DataError(f"{table}: cannot be read ({error})")
                ) from error
    found = [one for one in found if one.called] or found
    found = [one for one in found if _KEY.fullmatch(plain(one.key))] or found
    if len({tuple(names_of(one, rows)) for one in found}) > 1:
        either = " and ".join(f"{one.table.name} by {one.key}" for one in found[:2])
        raise DataError(f"{path}: {either} name different images. Take one away, or name a column with --image_column")
    return found[0] if found else None


def without_pictures(tables: Sequence[Path]) -> list[Path]:
    """Captions' tables without those of the pictures that others of them have the numbers of (with a column
    `description`, say)."""
    headed = {table: header_of(table) for table in tables if table.suffix.lower() in (".csv", ".tsv")}
    numbered = [table for table, columns in headed.items() if not find_column(columns, IMAGE_COLUMNS)]
    return [t for t in tables if t in numbered or not (numbered and t in headed and is_called_after_pictures(t))]


def is_called_after_pictures(table: Path) -> bool:
    words = {*words_in(table.stem)}
    return bool(_PICTURES & words) and not words & {"caption", "captions"}


def keys_of(rows: Sequence[Row]) -> list[str]:
    """The columns of captions that may hold numbers of pictures; none where one names the pictures themselves."""
    columns = [column for column in (rows[0] if rows else ()) if column is not None]
    if image := find_column(columns, IMAGE_COLUMNS):
        bare = all(re.fullmatch(r"\s*\d+(?:\.0)?\s*", str(row.get(image))) for row in rows)
        return [image] if bare else []
    others = [column for column in columns if plain(column) != "id" and column not in caption_columns(columns)]
    return [column for column in others if _KEY.fullmatch(plain(column))] or others


def tables_beside(path: Path) -> list[Path]:
    """Tables that are of the same split as `path`, or of none."""
    folders = [path.parent, *([path.parent.parent] if plain(path.parent.name) in ANNOTATIONS else [])]
    names = [os.path.join(folder, name) for folder in folders for name in os.listdir(folder)]  # may be a million
    tables = [Path(name) for name in sorted(names) if name.lower().endswith((".csv", ".tsv", ".jsonl"))]
    splits = None, split_of_name(path.stem)
    return [table for table in tables if table != path and split_of_name(table.stem) in splits and table.is_file()]


def related(
    table: Path, key: str, rows: Sequence[Row], called: bool, are_there: Callable[[Sequence[str]], bool]
) -> Relation | None:
    """What a table says of the numbers in a column `key` of `rows`, if it is about them: it has most of these numbers,
    and the names of files beside them. One that is not `called` after pictures is believed where the names are there,
    and the numbers are no names themselves. Raises DataError for two names of one number."""
    columns = list(next(read_table(table), ("", {}))[1]) if table.suffix.lower() == ".jsonl" else header_of(table)
    columns = [column.strip().strip('"') for column in columns]
    column = column_of_numbers(columns, key, called)
    if column is None or (caption_columns(columns) and not called):
        return None
    others = [row for _, row in read_table(table) if not all(map(is_empty, row.values()))]
    rest = [c for c in columns if c and c != column]
    named = [c for c in rest if others and all(is_picture(row.get(c)) for row in others[:PROBE])]
    file = find_column(rest, _FILES) or next(iter(named), None)
    wanted = {number(row.get(key)) for row in rows}
    if file is None or not any(number(row.get(column)) in wanted for row in others):
        return None
    left_out = {column, file, *caption_columns(columns)}
    pictures: dict[str, Row] = {}
    for row in others:
        name, said = str(row.get(file)).strip(), number(row.get(column))
        about = {"image": name, **{c: value for c, value in row.items() if c is not None and c not in left_out}}
        if pictures.setdefault(said, about)["image"] != name:
            raise DataError(f"{table}: {column} {said} is that of {pictures[said]['image']}, and of {name}")
    found = Relation(table, key, pictures, called)
    if 2 * len([said for said in wanted if said in pictures]) <= len(wanted):
        return None
    pairs = [(name, str(row.get(key))) for name, row in zip(names_of(found, rows), rows, strict=True) if name]
    same = all(number(PurePosixPath(name).stem) == number(said) for name, said in pairs)
    names_there = are_there([name for name, _ in pairs])
    if not same and are_there([said.strip() for _, said in pairs]):  # the numbers are names, too: of other files
        return found if called and names_there else None
    return found if called or names_there else None


def column_of_numbers(columns: Sequence[str], key: str, called: bool) -> str | None:
    """The column of a table beside that has the numbers of the captions' `key`: called alike, or after pictures as it
    is; in a table that is `called` so, `id`, or the first one of pandas, which has no name."""
    if found := find_column(columns, [key]):
        return found
    if _KEY.fullmatch(plain(key)) and (other := next((c for c in columns if _KEY.fullmatch(plain(c))), None)):
        return other
    if not called:
        return None
    return find_column(columns, ["id", "uid", "index", "unnamed0"]) or ("" if "" in columns else None)


def names_of(relation: Relation, rows: Sequence[Row]) -> list[str]:
    """The name of each row's picture, by the relation; empty if it has none."""
    return [relation.rows.get(number(row.get(relation.key)), {}).get("image", "") for row in rows]


def is_picture(cell: Any) -> bool:
    return isinstance(cell, str) and PurePosixPath(cell.strip()).suffix.lower() in IMAGE_SUFFIXES


def number(value: Any) -> str:
    """One spelling: `7`, `007` and pandas' `7.0` are one; so is `{8F-3A}` and `8f-3a`."""
    text = re.sub(r"(?<=\d)\.0$", "", str(value).strip()).strip("{}").casefold()
    return text.lstrip("0") or "0" if text.isdecimal() else text
