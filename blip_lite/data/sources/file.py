"""A captions file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blip_lite.data.dataset import Listing
from blip_lite.data.sources.hub import datasets_rows, parquet
from blip_lite.data.sources.karpathy import karpathy_rows
from blip_lite.data.sources.table import inside, read_json, read_table, table_rows, utf8
from blip_lite.errors import DataError
from blip_lite.processing.picture import Picture
from blip_lite.settings import TABLES, DataSettings


def file_rows(
    path: Path, root: Path, settings: DataSettings, notes: list[str], split: str | None = None
) -> Iterator[Picture]:
    """Rows of a captions file."""
    if path.suffix == ".parquet":
        return datasets_rows({"": parquet(path)}, str(path), root, settings, notes, split)
    return table_rows(utf8(path, read_table(path)), root, settings, notes, split)


def load_file(path: Path, settings: DataSettings) -> Listing:
    """A captions file: CSV, TSV, JSONL, Parquet, or JSON (a list of objects, COCO's annotations, or Karpathy's)."""
    if path.suffix not in TABLES:
        raise DataError(f"--dataset {path}: a file is to be one of {', '.join(sorted(TABLES))}, .tar")
    root, notes = Path(settings.image_root).expanduser() if settings.image_root else path.parent, list[str]()
    content = read_json(path) if path.suffix == ".json" else None
    if isinstance(content, dict):
        if settings.image_root is None:
            raise DataError(f"--dataset {path}: name the folder of its images with --image_root")
        rows: Iterable[Picture] = (
            coco_rows(content, root, path)
            if "annotations" in content
            else karpathy_rows(content.get("images"), root, str(path))
        )
    else:
        rows = file_rows(path, root, settings, notes)
    return Listing(path.stem, rows, notes)


def coco_rows(content: dict[str, Any], root: Path, path: Path) -> Iterator[Picture]:
    """COCO's own annotations, e.g. `captions_train2014.json`."""
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for number, one in enumerate(content["annotations"], 1):
            where, name = f"{path}, annotation {number}", names[one["image_id"]]
            yield Picture(str(one["image_id"]), inside(root, name, where), (one["caption"].strip(),), where)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO's annotations: {type(error).__name__} {error}") from error
