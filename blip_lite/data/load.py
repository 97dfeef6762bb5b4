"""What `--dataset` may be -> a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from blip_lite.data.dataset import DataSet, Listing, split_by_image, subsample
from blip_lite.data.sources.file import load_file
from blip_lite.data.sources.flickr import load_flickr8k
from blip_lite.data.sources.folder import load_folder
from blip_lite.data.sources.hub import load_hub
from blip_lite.data.sources.karpathy import load_karpathy
from blip_lite.data.sources.shapes import SCENES, load_shapes
from blip_lite.data.sources.shards import load_tars
from blip_lite.errors import DataError
from blip_lite.processing.download import download
from blip_lite.processing.picture import Picture
from blip_lite.processing.text import has_words
from blip_lite.settings import DATASETS, SPLITS, TABLES, DataSettings, did_you_mean

MAX_PROBLEMS = 5  # that an error message lists


def load_data(settings: DataSettings, seed: int) -> DataSet:
    """Find the data set that `settings.dataset` names, with its splits and `max_*_images` applied.

    Args:
        settings: which data, and how to read them.
        seed: of the split, and of the choice of `max_*_images`.

    Raises:
        DataError: unknown data set, missing file or column, an image without a caption, an empty split.
    """
    data = assemble(find(settings, seed), settings, seed)
    if empty := [split for split in ("train", "validation") if not data.splits[split]]:
        sizes = ", ".join(f"{split} {len(data.splits[split])}" for split in SPLITS)
        raise DataError(
            f"{settings.dataset}: no images in {' and '.join(empty)} ({sizes}). Is the data set complete? "
            "A split is drawn "
            "image by image, 90/5/5: with few images a part can be empty; add images, or try another --seed."
        )
    return data


def find(settings: DataSettings, seed: int) -> Listing:
    """The source that `settings.dataset` names. Raises DataError."""
    name, path = settings.dataset, Path(settings.dataset).expanduser()
    if name == "shapes":
        return load_shapes(settings.scenes or SCENES, seed)
    if name == "flickr8k":
        return load_flickr8k(settings)
    if name in ("flickr30k", "coco_karpathy"):
        return load_karpathy(name, settings)
    if path.is_dir():
        return load_folder(path, settings)
    if path.suffix == ".tar":
        return load_tars(name)
    if path.is_file():
        return load_file(path, settings)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix not in TABLES:
        return load_hub(name, settings)
    raise DataError(
        f"--dataset {name}: there is no such file or folder; expected "
        f"{', '.join(DATASETS)}, a folder, a captions file ({', '.join(TABLES)}), .tar shards, or a Hub id"
        f"{did_you_mean(name, neighbours(path))}"
    )


def neighbours(path: Path) -> list[str]:
    """What may have been meant by a path that is not there: the data sets with names, and what lies beside it."""
    beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
    return [*DATASETS, *(str(one) for one in beside if one.is_dir() or one.suffix in (*TABLES, ".tar"))]


def assemble(listing: Listing, settings: DataSettings, seed: int) -> DataSet:
    """Rows -> one picture an image, in splits: those of the rows if they name any, else by `split_of`.

    Raises:
        DataError: a row without a caption or an image, an image in two splits, too many failed downloads.
    """
    images: dict[str, Picture] = {}
    captions: dict[str, list[str]] = {}
    notes, problems, empty = listing.notes, list[str](), 0
    for row in listing.rows:
        first = images.setdefault(row.image_id, row)
        good = [c for c in row.captions if has_words(c)]
        empty += len(row.captions) - len(good) or not row.captions
        if not listing.published and (not good or len(good) < len(row.captions)):
            problems.append(f"{row.where}: {row.image_id} has no caption. Add one, or remove the row.")
        elif first is row and not row.url and isinstance(row.image, Path) and not row.image.is_file():
            problems.append(f"{row.where}: there is no image {row.image}. Add it, or remove the row.")
        elif first.split != row.split:
            problems.append(f"{row.where}: {row.image_id} is in {row.split}, and in {first.split} in {first.where}")
        captions.setdefault(row.image_id, []).extend(good)
    if problems:
        more = len(problems) - MAX_PROBLEMS
        raise DataError("\n".join(problems[:MAX_PROBLEMS]) + (f"\nand {more} more such rows" if more > 0 else ""))
    if empty:
        notes.append(f"{empty} captions are empty; left out")

    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for image_id, row in images.items():
        if captions[image_id]:
            splits[row.split or "train"].append(Picture(image_id, row.image, tuple(captions[image_id]), row.where))
    to_draw = not splits["validation"]
    if urls := {str(row.image): row.url for row in images.values() if row.url}:
        if not to_draw:
            limit(splits, settings, seed)  # before anything is downloaded
        splits = downloaded(splits, urls, settings.max_bad_images, notes)
    if to_draw:
        drawn = split_by_image(splits["train"], seed)
        if splits["test"]:
            notes.append("no validation images are named; a tenth of those for training is drawn")
            splits |= {"train": drawn["train"], "validation": drawn["validation"] + drawn["test"]}
        else:
            splits = drawn
    limit(splits, settings, seed)
    return DataSet(listing.name, splits, notes)


def downloaded(
    splits: dict[str, list[Picture]], urls: Mapping[str, str], max_bad_images: float, notes: list[str]
) -> dict[str, list[Picture]]:
    """The pictures that are here, after those with a URL were downloaded. Raises DataError if too many failed."""
    paths = [picture.image for part in splits.values() for picture in part if isinstance(picture.image, Path)]
    failed = download({path: urls[str(path)] for path in paths if str(path) in urls})
    reasons = "\n".join(list(failed.values())[:MAX_PROBLEMS])
    if len(failed) > max_bad_images * len(paths):
        raise DataError(
            f"{len(failed)} of {len(paths)} images could not be downloaded, more than --max_bad_images "
            f"allows:\n{reasons}\nRun again (what is here stays), or name a local copy with --image_root."
        )
    if failed:
        notes.append(f"{len(failed)} images could not be downloaded; left out:\n{reasons}")
    return {split: [picture for picture in part if picture.image not in failed] for split, part in splits.items()}


def limit(splits: dict[str, list[Picture]], settings: DataSettings, seed: int) -> None:
    """Apply `max_train_images` and `max_eval_images`."""
    for split in SPLITS:
        count = settings.max_train_images if split == "train" else settings.max_eval_images
        splits[split] = subsample(splits[split], count, seed)
