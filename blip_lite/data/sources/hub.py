"""Hub data sets and Parquet files, through `datasets`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from blip_lite.data.dataset import Listing
from blip_lite.data.names import IMAGE_COLUMNS, find_column, split_of_name
from blip_lite.data.sources.table import table_rows
from blip_lite.errors import DataError
from blip_lite.processing.hub import from_hub
from blip_lite.processing.picture import Picture
from blip_lite.settings import DataSettings


def hub(dataset: str, settings: DataSettings) -> dict[str, Any]:
    """The splits of a Hub data set, or of a local copy of one, images not decoded."""
    import datasets

    def get() -> Any:
        return datasets.load_dataset(dataset, settings.dataset_config, split=settings.dataset_split)

    if Path(dataset).exists():
        with reading(Path(dataset), "a data set"):
            found = get()
    else:
        try:
            found = from_hub(get)
        except LookupError as error:
            part = "--dataset_config and --dataset_split choose a part."
            raise DataError(f"the data set {dataset} is {error} {part}") from error
    return {"": found} if settings.dataset_split else dict(found)


@contextlib.contextmanager
def reading(path: Path, kind: str = "Parquet") -> Iterator[None]:
    """Raises DataError for whatever pyarrow and datasets raise of a file."""
    try:
        yield
    except Exception as error:  # their own kinds, without a common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be read as {kind} ({reason})") from error


def parquet(path: Path) -> Any:
    import datasets

    with reading(path):
        return datasets.Dataset.from_parquet(str(path))


def parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet

    with reading(path):
        return list(pyarrow.parquet.read_schema(path).names)


def plain_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file, of its columns of texts and numbers: pictures may be gigabytes. Raises DataError."""
    import pyarrow.parquet

    with reading(path):
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        columns = [name for name, kind in zip(schema.names, schema.types, strict=True) if is_plain(kind)]
        for batch in file.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()


def is_plain(kind: Any) -> bool:
    """Whether a column of Arrow's holds texts, numbers or truths."""
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    texts = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)
    return texts or pyarrow.types.is_primitive(kind) or pyarrow.types.is_decimal(kind)


def saved(folder: Path) -> dict[str, Any]:
    """What `datasets.save_to_disk` wrote."""
    import datasets

    with reading(folder, "a saved data set"):
        found = datasets.load_from_disk(str(folder))
    return dict(found) if isinstance(found, Mapping) else {"": found}


def datasets_rows(
    tables: Mapping[str, Any],
    name: str,
    root: Path,
    settings: DataSettings,
    notes: list[str],
    split: str | None = None,
    named_images: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Iterator[Picture]:
    """Rows of `datasets.Dataset`s by name. Where there are several, the names are the splits; a data set with a single
    part often calls it train whatever it is, so only a test is believed then.

    Args:
        named_images: adds the images' names to (where, row) pairs of a table that holds none, nor images.
    """
    import datasets

    splits = {part: split_of_name(part) for part in tables}
    named = len(tables) > 1 or "test" in splits.values()
    if named and not all(splits.values()):
        odd = ", ".join(repr(part) for part, found in splits.items() if not found)
        raise DataError(
            f"{name}: its parts are {', '.join(tables)}, and {odd} is no split (train, validation, test). "
            "--dataset_split chooses a part"
        )
    for part, table in tables.items():
        pictures = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
        for column in pictures:
            table = table.cast_column(column, datasets.Image(decode=False))
        part_settings = settings
        if pictures and not settings.image_column and find_column(table.column_names, IMAGE_COLUMNS) not in pictures:
            part_settings = replace(settings, image_column=pictures[0])
        labels = {column: kind for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
        rows: Iterable[Any] = (
            (f"{f'{name} {part}'.strip()}, row {number}", row | named_labels(row, labels))
            for number, row in enumerate(table)
        )
        rows = rows if pictures else named_images(rows)
        given = splits[part] if named else split
        yield from table_rows(rows, root, part_settings, notes, given, partial(read_cell, table))


def named_labels(row: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, str | None]:
    """The names of a row's class numbers (0: `train`); -1 is none."""
    return {
        column: kind.int2str(row[column]) if row[column] is not None and row[column] >= 0 else None
        for column, kind in labels.items()
    }


def read_cell(table: Any, number: int, column: str) -> bytes:
    value = table[number][column]
    return value["bytes"] if isinstance(value, Mapping) else value


def load_hub(name: str, settings: DataSettings) -> Listing:
    """Any Hub data set with a column of images and one or several of captions."""
    notes: list[str] = []
    rows = datasets_rows(hub(name, settings), name, Path(settings.image_root or "."), settings, notes)
    return Listing(name.split("/")[-1], rows, notes, published=True)
