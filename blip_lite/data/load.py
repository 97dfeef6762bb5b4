"""What `--dataset` may be -> a data set."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from blip_lite.data.dataset import DataSet, Listing, split_by_image, subsample
from blip_lite.data.names import split_of_name, splits_of_folders
from blip_lite.data.sources.file import load_file
from blip_lite.data.sources.flickr import load_flickr8k
from blip_lite.data.sources.folder import load_folder, refuse_parts
from blip_lite.data.sources.hub import load_hub
from blip_lite.data.sources.karpathy import load_karpathy
from blip_lite.data.sources.shapes import SCENES, load_shapes
from blip_lite.data.sources.shards import load_tars
from blip_lite.data.sources.table import no_image, on_disk
from blip_lite.errors import DataError
from blip_lite.processing.download import download
from blip_lite.processing.picture import Picture
from blip_lite.processing.text import has_words
from blip_lite.settings import DATASETS, SPLITS, TABLES, DataSettings, did_you_mean

MAX_PROBLEMS = 5  # that an error message lists


def load_data(settings: DataSettings, seed: int, needed: Sequence[str] = ("train", "validation")) -> DataSet:
    """Find the data set that `settings.dataset` names, with its splits and `max_*_images` applied.

    Args:
        settings: which data, and how to read them.
        seed: of the split, and of the choice of `max_*_images`.
        needed: the splits that must have images.

    Raises:
        DataError: unknown data set, missing file or column, an image without a caption, an empty split.
    """
    data = assemble(find(settings, seed), settings, seed)
    if empty := [split for split in needed if not data.splits[split]]:
        sizes = ", ".join(f"{split} {len(data.splits[split])}" for split in SPLITS)
        raise DataError(
            f"{settings.dataset}: no images in {' and '.join(empty)} ({sizes}). Is the data set complete? "
            + ("Two images are the least that can be shared out." if data.drawn else "Its splits are those it names.")
            + "".join(f"\n{note}" for note in data.notes)
        )
    if not any(data.splits.values()):
        raise DataError(f"{settings.dataset}: no image with a caption" + "".join(f"\nnote: {n}" for n in data.notes))
    return data


def find(settings: DataSettings, seed: int) -> Listing:
    """The source that `settings.dataset` names. Raises DataError."""
    name, path = settings.dataset, Path(settings.dataset).expanduser()
    if name == "shapes" or path.suffix.lower() == ".tar" or path.is_file():
        refuse_parts(settings)
    if name == "shapes":
        return load_shapes(settings.scenes or SCENES, seed)
    if name == "flickr8k":
        return load_flickr8k(settings)
    if name in ("flickr30k", "coco_karpathy"):
        return load_karpathy(name, settings)
    if path.is_dir():
        return load_folder(path, settings)
    if path.suffix.lower() == ".tar":
        return load_tars(name, settings.caption_column)
    if path.is_file():
        return load_file(path, settings)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix.lower() not in TABLES:
        return load_hub(name, settings)
    raise DataError(
        f"--dataset {name}: there is no such file or folder; expected "
        f"{', '.join(DATASETS)}, a folder, a captions file ({', '.join(TABLES)}), .tar shards, or a Hub id"
        f"{did_you_mean(name, neighbours(path))}"
    )


def neighbours(path: Path) -> list[str]:
    """What may have been meant by a path that is not there: the data sets with names, and what lies beside it."""
    beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
    return [*DATASETS, *(str(one) for one in beside if one.is_dir() or one.suffix.lower() in (*TABLES, ".tar"))]


def assemble(listing: Listing, settings: DataSettings, seed: int) -> DataSet:
    """Rows -> one picture an image, in splits: those of the rows if they name any, else by `split_of`.

    Raises:
        DataError: a row without a caption or an image, an image in two splits, too many failed downloads.
    """
    images: dict[str, Picture] = {}  # the first row of each
    captions: dict[str, list[str]] = {}
    others: list[Picture] = []  # rows that name another split than the first of their image
    unusable: dict[int, str] = {}  # by the number of the row
    absent: set[str] = set()  # images that are not there
    numbers: dict[str, int] = {}
    notes, empty, repeated, nameless, kept_out = listing.notes, 0, 0, 0, Counter[str]()
    for number, row in enumerate(listing.rows):
        first = images.setdefault(row.image_id, row)
        if None not in (first.split, row.split) and callable(row.image) and row.image is not no_image:
            # its id is made of its bytes, so nobody gave it two splits: the same picture came in twice
            less, more = sorted((first.split, row.split), key=SPLITS.index)
            kept_out[f"{less} that are in {more}"] += less != more
            if row.split == less != more:
                continue
            if first.split == less != more:
                first = images[row.image_id] = row
                del captions[row.image_id]
        if first is row:
            numbers[row.image_id] = number
        elif row.split != first.split:
            others.append(row)
        good = [c for c in row.captions if has_words(c)]
        if row.image is no_image:
            absent.add(row.image_id)
            nameless += listing.published
            unusable |= {} if listing.published else {number: f"{row.image_id}. Add it, or remove the row."}
        elif len(good) < len(row.captions) or not row.captions:
            empty += 1
            odd = next((c for c in row.captions if c and not has_words(c)), None)
            reason = f"its caption {odd!r} has no letter and no digit" if odd else f"{row.image_id} has no caption"
            if not listing.published and not good:
                unusable[number] = f"{row.where}: {reason}. Add one, or remove the row."
        known = captions.setdefault(row.image_id, [])
        for caption in good:  # data sets repeat captions to have five of each: no second opinion
            repeated += caption in known
            known += [caption] if caption not in known else []

    files = {key: row for key, row in images.items() if isinstance(row.image, Path) and not row.url}
    for key in find_files(files, images, captions, others):
        absent.add(key)
        file = Path(str(files[key].image))
        unusable[numbers[key]] = f"{files[key].where}: there is no image {file}. Add it, or remove the row."
    for which, count in sorted((+kept_out).items()):
        notes.append(f"{count} pictures of {which}, too, byte for byte; left out of the first")
    placed = {key: row for key, row in images.items() if key in files or row.name}
    problems = settle_splits(images, placed, others, notes)
    if problems or len(unusable) > settings.max_bad_images * max(1, len(images)):
        listed = problems + [unusable[number] for number in sorted(unusable)]
        raise DataError(reasons(listed, len(problems), len(absent), len(images), notes))
    if unusable:
        notes.append(
            f"{len(unusable)} rows cannot be used; left out:\n"
            + "\n".join(unusable[number] for number in sorted(unusable)[:MAX_PROBLEMS])
        )
    elif empty:
        notes.append(f"{empty} captions are empty; left out")
    if nameless:
        notes.append(f"{nameless} rows name no image; left out")
    if repeated:
        notes.append(f"{repeated} captions repeat another one of their image word for word; left out")

    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for image_id, row in sorted(images.items()):  # by id, so that moving a table's rows moves no example
        if captions[image_id] and image_id not in absent:
            splits[row.split or "train"].append(Picture(image_id, row.image, tuple(captions[image_id]), row.where))
    to_draw = not splits["validation"] and bool(splits["train"])
    drawn = to_draw and not splits["test"]  # at most a training part is named
    left_out = dict.fromkeys(SPLITS, 0)
    if urls := {str(row.image): row.url for row in images.values() if row.url}:
        if not to_draw:
            left_out = limit(splits, settings, seed)  # before anything is downloaded
        splits = downloaded(splits, urls, settings.max_bad_images, notes)
    if to_draw:
        parts = split_by_image(splits["train"], seed, settings.validation_share)
        if splits["test"]:
            share = 2 * settings.validation_share
            notes.append(f"no validation images are named; {share:.0%} of those for training are drawn")
            splits |= {"train": parts["train"], "validation": parts["validation"] + parts["test"]}
        else:
            splits = parts
    left_out = {split: left_out[split] + count for split, count in limit(splits, settings, seed).items()}
    return DataSet(listing.name, splits, notes, drawn, left_out)


def find_files(
    files: Mapping[str, Picture], images: dict[str, Picture], captions: dict[str, list[str]], others: Sequence[Picture]
) -> list[str]:
    """Give each row that names a file the one that is there. Where `1.JPG` and `1.jpg` are one file, they become one
    image, but not `A.jpg` and `a.jpg`, of which one may be missing. Returns the ids of those that are not there.

    Args:
        files: the rows that name a file, by image id.
        images, captions: of all images.
        others: rows that name another split than the first of their image.
    """
    missing, keys = [], dict[Path, tuple[str, str]]()  # by file: the first id, and the stem that it was asked for by
    for key, row in files.items():
        asked = Path(str(row.image))
        path = on_disk(asked)
        other, name = keys.setdefault(path, (key, asked.stem)) if path else (key, "")
        if path is None or name != asked.stem:
            missing.append(key)
        elif other != key and images[other].split == row.split:
            captions[other] += [caption for caption in captions.pop(key) if caption not in captions[other]]
            for late in others:
                late.image_id = other if late.image_id == key else late.image_id
            del images[key]
        else:
            row.image = path
    return missing


def settle_splits(
    images: Mapping[str, Picture], placed: Mapping[str, Picture], others: Sequence[Picture], notes: list[str]
) -> list[str]:
    """Give each image its split: that of its row, else of its folder, else of its file's name. Returns what is wrong:
    an image in two splits, one of a test's folder that is called something else, one without a split among others.

    Args:
        images: the first row of each.
        placed: of them, those that have a path, in a folder or a shard.
        others: rows that name another split than the first of their image.
    """
    problems = []
    of_folders = splits_of_folders({row.place.rpartition("/")[0] for row in placed.values()})
    for row in (*placed.values(), *others):
        of_path = of_folders.get(row.place.rpartition("/")[0]) if row.image_id in placed else None
        if of_path == "test" and row.split not in (None, "test"):
            problems.append(f"{row.where}: {row.image_id} is in {row.split}, but its folder says test")
        row.split = row.split or of_path
        first = images[row.image_id]
        if first.split != row.split:
            problems.append(f"{row.where}: {row.image_id} is in {row.split}, and in {first.split} in {first.where}")
    if placed and len(placed) == len(images) and all(row.split is None for row in images.values()):
        splits_of_files(images, notes)
    of_files: dict[str | tuple[int, int], Picture] = {}
    files = [row for row in placed.values() if isinstance(row.image, Path)]
    for row in files if len({row.split for row in files}) > 1 else ():  # one file under two names
        first = of_files.setdefault(file_identity(Path(str(row.image))), row)
        if first.split != row.split:
            problems.append(
                f"{row.where}: {row.image_id} is in {row.split}; its file is that of {first.image_id}, in {first.split}"
            )
    return problems + split_problems(images.values())


def file_identity(path: Path) -> str | tuple[int, int]:
    """Equal for two names of one file: links, symbolic and hard. The path itself where there is no such number."""
    try:
        found = os.stat(path)
    except OSError:
        return str(path)
    return (found.st_dev, found.st_ino) if found.st_ino else str(path)


def splits_of_files(images: Mapping[str, Picture], notes: list[str]) -> None:
    """Where nothing else names a split, the files' own names may (`test_0001.png`, `COCO_val2014_000000000042.jpg`):
    if all do, and not all the same one that may be trained on, they are believed."""
    found = {key: split_of_name(PurePosixPath(row.place).stem, strict=True) for key, row in images.items()}
    named = {split for split in found.values() if split}
    if len(named) < 2 and "test" not in named:
        return
    if None in found.values():
        silent = next(images[key].place for key, split in found.items() if not split)
        odd = next(images[key].place for key, split in found.items() if split)
        notes.append(f"some files name a split ({odd}), others do not ({silent}); the names are not looked at")
        return
    notes.append(f"the names of the files say their splits: {', '.join(sorted(named))}")
    for key, row in images.items():
        row.split = found[key]


def split_problems(rows: Collection[Picture]) -> list[str]:
    """Images without a split where others have one: what nobody named must not be trained on without a word."""
    silent = [row for row in rows if row.split is None]
    if not silent or len(silent) == len(rows):
        return []
    return [
        f"{len(silent)} of {len(rows)} images are in no split (train, validation or test), e.g. "
        f"{silent[0].where or silent[0].image_id}. Name theirs too, as the others', or take them out"
    ]


def reasons(problems: list[str], firm: int, absent: int, images: int, notes: Sequence[str]) -> str:
    """The first problems, how many more there are, the notes that may explain them, and the remedy; `firm` of the
    problems cannot be allowed. Where most images are absent, a few that are there may be of another folder."""
    more = len(problems) - MAX_PROBLEMS
    text = "\n".join(problems[:MAX_PROBLEMS]) + (f"\nand {more} more such rows" if more > 0 else "")
    text += "".join(f"\nnote: {note}" for note in notes[:MAX_PROBLEMS])
    if 2 * absent > images:
        count = "No image is" if absent == images else f"{absent} of {images} images are not"
        text += f"\n{count} there: name the folder of the images with --image_root (unpack it first). "
        return text + "If these are no names of files, --image_column names another column"
    return text if firm else f"{text}\n--max_bad_images SHARE leaves such rows out"


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


def limit(splits: dict[str, list[Picture]], settings: DataSettings, seed: int) -> dict[str, int]:
    """Apply `max_train_images` and `max_eval_images`. Returns how many images each split lost."""
    left_out = {}
    for split in SPLITS:
        count, whole = settings.max_train_images if split == "train" else settings.max_eval_images, splits[split]
        splits[split] = subsample(whole, count, seed)
        left_out[split] = len(whole) - len(splits[split])
    return left_out
