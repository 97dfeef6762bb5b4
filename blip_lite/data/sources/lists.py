"""Lists of images that share them out: beside a table, which says nothing of splits itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip_lite.data.names import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    MAYBE_SPLIT_COLUMNS,
    SPLIT_COLUMNS,
    caption_columns,
    find_column,
    may_be_about_splits,
    plain,
    split_of_name,
)
from blip_lite.data.sources.marks import agreed, split_in
from blip_lite.data.sources.table import read_json, read_table
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture

LISTS = (".txt", ".lst", ".list")


def split_lists(folder: Path, files: Iterable[Path], notes: list[str]) -> dict[str, str]:
    """The split of each image that lists beside a table name: `train.txt` and `test.txt` with a name a line, the same
    as JSON, `{"train": [names], ...}`, `{name: "train", ...}`, a table of images and splits, or CUB-200's numbers.
    Raises DataError for a name in two of them."""
    lists: dict[str, str] = {}
    for path in sorted(files):
        named = [*named_in(path, notes)] if split_of_name(path.stem) or may_be_about_splits(path.stem) else []
        for split, name in named:
            if lists.setdefault(short := Path(str(name)).stem, split) != split:
                raise DataError(f"{path}: {name} is in {split}, and in {lists[short]}, by the lists of {folder}")
    return lists


def named_in(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """(split, name of an image) of a file whose name is about splits. A note where it has none, and no captions."""
    suffix, own = path.suffix.lower(), split_of_name(path.stem)
    found: list[tuple[str | None, Any]] = []
    if any(path.with_suffix(image).exists() for image in IMAGE_SUFFIXES):  # a caption
        return
    if suffix in LISTS:
        images = path.with_name("images.txt")
        cub = plain(path.stem) == "traintestsplit" and images.is_file()
        found = [*(by_number(path, images) if cub else in_names(lines_in(path), path))]
    elif suffix in (".csv", ".tsv"):
        rows = [row for _, row in read_table(path, strict=False)]
        if not rows or caption_columns([c for c in rows[0] if c is not None]):
            return
        found = [*in_rows(rows, own, path)]
    elif suffix == ".json" and ("split" in path.stem.casefold() or begins_as_names(path)):
        content = read_json(path)
        if isinstance(content, list) and all(isinstance(row, Mapping) for row in content):
            found = [*in_rows(content, own, path)]
        elif isinstance(content, list) and all(isinstance(name, (str, int)) for name in content):
            found = [*in_names([*map(str, content)], path)]
        elif isinstance(content, Mapping) and all(map(split_of_name, content)):
            parts = {key: names for key, names in content.items() if isinstance(names, list)}
            found = [(split_of_name(key), name) for key, names in parts.items() for name in names]
        elif isinstance(content, Mapping) and all(isinstance(v, str) and split_of_name(v) for v in content.values()):
            found = [(split_of_name(split), name) for name, split in content.items()]
    else:
        return
    named = [(split, name) for split, name in found if split]
    if not named:
        notes.append(f"{path.name} is not read: it names no images of a split")
    yield from named


def lines_in(path: Path) -> list[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line.strip() for line in file if line.strip()]


def by_number(path: Path, images: Path) -> Iterator[tuple[str, str]]:
    """(split, name) as CUB-200 and NABirds have them: lines of an image's number and 1 for training or 0 for the test,
    and `images.txt` with the name of each number. Raises DataError for a line that is none."""
    names = {number: name for number, _, name in (line.partition(" ") for line in lines_in(images))}
    for line in lines_in(path):
        number, _, said = line.partition(" ")
        if number not in names or said not in ("0", "1"):
            raise DataError(f"{path}: {line!r}; expected a number of {images.name}, and 1 (training) or 0 (test)")
        yield ("train" if said == "1" else "test"), names[number]


def begins_as_names(path: Path) -> bool:
    """Whether JSON is a list of texts or numbers, by its first signs: one of captions may be large, and is not read."""
    with open(path, "rb") as file:
        return re.match(rb'[\xef\xbb\xbf\xff\xfe\0\s]*\[[\0\s]*["\d\]]', file.read(1024)) is not None


def in_names(names: Sequence[str], path: Path) -> Iterator[tuple[str | None, str]]:
    """(split, name) of what is nothing but names: all of images, unless the file's name is nothing but that of a
    split."""
    if all(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names) or split_of_name(path.stem, strict=True):
        yield from ((split_of_name(path.stem), name) for name in names)


def in_rows(rows: Iterable[Mapping[Any, Any]], own: str | None, path: Path) -> Iterator[tuple[str | None, Any]]:
    """(split, name) of rows with a column of images, and one of splits where the file's name says none; of a lone
    column without a header, too."""
    for number, row in enumerate(rows, 1):
        columns = [column for column in row if column is not None]
        image = find_column(columns, (*IMAGE_COLUMNS, *ID_COLUMNS))
        split = find_column(columns, (*SPLIT_COLUMNS, *MAYBE_SPLIT_COLUMNS))
        if image and split:
            yield split_in(row[split], f"{path}, row {number}"), row[image]
        elif image:  # `test.csv`, not `test_results.csv`
            yield split_of_name(path.stem, strict=len(columns) > 1), row[image]
        elif len(columns) == 1:
            yield from ((own, name) for name in (*columns[: number == 1], row[columns[0]]))


def in_lists(
    rows: Iterable[Picture], lists: Mapping[str, str], notes: list[str], keep: bool = False
) -> Iterator[Picture]:
    """The rows, in the splits that `split_lists` found; those that no list names are left out, unless they name theirs,
    or `keep`."""
    silent: set[str] = set()
    for row in rows:
        split = lists.get(Path(row.image_id).stem)
        if not split and not row.split and not keep:
            silent.add(row.image_id)
            continue
        row.split = agreed(row.split, split, row.where)
        yield row
    if silent:
        notes.append(f"{len(silent)} images are in no list of a split; left out (e.g. {min(silent)})")
