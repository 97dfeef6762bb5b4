"""Two tables, as a database exports them: pictures with their numbers, and captions of these numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from blip_lite.data.names import (
    CAPTION_COLUMNS,
    DERIVED,
    IMAGE_COLUMNS,
    caption_columns,
    find_column,
    plain,
    says_captions,
    split_of_name,
    words_in,
)
from blip_lite.data.sources.lists import has_suffix
from blip_lite.data.sources.marks import is_empty
from blip_lite.data.sources.records import Place, Row, columns_of, records
from blip_lite.data.sources.table import ANNOTATIONS, JOINED, PROBE, Files
from blip_lite.errors import DataError
from blip_lite.processing.download import is_url

_WORDS = ("image", "img", "picture", "pic", "photo", "file", "media", "asset")
_PICTURES = {*_WORDS, *(f"{word}s" for word in _WORDS)}
_OTHERS = {  # what tables are about that have a word for pictures in their name, too
    *DERIVED, "caption", "captions", "annotation", "annotations",
    "box", "boxes", "region", "regions", "object", "objects",
}  # fmt: skip
_KEY = re.compile(
    rf"(?:{'|'.join(_WORDS)})(?:id|uid|uuid|no|nr|num|number|key|fk|ref|idx|index)|(?:id|fk)(?:image|img)"
)
_SHARED = re.compile(r".+(?:id|key|number|hash)|uid|md5|sha\d+")  # that two tables may both have
_FILES = [name for name in IMAGE_COLUMNS if not name.endswith("url")]
FEW = 20  # JSON files beside a table; of more, each is about one image, as LabelMe's
LARGE = 64 * 2**20  # bytes of JSON, which is read whole: boxes of COCO, say


class Join(NamedTuple):
    """A table beside that names the pictures of the captions.

    Attributes:
        table: that table.
        key: the captions' column that holds numbers of pictures.
        column: its own that does.
        rows: its rows by number, with the picture's name under `image`.
    """

    table: Path
    key: str
    column: str
    rows: dict[str, Row]


def with_pictures(rows: Iterable[Place], path: Path, files: Files, notes: list[str]) -> Iterator[Place]:
    """Rows of captions; where they say a picture's number alone (`image_id`), and a table beside has the name of each
    (`images.csv` with `id,file_name`), with what that one says of the picture.

    Args:
        rows: (where, row) of the table `path`.
        files: the pictures of such names, None for one that is not there.
        notes: what was found is added here.
    """
    rows = iter(rows)
    first = list(islice(rows, PROBE))
    join = join_of(path, [row for _, row in first], files)
    if join is None:
        yield from chain(first, rows)
        return
    name, key = join.table.name, join.key
    notes.append(
        f"{path.name}: {name} names the images, {key} is its {join.column or 'first column'}. "
        f"--image_column {key} takes {key} for names"
    )
    silent = 0
    for where, row in chain(first, rows):
        picture = {} if is_empty(row.get(key)) else join.rows.get(number(row[key]), {})
        silent += not picture
        own = {
            column: cell for column, cell in row.items() if column != key and not (is_empty(cell) and column in picture)
        }
        both = {f"item {column}": cell for column, cell in picture.items() if column in own}  # two verdicts: both count
        yield where, {"image": None, **picture, **both, **own, JOINED: row.get(key)}
    if silent:
        notes.append(f"{silent} of the {key} in {path.name} are not in {name}")


def join_of(path: Path, rows: Sequence[Row], files: Files) -> Join | None:
    """The join of captions with the table beside that names their pictures, if any. Raises DataError for two that say
    different things, and for a table that is called after pictures and cannot be read."""
    found: list[Join] = []
    keys = keys_of(rows)
    for table in tables_beside(path) if keys else ():
        called = is_called_after_pictures(table)
        try:
            found += joins_with(table, keys, rows, called)
        except DataError:
            if called:
                raise
        except (OSError, ValueError) as error:
            if called:
                raise DataError(f"{table}: cannot be read ({error})") from error
    found = [join for join in together(found, path) if is_believed(join, rows, files)]
    found = [join for join in found if is_called_after_pictures(join.table)] or found
    names = [[name for name, _ in pairs_of(join, rows)] for join in found] if len(found) > 1 else []
    if len({tuple(file or name for file, name in zip(files(some), some, strict=True)) for some in names}) > 1:
        either = " and ".join(f"{join.table.name} by its {join.column or 'first column'}" for join in found[:2])
        raise DataError(f"{path}: {either} name different images. Take one away, or name a column with --image_column")
    return found[0] if found else None


def together(joins: Sequence[Join], path: Path) -> list[Join]:
    """The joins, those with tables of splits (`images_train.csv`, `images_test.csv`) as one, for captions of none."""
    parts = [join for join in joins if split_of_name(join.table.stem) and not split_of_name(path.stem)]
    of_keys: dict[str, Join] = {}
    for part in parts:
        whole = of_keys.setdefault(part.key, part._replace(rows={}))
        for said, row in part.rows.items():
            if whole.rows.setdefault(said, row)["image"] != row["image"]:
                raise DataError(
                    f"{part.table}: {part.column} {said} is that of {row['image']}; in {whole.table.name} of another"
                )
    return [*(join for join in joins if join not in parts), *of_keys.values()]


def is_key(column: str) -> bool:
    """Whether a column is called after numbers of pictures: `image_id`, `photo_no`."""
    return _KEY.fullmatch(plain(column)) is not None


def keys_of(rows: Sequence[Row]) -> list[str]:
    """The columns of captions that may hold numbers of pictures; none where one names the pictures themselves."""
    columns = [column for column in (rows[0] if rows else ()) if column is not None]
    if images := [column for column in columns if plain(column) in IMAGE_COLUMNS]:
        cells = [row[column] for column in images for row in rows if not is_empty(row.get(column))]
        return images if all(map(is_number, cells)) else []
    if keys := [column for column in columns if is_key(column)]:
        return keys
    own = find_column(columns, ["id"])
    named = own is not None and not all(str(row.get(own)).strip().isdigit() for row in rows)
    return [] if named else [c for c in columns if _SHARED.fullmatch(plain(c)) and c not in caption_columns(columns)]


def is_number(cell: Any) -> bool:
    return isinstance(cell, (str, int, float)) and re.fullmatch(r"\s*\d+(?:\.0+)?\s*", str(cell)) is not None


def tables_beside(path: Path) -> list[Path]:
    """Tables that are of the same split as `path`, or of none; of pictures also of any, if it is of none."""
    folders = [path.parent, *([path.parent.parent] if plain(path.parent.name) in ANNOTATIONS else [])]
    names = [os.path.join(folder, name) for folder in folders for name in os.listdir(folder)]  # may be a million
    tables = [
        Path(name) for name in sorted(names) if name.lower().endswith((".csv", ".tsv", ".jsonl", ".json", ".parquet"))
    ]
    jsons = [table for table in tables if table.suffix.lower() == ".json" and not is_called_after_pictures(table)]
    unread = jsons if len(jsons) > FEW else [t for t in jsons if t.is_file() and t.stat().st_size > LARGE]
    tables = sorted({*tables} - {*unread})
    own = split_of_name(path.stem)

    def fits(table: Path) -> bool:
        split = split_of_name(table.stem)
        return split in (own, None) or (own is None and is_called_after_pictures(table))

    return [table for table in tables if table != path and fits(table) and table.is_file()]


def is_called_after_pictures(table: Path) -> bool:
    """Whether a table is about pictures and nothing else, by its name: `images.csv`, `my_photos.csv`."""
    words = {*words_in(table.stem)}
    return bool(_PICTURES & words) and not words & _OTHERS


def joins_with(table: Path, keys: Sequence[str], rows: Sequence[Row], called: bool) -> list[Join]:
    """The joins by columns `keys` of `rows`, if a table has some of their numbers, and names of files beside them.
    Raises DataError where each has two names of one number, and what reading the table raises."""
    table_rows = records(table)
    try:
        head = next(table_rows, {})
    except (DataError, OSError, ValueError):
        return []  # what it is about, nobody knows
    columns = [column for column in head if column is not None]
    by = [(key, column) for key in keys for column in columns_of_numbers(columns, key, called)]
    if not by or (caption_columns(columns) and not called):
        return []
    rest = [c for c in columns if c and c not in [column for _, column in by]]
    first = [head, *islice(table_rows, PROBE - 1)]
    named = (c for c in rest if all(has_suffix(s := str(row.get(c))) and not is_url(s) for row in first))
    file = find_column(rest, _FILES) or next(named, None)
    if file is None:
        return []
    texts = [c for c in rest if plain(c).rstrip("0123456789") in CAPTION_COLUMNS]  # of the table's own
    joins = [Join(table, key, column, {}) for key, column in by]
    twice: dict[str, str] = {}
    for row in chain(first, table_rows):
        if is_empty(row.get(file)):
            continue
        name = str(row[file]).strip()
        about = {c: cell for c, cell in row.items() if c is not None and c not in (file, *texts)}
        for join in joins:
            if is_empty(row.get(join.column)):
                continue
            picture = {"image": name, **{c: cell for c, cell in about.items() if c != join.column}}
            if (other := join.rows.setdefault(number(row[join.column]), picture)["image"]) != name:
                reason = f"{table}: {join.column} {row[join.column]} is that of {other}, and of {name}"
                twice.setdefault(join.column, reason)
    joins = [join for join in joins if pairs_of(join, rows)]
    once = [join for join in joins if join.column not in twice]
    if joins and not once:
        raise DataError(twice[joins[0].column])
    return once


def columns_of_numbers(columns: Sequence[str], key: str, called: bool) -> list[str]:
    """The columns of a table beside that may have the numbers of the captions' `key`: the one called alike, or those
    after pictures as it is, and in a table that is `called` so `id`, or the first one of pandas, which has no name."""
    if found := find_column(columns, [key]):
        return [found]
    if not (is_key(key) or plain(key) in _PICTURES):
        return []
    own = find_column(columns, ["id", "uid", "index", "unnamed0"]) or ("" if "" in columns else None)
    return [*filter(is_key, columns), *([own] if called and own is not None else [])]


def is_believed(join: Join, rows: Sequence[Row], files: Files) -> bool:
    """Whether a join is meant: most numbers are in it. They may be names of files, too: `4` of 4.jpg. Where
    the join says another file, a table that is called after pictures is believed, if its files are there, and any other
    is not."""
    pairs, called = pairs_of(join, rows), is_called_after_pictures(join.table)
    wanted = {number(row.get(join.key)) for row in rows}
    if 2 * len(wanted & join.rows.keys()) <= len(wanted):
        return False
    by_name, by_number = files([name for name, _ in pairs]), files([said for _, said in pairs])
    if not any(by_number):
        return called or any(by_name)
    both = [(a, b) for a, b in zip(by_name, by_number, strict=True) if a and b]
    return any(by_name) and (called or all(a == b for a, b in both))


def pairs_of(join: Join, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(the picture's name, its number) of the rows that have one, by the join."""
    numbers = [str(row.get(join.key)).strip() for row in rows]
    return [(join.rows[number(said)]["image"], said) for said in numbers if number(said) in join.rows]


