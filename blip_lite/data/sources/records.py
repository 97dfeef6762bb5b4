"""Rows of any table, whatever holds them: CSV, TSV, JSON lines, Parquet, and the forms of JSON that have rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip_lite.data.names import CAPTION_COLUMNS, ID_COLUMNS, IMAGE_COLUMNS, find_column, plain, split_of_name
from blip_lite.data.sources.hub import plain_rows
from blip_lite.data.sources.lists import has_suffix
from blip_lite.data.sources.table import header_of, read_json, read_table
from blip_lite.errors import DataError

# How people call rows in an object of JSON.
LISTS_OF_ROWS = (*("data", "annotations", "rows", "items", "samples", "records", "results", "captions", "entries"),)

Row = Mapping[str, Any]
Place = tuple[str, Row]  # ("FILE, line N", row)


def records(path: Path) -> Iterator[Row]:
    """The rows of a table; none where a JSON file holds something else. Of Parquet the columns of texts and numbers,
    as pictures may be gigabytes. Raises what reading raises."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from plain_rows(path)
    elif suffix == ".json":
        yield from json_records(read_json(path), path)
    else:
        yield from (row for _, row in read_table(path))


def columns_of(path: Path) -> list[str]:
    """The columns of a table; none of one that cannot be read, which its reader says."""
    if path.suffix.lower() not in (".json", ".jsonl", ".parquet"):
        return header_of(path)
    try:
        return [*next(records(path), {})]
    except (DataError, OSError):
        return []


def json_records(content: Any, path: Path) -> Iterator[Row]:
    """Rows of JSON: `[rows]`, `{"images": [rows]}`, `{"train": [rows], ...}` (called `split`), `{"file_name": [...]}`;
    `{number: row}`, `{name: row}`, `{number: name}` and `{name: number}` (called `id` and `file_name`)."""
    if are_rows(content):
        yield from content
    if not isinstance(content, Mapping):
        return
    lists = [key for key in content if are_rows(content[key])]
    tables = [key for key, value in content.items() if isinstance(value, Mapping) and key != "info"]
    usual = [key for key in ("images", *LISTS_OF_ROWS) if key in lists]
    if usual or len(lists) == 1:
        yield from content[(usual or lists)[0]]
    elif lists and all(map(split_of_name, lists)):
        yield from ({"split": key, **row} for key in lists for row in content[key])
    elif len(tables) == 1 and tables[0] in ("images", *LISTS_OF_ROWS):
        yield from json_records(content[tables[0]], path)
    elif find_column([*content], (*IMAGE_COLUMNS, *ID_COLUMNS)) and not any(map(is_scalar, content.values())):
        yield from (row for _, row in transposed(content, path))
    elif are_rows([*content.values()]):
        called = "file_name" if all(map(has_suffix, content)) else "id"
        yield from ({called: key, **row} for key, row in content.items())
    elif all(isinstance(value, str) and has_suffix(value) for value in content.values()):
        yield from ({"id": key, "file_name": name} for key, name in content.items())
    elif all(map(has_suffix, content)) and all(map(is_scalar, content.values())):
        yield from ({"id": key, "file_name": name} for name, key in content.items())


def is_scalar(value: Any) -> bool:
    return not isinstance(value, (list, Mapping))


def are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def places(path: Path, key: str, rows: Sequence[Row]) -> Iterator[Place]:
    return ((f"{path}, {key}, item {number}", row) for number, row in enumerate(rows, 1))


def transposed(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of `{"image": [...], "caption": [...]}`, with lists or, as pandas writes them, with `{"0": ...}`."""
    columns = {k: [*v.values()] if isinstance(v, Mapping) else v for k, v in content.items()}
    columns = {
        k: v for k, v in columns.items() if isinstance(v, list) or plain(k) in (*IMAGE_COLUMNS, *CAPTION_COLUMNS)
    }
    lengths = {len(v) if isinstance(v, list) else None for v in columns.values()}
    if len(lengths) > 1 or None in lengths:
        raise DataError(f"{path}: its columns {', '.join(columns)} are not lists of one length")
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        yield f"{path}, row {number}", dict(zip(columns, cells, strict=True))
