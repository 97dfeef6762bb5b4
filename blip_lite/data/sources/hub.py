"""Hub data sets and Parquet files, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from blip_lite.data.dataset import Listing
from blip_lite.data.names import IMAGE_COLUMNS, SPLIT_NAMES
from blip_lite.data.sources.table import table_rows
from blip_lite.errors import DataError
from blip_lite.processing.picture import Picture
from blip_lite.settings import DataSettings


def hub(dataset: str, settings: DataSettings) -> dict[str, Any]:
    """The splits of a Hub data set, or of a local copy of one, images not decoded."""
    import datasets

    try:
        found = datasets.load_dataset(dataset, settings.dataset_config, split=settings.dataset_split)
    except Exception as error:  # offline, not found, gated: the client raises a dozen types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the data set {dataset} is not to be had from the Hub: {reason}. Is the name right, is there a network? "
            "A gated or private one needs `hf auth login`; --dataset_config and --dataset_split choose a part."
        ) from error
    return {"": found} if settings.dataset_split else dict(found)


def parquet(path: Path) -> Any:
    import datasets

    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # pyarrow's and datasets' own kinds
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).strip().splitlines()[0]})") from error


def datasets_rows(
    tables: Mapping[str, Any], name: str, root: Path, settings: DataSettings, notes: list[str], split: str | None = None
) -> Iterator[Picture]:
    """Rows of `datasets.Dataset`s by name. Where there are several, with names we know, the names are the splits: a
    data set with a single part calls it train whatever it is."""
    import datasets

    named = len(tables) > 1 and all(part in SPLIT_NAMES for part in tables)
    for part, table in tables.items():
        pictures = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
        for column in pictures:
            table = table.cast_column(column, datasets.Image(decode=False))
        if pictures and not settings.image_column and not set(IMAGE_COLUMNS) & set(table.column_names):
            table = table.rename_column(pictures[0], "image")
        rows = ((f"{f'{name} {part}'.strip()}, row {number}", row) for number, row in enumerate(table))
        given = SPLIT_NAMES[part] if named else split
        yield from table_rows(rows, root, settings, notes, given, partial(read_cell, table))


def read_cell(table: Any, number: int, column: str) -> bytes:
    value = table[number][column]
    return value["bytes"] if isinstance(value, Mapping) else value


def load_hub(name: str, settings: DataSettings) -> Listing:
    """Any Hub data set with a column of images and one or several of captions."""
    notes: list[str] = []
    rows = datasets_rows(hub(name, settings), name, Path(settings.image_root or "."), settings, notes)
    return Listing(name.split("/")[-1], rows, notes, published=True)