def without_pictures(tables: Sequence[Path], notes: list[str]) -> list[Path]:
    """Captions' tables without those of the pictures that others have the numbers of, though these hold texts, too (in
    a column `description`, say)."""
    if len(tables) < 2 or not any(map(is_called_after_pictures, tables)):
        return [*tables]
    heads = {table: columns_of(table) for table in tables}
    keys = {c for columns in heads.values() if not find_column(columns, IMAGE_COLUMNS) for c in columns if is_key(c)}
    others_do = any(says_captions(heads[table]) for table in heads if not is_called_after_pictures(table))
    of_pictures = [
        table
        for table, columns in heads.items()
        if is_called_after_pictures(table)
        and find_column(columns, _FILES)
        and any(columns_of_numbers(columns, key, True) for key in keys)
        and (not says_captions(columns) or others_do)
    ]
    notes += [f"{table.name} names the images; its texts are no captions" for table in of_pictures]
    return [table for table in tables if table not in of_pictures]


def number(value: Any) -> str:
    """One spelling: `7`, `007` and pandas' `7.0` are one; so are `{8F-3A}` and `8f-3a`."""
    text = re.sub(r"(?<=\d)\.0+$", "", str(value).strip())
    if text.isdecimal():
        return text.lstrip("0") or "0"
    return text.strip("{}").casefold() if re.fullmatch(r"\{?[0-9a-fA-F-]+\}?", text) else text
