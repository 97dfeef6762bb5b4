"""A folder of images with their captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from blip_lite.data.dataset import Listing
from blip_lite.data.names import SPLIT_NAMES
from blip_lite.data.sources.file import file_rows
from blip_lite.data.sources.hub import datasets_rows, hub
from blip_lite.data.sources.shards import tar_rows
from blip_lite.data.sources.table import utf8
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture
from blip_lite.settings import TABLES, DataSettings


def load_folder(folder: Path, settings: DataSettings) -> Listing:
    """A folder of images with `metadata.csv|jsonl|parquet` (the Hugging Face `imagefolder` convention) or a `.txt`
    beside each image; or a folder of Parquet files (a copy of a Hub data set) or `.tar` shards. Sub-folders named
    train, validation and test are the splits."""
    parts = {SPLIT_NAMES[p.name]: p for p in sorted(folder.iterdir()) if p.is_dir() and p.name in SPLIT_NAMES}
    notes: list[str] = []
    if "train" in parts and not any((folder / f"metadata{suffix}").is_file() for suffix in TABLES):
        rows = [row for split, part in parts.items() for row in folder_rows(part, folder, settings, notes, split)]
    else:
        rows = list(folder_rows(folder, folder, settings, notes, None))
    return Listing(folder.resolve().name, rows, notes)


def folder_rows(
    folder: Path, root: Path, settings: DataSettings, notes: list[str], split: str | None
) -> Iterator[Picture]:
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    for suffix in TABLES:
        metadata = folder / f"metadata{suffix}"
        if metadata.is_file():
            named = set()
            for row in file_rows(metadata, folder, settings, notes, split):
                named.add(row.image)
                if isinstance(row.image, Path) and not row.url:
                    row.image_id = row.image.relative_to(root).as_posix()
                    row.split = row.split or SPLIT_NAMES.get(row.image_id.split("/")[0])  # one file for all sub-folders
                yield row
            if silent := [p.relative_to(folder) for p in images if p not in named]:
                notes.append(f"{len(silent)} images are not in {metadata.name}; left out (e.g. {silent[0]})")
            return
    if any(folder.rglob("*.parquet")):
        yield from datasets_rows(hub(str(folder), settings), folder.name, folder, settings, notes, split)
    elif shards := sorted(folder.rglob("*.tar")):
        yield from tar_rows(shards, notes)
    else:
        silent = []
        for image in images:
            text = image.with_suffix(".txt")
            if text.is_file():
                lines = [line.strip() for line in utf8(text, iter(text.read_text("utf-8-sig").splitlines()))]
                captions = tuple(line for line in lines if line)
                yield Picture(image.relative_to(root).as_posix(), image, captions, str(text), split)
            else:
                silent.append(image)
        if len(silent) == len(images):
            raise DataError(
                f"{folder}: has no metadata.csv, metadata.jsonl or metadata.parquet with columns file_name "
                "and caption, and no image has a .txt with its caption beside it"
            )
        if silent:
            notes.append(f"{len(silent)} images have no .txt beside them; left out (e.g. {silent[0].name})")
