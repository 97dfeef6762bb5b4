"""A captions file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from blip_lite.data.dataset import Listing
from blip_lite.data.names import find_column, plain, split_of_name, split_of_path
from blip_lite.data.sources.hub import datasets_rows, parquet
from blip_lite.data.sources.karpathy import karpathy_rows
from blip_lite.data.sources.table import (
    ANNOTATIONS,
    agreed,
    captions_in,
    image_path,
    inside,
    on_disk,
    read_json,
    read_table,
    split_in,
    table_rows,
    utf8,
    with_suffix,
)
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture
from blip_lite.settings import TABLES, DataSettings

_UPLOADED = re.compile(r"^.*/[0-9a-f]{8}-(?=[^/]+$)")

REMEDIES = {
    **dict.fromkeys((".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst"), "unpack it and name the folder"),
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "save the sheet as CSV (UTF-8) and name that"),
    ".arrow": "name the folder that `datasets.save_to_disk` wrote, not a file in it",
    ".lmdb": "export it to files or .tar shards",
    **dict.fromkeys(IMAGE_SUFFIXES, "this is a picture; name the folder, or the table of the captions"),
}

PROBE = 50  # rows that are looked at to find the folder of the images


def file_rows(
    path: Path, root: Path, settings: DataSettings, notes: list[str], split: str | None = None
) -> Iterable[Picture]:
    """Rows of a captions file; its images are in `root`, or in the folder beside it that has them."""
    suffix = path.suffix.lower()
    content = read_json(path) if suffix == ".json" else None
    rows: Iterable[Picture]
    if suffix == ".parquet":
        rows = datasets_rows({"": parquet(path)}, str(path), root, settings, notes, split)
    elif isinstance(content, Mapping):
        rows = object_rows(content, root, path, settings, notes, split)
    else:
        rows = table_rows(utf8(path, read_table(path, notes=notes)), root, settings, notes, split)
    return rows if settings.image_root else in_right_folder(rows, root, notes, split)


def load_file(path: Path, settings: DataSettings) -> Listing:
    """A captions file: CSV, TSV, JSONL, Parquet, or JSON (a list of objects, COCO's annotations, Karpathy's, and more
    in `object_rows`). One that says in its name that it is a test stays one."""
    if path.suffix.lower() not in TABLES:
        if remedy := REMEDIES.get(path.suffix.lower()):
            raise DataError(f"--dataset {path}: {remedy}")
        raise DataError(f"--dataset {path}: a file is to be one of {', '.join(sorted(TABLES))}, .tar")
    root, notes = Path(settings.image_root).expanduser() if settings.image_root else path.parent, list[str]()
    split = split_of_name(path.stem)
    rows = file_rows(path, root, settings, notes, "test" if split == "test" else None)
    return Listing(path.stem, rows, notes)


def in_right_folder(
    rows: Iterable[Picture], root: Path, notes: list[str], split: str | None = None
) -> Iterator[Picture]:
    """The rows; where none of the first has its image in `root`, with the folder below or beside it that has them, and
    without the leading folders that these share, where they are another machine's. Raises DataError where several
    folders have them, and none is called after images or the table's split."""
    rows = iter(rows)
    first = list(islice(rows, PROBE))
    probe = [row.image for row in first if isinstance(row.image, Path) and not row.url]
    found = right_folder(probe, root, first[0].where, split) if probe and not any(map(on_disk, probe)) else None
    if not found:
        yield from first
        yield from rows
        return
    folder, shorter = found
    notes.append(f"images are in {folder}; --image_root says another folder")
    of_folder = split_of_name(folder.name, strict=True)
    base, paths = os.path.join(os.path.abspath(root), ""), dict[str, Path]()
    for row in chain(first, rows):
        if of_folder == "test":
            if row.split not in (None, "test"):
                raise DataError(f"{row.where}: {row.image_id} is in {row.split}, but its folder {folder} says test")
            row.split = "test"
        if isinstance(row.image, Path) and not row.url:
            name = str(row.image)
            if name not in paths:
                short = shorter(Path(name.removeprefix(base)).as_posix())
                paths[name] = row.image if short is None else with_suffix(inside(folder, short, row.where))
            row.image = paths[name]
        yield row


def right_folder(
    probe: Sequence[Path], root: Path, where: str, split: str | None
) -> tuple[Path, Callable[[str], str | None]] | None:
    """(the folder that has the files of `probe`, what makes their names in it of those in `root`), or None."""
    names = [Path(os.path.relpath(path, root)).as_posix() for path in probe]
    beside = root.parent.glob("*/") if plain(root.name) in ANNOTATIONS else ()  # COCO
    folders = sorted(p for p in {*root.glob("*/"), *root.glob("*/*/"), *beside} if p.is_dir())
    folders = [f for f in folders if not any(part[:1] in (".", "_") for part in f.relative_to(root.parent).parts[1:])]
    if split:  # another split's folder has other images of these names
        folders = [folder for folder in folders if split_of_name(folder.name, strict=True) in (None, split)]

    for shorter in shortenings(names):

        def fit(folder: Path, shorter: Callable[[str], str | None] = shorter) -> tuple[int, bool, bool, bool]:
            has = sum(on_disk(folder / (shorter(name) or name)) is not None for name in names)
            named = split_of_name(folder.name, strict=True)
            images = plain(folder.name) in ("images", "image", "imgs", "photos", "data")
            return has, folder == root, bool(split) and named == split, images

        fits = sorted(((fit(folder), folder) for folder in (root, *folders)), reverse=True)
        if len(fits) > 1 and fits[0][0][0] and fits[1][0] == fits[0][0]:
            raise DataError(
                f"{where}: images of these names are in {fits[0][1]} and in {fits[1][1]}; say which with --image_root"
            )
        if fits[0][0][0]:
            return fits[0][1], shorter
    return None


