"""Karpathy's splits of COCO, Flickr8k and Flickr30k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blip_lite.data.dataset import Listing
from blip_lite.data.names import find_column
from blip_lite.data.sources.hub import hub
from blip_lite.data.sources.marks import Marks
from blip_lite.data.sources.table import PROBE, captions_of, captions_told, inside, read_json
from blip_lite.errors import DataError
from blip_lite.processing.download import cache_dir
from blip_lite.processing.picture import Picture
from blip_lite.settings import DataSettings


def load_karpathy(name: str, settings: DataSettings, images: Path | None = None) -> Listing:
    """Karpathy's splits: `dataset_NAME.json` in `data_dir`, or for COCO the Hub's copy. COCO's images come from
    `image_root` (`train2014/`, `val2014/`), or are downloaded once into a cache."""
    folder = Path(settings.data_dir).expanduser() if settings.data_dir else None
    root = images or (Path(settings.image_root).expanduser() if settings.image_root else None)
    source = folder / f"dataset_{name.removesuffix('_karpathy')}.json" if folder else None
    if source and source.is_file():
        rows, where = read_json(source).get("images"), str(source)
    elif source and not (name == "coco_karpathy" and folder and list(folder.rglob("*.parquet"))):
        raise DataError(f"--data_dir {folder}: has no {source.name} (Karpathy's splits)")
    elif name == "coco_karpathy":
        where = "yerevann/coco-karpathy"
        rows = [row for table in hub(str(folder or where), settings).values() for row in table]
    else:
        raise DataError(
            f"{name}: name the folder of dataset_{name}.json with --data_dir, that of its images with --image_root"
        )
    if root is None and name != "coco_karpathy":
        guess = next(
            (folder / n for n in (f"{name}-images", "images", "Images") if folder and (folder / n).is_dir()), None
        )
        if guess is None:
            raise DataError(f"{name}: name the folder of its images with --image_root")
        root = guess
    notes: list[str] = []
    found = karpathy_rows(rows, root or cache_dir() / "coco", where, notes, root is None, settings.caption_column)
    return Listing(name, found, notes, published=True)


def karpathy_rows(
    images: Any,
    root: Path,
    where: str,
    notes: list[str],
    download_missing: bool = False,
    columns: str | None = None,
) -> Iterator[Picture]:
    """Objects with filename, split, sentences, and for COCO filepath, cocoid and url -> rows."""
    try:
        marks = Marks(("filepath", "filename", "url", "cocoid", "sentences"), notes, images[:PROBE])
        for number, image in enumerate(images):
            at = f"{where}, image {number}"
            if marks.is_rejected(image, at):
                continue
            name = f"{image['filepath']}/{image['filename']}" if image.get("filepath") else image["filename"]
            url = None
            if download_missing:
                url = image.get("url") or f"http://images.cocodataset.org/{name}"
            image_id = str(image.get("cocoid", name))
            if columns is None:
                captions = captions_of(image["sentences"], at)
            else:
                inner = [one for one in image.get("sentences", ()) if isinstance(one, Mapping)]
                in_them = any(find_column([*one], columns.split(",")) for one in inner)  # `raw`, say
                captions = tuple(c for one in (inner if in_them else [image]) for c in captions_told(one, columns, at))
            yield Picture(image_id, inside(root, name, at), captions, at, marks.split(image, at), url)
        marks.tell()
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not in Karpathy's form: {type(error).__name__} {error}") from error
