"""Flickr8k, as its authors and Kaggle distribute it."""

from __future__ import annotations

import os
from pathlib import Path

from blip_lite.data.dataset import Listing
from blip_lite.data.sources.encoding import utf8
from blip_lite.data.sources.file import token_rows
from blip_lite.data.sources.hub import datasets_rows, hub
from blip_lite.data.sources.karpathy import load_karpathy
from blip_lite.data.sources.table import read_table, table_rows
from blip_lite.errors import DataError
from blip_lite.settings import SPLITS, DataSettings


def load_flickr8k(settings: DataSettings) -> Listing:
    """Flickr8k (Hodosh, Young, Hockenmaier 2013): from the Hub, or a local copy in the original layout
    (`Flickr8k.token.txt`, `Flicker8k_Dataset/`), in Kaggle's (`captions.txt`, `Images/`), or of the
    Hub's Parquet files."""
    notes: list[str] = []
    if settings.data_dir is None or list(Path(settings.data_dir).expanduser().rglob("*.parquet")):
        if settings.split_scheme != "seed":
            raise DataError(
                f"flickr8k: --split_scheme {settings.split_scheme} needs the lists of a local copy; name "
                "one with --data_dir"
            )
        source = "ariG23498/flickr8k" if settings.data_dir is None else str(Path(settings.data_dir).expanduser())
        found = datasets_rows(hub(source, settings), "flickr8k", Path("."), settings, notes)
        return Listing("flickr8k", found, notes, published=True)
    root = Path(settings.data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"--data_dir {root}: there is no such directory")
    folder = next(
        (root / n for n in ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images") if (root / n).is_dir()), None
    )
    if folder is None:
        raise DataError(f"--data_dir {root}: has no folder Flicker8k_Dataset (or Images) with the photographs")
    if settings.split_scheme == "karpathy":
        return load_karpathy("flickr8k", settings, folder)
    if (root / "Flickr8k.token.txt").is_file():
        rows = list(token_rows(root / "Flickr8k.token.txt", folder, notes))
    elif (kaggle := root / "captions.txt").is_file():
        rows = list(table_rows(utf8(kaggle, read_table(kaggle)), folder, settings, notes))
    else:
        raise DataError(
            f"--data_dir {root}: has no Flickr8k.token.txt (lines of `name.jpg#0<TAB>caption`) and no "
            "captions.txt (Kaggle)"
        )
    present = {entry.name for entry in os.scandir(folder)}
    absent = sorted({row.image_id for row in rows} - present)
    if absent:
        notes.append(
            f"{len(absent)} images have captions but no photograph in {folder.name}; left out (e.g. {absent[0]})"
        )
    if silent := sorted(n for n in present - {row.image_id for row in rows} if n.lower().endswith(".jpg")):
        notes.append(f"{len(silent)} photographs have no caption; left out (e.g. {silent[0]})")
    rows = [row for row in rows if row.image_id in present]
    if settings.split_scheme == "official":
        where: dict[str, str] = {}
        for split, part in zip(SPLITS, ("train", "dev", "test"), strict=True):
            file = root / f"Flickr_8k.{part}Images.txt"
            if not file.is_file():
                raise DataError(f"--split_scheme official: {file} is missing; add it or use --split_scheme seed")
            where |= dict.fromkeys(file.read_text("utf-8").split(), split)
        if rest := len({row.image_id for row in rows} - where.keys()):
            notes.append(f"{rest} images are in no official list; left out")
        rows = [row for row in rows if row.image_id in where]
        for row in rows:
            row.split = where[row.image_id]
    return Listing("flickr8k", rows, notes, published=True)