def shortenings(names: Sequence[str]) -> Iterator[Callable[[str], str | None]]:
    """What may be left out of names: nothing; one after the other of the folders that all of these begin with, up to
    one that may name a split (None for a name that begins otherwise); and the eight signs that Label Studio puts before
    the name of an uploaded file."""
    shared = PurePosixPath(os.path.commonpath([os.path.dirname(name) for name in names])).parts
    for cut in range(len(shared) + 1):
        if cut and split_of_name(shared[cut - 1]):  # `flowers_test`: what is cut off is not looked at again
            return
        begins = "".join(f"{part}/" for part in shared[:cut])
        yield lambda name, begins=begins: name[len(begins) :] if name.startswith(begins) else None  # type: ignore[misc]
    if all(_UPLOADED.search(name) for name in names):
        yield lambda name: _UPLOADED.sub("", name)


def object_rows(
    content: Mapping[str, Any], root: Path, path: Path, settings: DataSettings, notes: list[str], split: str | None
) -> Iterable[Picture]:
    """JSON that is one object: COCO's annotations, Karpathy's images, `{"data": [rows]}`, or `{name: captions}`."""
    if "annotations" in content and "images" in content:
        return coco_rows(content, root, path, notes, split)
    if isinstance(content.get("images"), list):
        if not any("sentences" in image for image in content["images"] if isinstance(image, dict)):
            raise DataError(f"{path}: its images have no captions (neither `sentences` nor `annotations`)")
        return karpathy_rows(content["images"], root, str(path))
    for key in ("data", "annotations", "rows", "items"):
        if isinstance(rows := content.get(key), list) and rows and all(isinstance(row, dict) for row in rows):
            places = ((f"{path}, {key}, item {number}", row) for number, row in enumerate(rows, 1))
            return table_rows(places, root, settings, notes, split)
    if content and all(is_named(name, value) for name, value in content.items()):
        return named_rows(content, root, path, split)
    keys = ", ".join(map(repr, list(content)[:5]))
    raise DataError(
        f"{path}: an object with {keys}; expected COCO's images and annotations, Karpathy's images, "
        '{"data": [{"image": ..., "caption": ...}]} or {"001.jpg": "a caption"}'
    )


def is_named(name: str, value: Any) -> bool:
    """Whether an entry is an image's name with its captions."""
    if isinstance(value, Mapping):
        return find_column([*value], ("caption", "captions", "text", "sentences")) is not None
    texts = value if isinstance(value, list) else [value]
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and all(
        isinstance(text, (str, dict, type(None))) for text in texts
    )


def named_rows(content: Mapping[str, Any], root: Path, path: Path, split: str | None) -> Iterator[Picture]:
    """`{name: captions}`, as kohya's `meta_cap.json`."""
    for name, value in content.items():
        where = f"{path}, {name}"
        image_id, file = image_path(root, name, where)
        own = value.get("split") if isinstance(value, Mapping) else None
        part = agreed(split_in(own, where) if own else None, split, where)
        yield Picture(image_id, file, tuple(captions_in(value)), where, part)


def coco_rows(
    content: Mapping[str, Any], root: Path, path: Path, notes: list[str], split: str | None = None
) -> Iterator[Picture]:
    """COCO's own annotations, e.g. `captions_train2014.json`; and VizWiz's, whose judges marked captions as spam."""
    rejected = precanned = 0
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        own = {image["id"]: image.get("split") for image in content["images"]}
        if len(names) < len(content["images"]):
            raise DataError(f"{path}: two images have one id")
        for number, one in enumerate(content["annotations"], 1):
            if one.get("is_rejected"):
                rejected += 1
                continue
            precanned += bool(one.get("is_precanned"))
            where, name = f"{path}, annotation {number}", names[one["image_id"]]
            captions = tuple(captions_in(one["caption"]))
            named = own[one["image_id"]]
            part = agreed(split_in(named, where) if named else None, split, where) or split_of_path(PurePosixPath(name))
            yield Picture(str(one["image_id"]), image_path(root, name, where)[1], captions, where, part)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO's annotations: {type(error).__name__} {error}") from error
    if rejected:
        notes.append(f"{rejected} captions are marked as rejected; left out")
    if precanned:
        notes.append(f"{precanned} captions are marked as precanned (a stock sentence, not a description); kept")
