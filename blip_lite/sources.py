"""What `--dataset` may be -> images, each with all of its captions, in splits.

Every source becomes `Row`s: where it stands, which image, which captions, which split if the data say so. `assemble`
puts the rows of one image together, and names what is wrong by file and row before any work is done.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from blip_lite.config import TrainConfig
from blip_lite.data import SPLITS, DataError, DataSet, Example, split_by_image, subsample
from blip_lite.fetch import cache_dir, cached, download
from blip_lite.processing import IMAGE_SUFFIXES, ImageInput
from blip_lite.shapes import draw_scene, scene_captions, scene_ids

T = TypeVar("T")

# How splits, and the columns of images and captions, are usually called. The first name that is there is taken.
SPLIT_NAMES = {"train": "train", "training": "train", "restval": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "filepath", "path", "img", "jpg", "png", "image_url", "url")  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentences", "raw", "description", "txt")
SHOWN = 5  # problems that an error message lists


@dataclass
class Row:
    """One line of a source. `image` is a path, a URL, or a function that returns the bytes; `key` says which image it
    is."""

    where: str
    key: str
    image: ImageInput | Callable[[], ImageInput]
    captions: list[str]
    split: str | None = None
    url: str | None = None  # from which `image`, a path, is downloaded


def load_data(config: TrainConfig) -> DataSet:
    """Find the data set that `config.dataset` names, with its splits and `max_*_images` applied.

    Raises:
        DataError: unknown data set, missing file or column, an image without a caption, an empty split.
    """
    name, path = config.dataset, Path(config.dataset).expanduser()
    if name == "shapes":
        data = load_shapes(config)
    elif name == "flickr8k":
        data = load_flickr8k(config)
    elif name in ("flickr30k", "coco_karpathy"):
        data = load_karpathy(name, config)
    elif path.is_dir():
        data = load_folder(path, config)
    elif path.suffix == ".tar":
        data = load_tars(name, config)
    elif path.is_file():
        data = load_file(path, config)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix not in TABLES:
        data = load_hub(name, config)
    else:
        raise DataError(
            f"--dataset {name}: there is no such file or folder; expected shapes, flickr8k, flickr30k, coco_karpathy, "
            "a folder, a captions file (.csv, .tsv, .jsonl, .json, .parquet), .tar shards, or a Hub id"
        )
    if empty := [split for split in ("train", "validation") if not data.splits[split]]:
        sizes = ", ".join(f"{split} {len(data.splits[split])}" for split in SPLITS)
        raise DataError(
            f"{name}: no images in {' and '.join(empty)} ({sizes}). Is the data set complete? A split is drawn image by image, 90/5/5: with few images a part can be empty; add images, or try another --seed."
        )
    return data


# ------------------------------------------------------------------------------------ rows -> a data set


def has_words(caption: str) -> bool:
    """Whether there is anything to learn: a letter or a digit, in any script."""
    return any(map(str.isalnum, caption))


def assemble(name: str, rows: Iterable[Row], config: TrainConfig, notes: list[str], published: bool = False) -> DataSet:
    """Rows -> one example an image, in splits: those of the rows if they name any, else by `split_of`.

    Args:
        name: of the data set.
        rows: in any order.
        config: for the seed, the limits, and how many downloads may fail.
        notes: what was seen so far; more is added.
        published: the user cannot mend the rows, so empty captions are left out and counted, not refused.

    Raises:
        DataError: a row without a caption or an image, an image in two splits, too many failed downloads.
    """
    images: dict[str, Row] = {}
    captions: dict[str, list[str]] = {}
    problems: list[str] = []
    empty = 0
    for row in rows:
        first = images.setdefault(row.key, row)
        good = [c for c in row.captions if has_words(c)]
        empty += len(row.captions) - len(good) or not row.captions
        if not published and (not good or len(good) < len(row.captions)):
            problems.append(f"{row.where}: {row.key} has no caption. Add one, or remove the row.")
        elif first is row and not row.url and isinstance(row.image, Path) and not row.image.is_file():
            problems.append(f"{row.where}: there is no image {row.image}. Add it, or remove the row.")
        elif first.split != row.split:
            problems.append(f"{row.where}: {row.key} is in {row.split}, and in {first.split} in {first.where}")
        captions.setdefault(row.key, []).extend(good)
    if problems:
        more = len(problems) - SHOWN
        raise DataError("\n".join(problems[:SHOWN]) + (f"\nand {more} more such rows" if more > 0 else ""))
    if empty:
        notes.append(f"{empty} captions are empty; left out")

    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for key, row in images.items():
        if captions[key]:
            splits[row.split or "train"].append(Example(key, row.image, tuple(captions[key])))
    to_draw = not splits["validation"]
    if urls := {str(row.image): row.url for row in images.values() if row.url}:
        if not to_draw:
            limit(splits, config)  # before anything is downloaded
        splits = downloaded(splits, urls, config, notes)
    if to_draw:
        drawn = split_by_image(splits["train"], config.seed)
        if splits["test"]:
            notes.append("no validation images are named; a tenth of those for training is drawn")
            splits |= {"train": drawn["train"], "validation": drawn["validation"] + drawn["test"]}
        else:
            splits = drawn
    limit(splits, config)
    return DataSet(name, splits, notes)


def downloaded(
    splits: dict[str, list[Example]], urls: Mapping[str, str], config: TrainConfig, notes: list[str]
) -> dict[str, list[Example]]:
    """The examples whose images are here, after those with a URL were downloaded. Raises DataError if too many failed."""
    paths = [e.image for examples in splits.values() for e in examples if isinstance(e.image, Path)]
    failed = download({path: urls[str(path)] for path in paths if str(path) in urls})
    reasons = "\n".join(list(failed.values())[:SHOWN])
    if len(failed) > config.max_bad_images * len(paths):
        raise DataError(
            f"{len(failed)} of {len(paths)} images could not be downloaded, more than --max_bad_images allows:\n{reasons}"
            "\nRun again (what is here stays), or name a local copy with --image_root."
        )
    if failed:
        notes.append(f"{len(failed)} images could not be downloaded; left out:\n{reasons}")
    return {split: [e for e in examples if e.image not in failed] for split, examples in splits.items()}


def limit(splits: dict[str, list[Example]], config: TrainConfig) -> None:
    """Apply `max_train_images` and `max_eval_images`."""
    for split in SPLITS:
        count = config.max_train_images if split == "train" else config.max_eval_images
        splits[split] = subsample(splits[split], count, config.seed)


def pick_columns(columns: Sequence[str], config: TrainConfig, where: str, notes: list[str]) -> tuple[str, list[str]]:
    """The column of the image and those of the captions: as told, else by their usual names."""
    image = config.image_column or next((c for c in IMAGE_COLUMNS if c in columns), None)
    numbered = [c for c in columns if re.fullmatch(r"(caption|text|sentence)[_ ]?\d+", c)]
    captions = config.caption_column.split(",") if config.caption_column else []
    captions = captions or [c for c in CAPTION_COLUMNS if c in columns][:1] or numbered
    there = f"there are: {', '.join(map(str, columns))}"
    if image is None or image not in columns:
        raise DataError(f"{where}: no column {image or 'file_name or image'}; {there}. Name it with --image_column")
    if not captions or not set(captions) <= set(columns):
        raise DataError(
            f"{where}: no column {', '.join(captions) or 'caption (or captions, or text)'}; {there}. Name it with --caption_column"
        )
    if not (config.image_column and config.caption_column):
        notes.append(f"{where}: images are in column {image!r}, captions in {', '.join(map(repr, captions))}")
    return image, captions


def captions_in(value: Any) -> list[str]:
    """All captions in a cell: a text, a list of them (as JSON text too), or Karpathy's `{"raw": ...}`."""
    if isinstance(value, str):
        if value.startswith('["'):
            with contextlib.suppress(ValueError):
                return captions_in(json.loads(value))
        return [value.strip()]
    if isinstance(value, Mapping):
        return captions_in(next((value[c] for c in ("raw", *CAPTION_COLUMNS) if c in value), None))
    if value is None:
        return []
    return [c for item in value for c in captions_in(item)] if isinstance(value, Iterable) else [str(value)]


def inside(root: Path, name: str, where: str) -> Path:
    """`root / name`. Raises DataError if that lies outside of `root`."""
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(os.path.join(base, "")):
        raise DataError(f"{where}: {name} lies outside {root}. If that is meant, say so with --image_root")
    return Path(path)


def table_rows(
    table: Iterable[tuple[str, Mapping[str, Any]]],
    root: Path,
    config: TrainConfig,
    notes: list[str],
    split: str | None = None,
    load: Callable[[int, str], bytes] | None = None,
) -> Iterator[Row]:
    """Rows of any table.

    Args:
        table: (where, row) pairs.
        root: the folder to which image paths are relative.
        config: for the columns, and whether URLs may be followed.
        notes: what was guessed is added here.
        split: of all rows; else a column `split` is looked at.
        load: (number of the row, column) -> the bytes again, where the table holds images.
    """
    columns: tuple[str, list[str]] | None = None
    for number, (where, row) in enumerate(table):
        columns = columns or pick_columns(list(row), config, where, notes)
        image, names = columns
        value = row.get(image)
        captions = [c for name in names for c in captions_in(row.get(name))]
        if len(names) > 1:  # caption_0 to caption_4, of which some images have fewer
            captions = [c for c in captions if c]
        named = row.get("split")
        in_split = split or (SPLIT_NAMES.get(named) if isinstance(named, str) else None)
        if isinstance(value, Mapping):  # {"bytes", "path"}, as `datasets` keeps an image
            value = value.get("bytes") or value.get("path")
        if not value:
            raise DataError(f"{where}: no image in column {image}. Add it, or remove the row.")
        if isinstance(value, bytes):
            assert load is not None
            key = hashlib.sha256(value).hexdigest()[:16]
            yield Row(where, key, partial(load, number, image), captions, in_split)
        elif not isinstance(value, str):
            raise DataError(f"{where}: column {image} holds {type(value).__name__}; expected a path, a URL or bytes")
        elif re.match(r"https?://", value, re.IGNORECASE):
            if not config.allow_urls:
                raise DataError(
                    f"{where}: the image is a URL, {value}; --allow_urls downloads such images into a cache"
                )
            yield Row(where, value, cached(value), captions, in_split, url=value)
        elif re.match(r"[a-z]{2,}:", value, re.IGNORECASE):
            raise DataError(f"{where}: {value}: only paths, http and https URLs are read")
        else:
            yield Row(where, value, inside(root, value, where), captions, in_split)


# ---------------------------------------------------------------------------------------------- files

TABLES = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}


def read_table(path: Path, strict: bool = True) -> Iterator[tuple[str, dict[Any, Any]]]:
    """("FILE, line N", row) of a CSV, TSV, JSONL or JSON file (a list of objects).

    Raises DataError for a bad row; if not `strict`, a JSONL row that cannot be read is `{None: REASON}`, and a CSV row with too
    many fields has those under None.
    """

    def bad(where: str, reason: str) -> tuple[str, dict[Any, Any]]:
        if strict:
            raise DataError(f"{where}: {reason}")
        return where, {None: reason}

    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise DataError(f"{path}: expected a list of objects, or the JSON of COCO or Karpathy")
        yield from ((f"{path}, item {number}", row) for number, row in enumerate(content, 1))
        return
    with open(path, encoding="utf-8-sig", newline="", errors="strict" if strict else "surrogateescape") as file:
        if path.suffix != ".jsonl":
            for row in (reader := csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")):
                where = f"{path}, line {reader.line_num}"
                if None in row and strict:  # a comma in a caption without quotes would cut it
                    raise DataError(f"{where}: more fields than columns; put captions with commas in quotes")
                yield where, row
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                yield bad(where, f"not valid JSON ({error})")
                continue
            yield (
                (where, row) if isinstance(row, dict) else bad(where, "expected an object, with file_name and caption")
            )


def utf8(path: Path, rows: Iterator[T]) -> Iterator[T]:
    """The rows; what the file's text is at fault for becomes a DataError."""
    try:
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def file_rows(path: Path, root: Path, config: TrainConfig, notes: list[str], split: str | None = None) -> Iterator[Row]:
    """Rows of a captions file."""
    if path.suffix == ".parquet":
        return datasets_rows({"": parquet(path)}, str(path), root, config, notes, split)
    return table_rows(utf8(path, read_table(path)), root, config, notes, split)


def load_file(path: Path, config: TrainConfig) -> DataSet:
    """A captions file: CSV, TSV, JSONL, Parquet, or JSON (a list of objects, COCO's annotations, or Karpathy's)."""
    if path.suffix not in TABLES:
        raise DataError(f"--dataset {path}: a file is to be one of {', '.join(sorted(TABLES))}, .tar")
    root, notes = Path(config.image_root).expanduser() if config.image_root else path.parent, list[str]()
    content = read_json(path) if path.suffix == ".json" else None
    if isinstance(content, dict):
        if config.image_root is None:
            raise DataError(f"--dataset {path}: name the folder of its images with --image_root")
        rows: Iterable[Row] = coco_rows(content, root, path) if "annotations" in content else karpathy_rows(content.get("images"), root, str(path))  # fmt: skip
    else:
        rows = file_rows(path, root, config, notes)
    return assemble(path.stem, rows, config, notes)


def coco_rows(content: dict[str, Any], root: Path, path: Path) -> Iterator[Row]:
    """COCO's own annotations, e.g. `captions_train2014.json`."""
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for number, one in enumerate(content["annotations"], 1):
            where, name = f"{path}, annotation {number}", names[one["image_id"]]
            yield Row(where, str(one["image_id"]), inside(root, name, where), [one["caption"].strip()])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO's annotations: {type(error).__name__} {error}") from error


# --------------------------------------------------------------------------------------------- folders


def load_folder(folder: Path, config: TrainConfig) -> DataSet:
    """A folder of images with `metadata.csv|jsonl|parquet` (the Hugging Face `imagefolder` convention) or a `.txt` beside
    each image; or a folder of Parquet files (a copy of a Hub data set) or `.tar` shards. Sub-folders named train,
    validation and test are the splits."""
    parts = {SPLIT_NAMES[p.name]: p for p in sorted(folder.iterdir()) if p.is_dir() and p.name in SPLIT_NAMES}
    notes: list[str] = []
    if "train" in parts and not any((folder / f"metadata{suffix}").is_file() for suffix in TABLES):
        rows = [row for split, part in parts.items() for row in folder_rows(part, folder, config, notes, split)]
    else:
        rows = list(folder_rows(folder, folder, config, notes, None))
    return assemble(folder.resolve().name, rows, config, notes)


def folder_rows(folder: Path, root: Path, config: TrainConfig, notes: list[str], split: str | None) -> Iterator[Row]:
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    for suffix in TABLES:
        metadata = folder / f"metadata{suffix}"
        if metadata.is_file():
            named = set()
            for row in file_rows(metadata, folder, config, notes, split):
                named.add(row.image)
                if isinstance(row.image, Path) and not row.url:
                    row.key = row.image.relative_to(root).as_posix()
                    row.split = row.split or SPLIT_NAMES.get(row.key.split("/")[0])  # one file for all sub-folders
                yield row
            if silent := [p.relative_to(folder) for p in images if p not in named]:
                notes.append(f"{len(silent)} images are not in {metadata.name}; left out (e.g. {silent[0]})")
            return
    if any(folder.rglob("*.parquet")):
        yield from datasets_rows(hub(str(folder), config), folder.name, folder, config, notes, split)
    elif shards := sorted(folder.rglob("*.tar")):
        yield from tar_rows(shards, notes)
    else:
        silent = []
        for image in images:
            text = image.with_suffix(".txt")
            if text.is_file():
                lines = [line.strip() for line in utf8(text, iter(text.read_text("utf-8-sig").splitlines()))]
                yield Row(str(text), image.relative_to(root).as_posix(), image, [c for c in lines if c], split)
            else:
                silent.append(image)
        if len(silent) == len(images):
            raise DataError(
                f"{folder}: has no metadata.csv, metadata.jsonl or metadata.parquet with columns file_name and caption, "
                "and no image has a .txt with its caption beside it"
            )
        if silent:
            notes.append(f"{len(silent)} images have no .txt beside them; left out (e.g. {silent[0].name})")


def expand_braces(pattern: str) -> list[str]:
    """`a/{0000..0002}.tar` -> `a/0000.tar`, `a/0001.tar`, `a/0002.tar`."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [p for n in numbers for p in expand_braces(pattern[: found.start()] + n + pattern[found.end() :])]


def load_tars(pattern: str, config: TrainConfig) -> DataSet:
    """Local webdataset shards. They are indexed, not streamed: so the order of an epoch is exact, every image comes
    once, and a run can continue in the middle of an epoch, with any number of workers."""
    paths = [Path(p).expanduser() for p in expand_braces(pattern)]
    if missing := [p for p in paths if not p.is_file()]:
        raise DataError(f"--dataset {pattern}: {len(missing)} of {len(paths)} shards are missing, e.g. {missing[0]}")
    notes: list[str] = []
    return assemble(Path(re.sub(r"\{.*?\}", "", pattern)).stem.strip("-_.") or paths[0].parent.name, tar_rows(paths, notes), config, notes)  # fmt: skip


def tar_rows(paths: Sequence[Path], notes: list[str]) -> Iterator[Row]:
    """One row a sample: consecutive files of one name up to the first dot. The split is what the shard's name begins
    with, if it is one (`train-0000.tar`)."""
    lacking = 0
    for path in paths:
        begins = re.match(r"[a-z]+", path.name, re.IGNORECASE)
        split = SPLIT_NAMES.get(begins[0].lower()) if begins else None
        try:
            with tarfile.open(path, "r:") as tar:  # not compressed: a compressed one cannot be read in any order
                for key, parts in samples(tar):
                    piece = {ext: partial(read_piece, path, m.offset_data, m.size) for ext, m in parts.items()}
                    image = next((p for ext, p in piece.items() if f".{ext}" in IMAGE_SUFFIXES), None)
                    captions = tar_captions(piece, f"{path}, {key}")
                    if image is None or not any(map(has_words, captions)):
                        lacking += 1
                        continue
                    digest = hashlib.sha256(image()).hexdigest()[:16]
                    yield Row(f"{path}, {key}", digest, image, [c for c in captions if has_words(c)], split)
                check_end(tar, path)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{path}: not a whole, uncompressed tar file ({error})") from error
    if lacking:
        notes.append(f"{lacking} samples have no image or no caption; left out")


def samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(name up to the first dot, its files by extension) in the order of the shard."""
    key, parts = "", dict[str, tarfile.TarInfo]()
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if not member.isfile() or not extension:
            continue
        if f"{folder}/{stem}" != key and parts:
            yield key, parts
            parts = {}
        key = f"{folder}/{stem}"
        parts[extension.lower()] = member
    if parts:
        yield key, parts


def tar_captions(pieces: Mapping[str, Callable[[], bytes]], where: str) -> list[str]:
    """The lines of a sample's `.txt`, or what its `.json` has."""
    try:
        if "txt" in pieces:
            return [line.strip() for line in pieces["txt"]().decode("utf-8-sig").splitlines() if line.strip()]
        return captions_in(json.loads(pieces["json"]())) if "json" in pieces else []
    except ValueError as error:  # not UTF-8, not JSON
        raise DataError(f"{where}: its caption cannot be read ({error})") from error


def check_end(tar: tarfile.TarFile, path: Path) -> None:
    """After its last member, a whole tar file has blocks of zeros. Raises tarfile.ReadError."""
    if path.stat().st_size < tar.offset + 512:
        raise tarfile.ReadError("it was cut short")


def read_piece(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


# ------------------------------------------------------------------------------- Hub and Parquet tables


def hub(dataset: str, config: TrainConfig) -> dict[str, Any]:
    """The splits of a Hub data set, or of a local copy of one, images not decoded."""
    import datasets

    try:
        found = datasets.load_dataset(dataset, config.dataset_config, split=config.dataset_split)
    except Exception as error:  # offline, not found, gated: the client raises a dozen types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the data set {dataset} is not to be had from the Hub: {reason}. Is the name right, is there a network? "
            "A gated or private one needs `hf auth login`; --dataset_config and --dataset_split choose a part."
        ) from error
    return {"": found} if config.dataset_split else dict(found)


def parquet(path: Path) -> Any:
    import datasets

    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # pyarrow's and datasets' own kinds
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).strip().splitlines()[0]})") from error


def datasets_rows(
    tables: Mapping[str, Any], name: str, root: Path, config: TrainConfig, notes: list[str], split: str | None = None
) -> Iterator[Row]:
    """Rows of `datasets.Dataset`s by name. Where there are several, with names we know, the names are the splits: a
    data set with a single part calls it train whatever it is."""
    import datasets

    named = len(tables) > 1 and all(part in SPLIT_NAMES for part in tables)
    for part, table in tables.items():
        pictures = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
        for column in pictures:
            table = table.cast_column(column, datasets.Image(decode=False))
        if pictures and not config.image_column and not set(IMAGE_COLUMNS) & set(table.column_names):
            table = table.rename_column(pictures[0], "image")
        rows = ((f"{f'{name} {part}'.strip()}, row {number}", row) for number, row in enumerate(table))
        given = SPLIT_NAMES[part] if named else split
        yield from table_rows(rows, root, config, notes, given, partial(read_cell, table))


def read_cell(table: Any, number: int, column: str) -> bytes:
    value = table[number][column]
    return value["bytes"] if isinstance(value, Mapping) else value


def load_hub(name: str, config: TrainConfig) -> DataSet:
    """Any Hub data set with a column of images and one or several of captions."""
    notes: list[str] = []
    rows = datasets_rows(hub(name, config), name, Path(config.image_root or "."), config, notes)
    return assemble(name.split("/")[-1], rows, config, notes, published=True)


# ---------------------------------------------------------------------------------- data sets by name


def load_shapes(config: TrainConfig) -> DataSet:
    """2,500 drawn scenes; held-out ones show combinations that were never trained on."""
    rows = (Row(s, s, partial(draw_scene, s), scene_captions(s)) for s in scene_ids(2500, config.seed))
    return assemble("shapes", rows, config, [])


def load_flickr8k(config: TrainConfig) -> DataSet:
    """Flickr8k (Hodosh, Young, Hockenmaier 2013): from the Hub, or a local copy in the original layout
    (`Flickr8k.token.txt`, `Flicker8k_Dataset/`), in Kaggle's (`captions.txt`, `Images/`), or of the Hub's Parquet files."""
    notes: list[str] = []
    if config.data_dir is None or list(Path(config.data_dir).expanduser().rglob("*.parquet")):
        if config.split_scheme != "seed":
            raise DataError(
                f"flickr8k: --split_scheme {config.split_scheme} needs the lists of a local copy; name one with --data_dir"
            )
        source = "ariG23498/flickr8k" if config.data_dir is None else str(Path(config.data_dir).expanduser())
        found = datasets_rows(hub(source, config), "flickr8k", Path("."), config, notes)
        return assemble("flickr8k", found, config, notes, published=True)
    root = Path(config.data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"--data_dir {root}: there is no such directory")
    folder = next((root / n for n in ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images") if (root / n).is_dir()), None)  # fmt: skip
    if folder is None:
        raise DataError(f"--data_dir {root}: has no folder Flicker8k_Dataset (or Images) with the photographs")
    if config.split_scheme == "karpathy":
        return load_karpathy("flickr8k", config, folder)
    if (root / "Flickr8k.token.txt").is_file():
        rows = list(token_rows(root / "Flickr8k.token.txt", folder, notes))
    elif (kaggle := root / "captions.txt").is_file():
        rows = list(table_rows(utf8(kaggle, read_table(kaggle)), folder, config, notes))
    else:
        raise DataError(
            f"--data_dir {root}: has no Flickr8k.token.txt (lines of `name.jpg#0<TAB>caption`) and no captions.txt (Kaggle)"
        )
    present = {entry.name for entry in os.scandir(folder)}
    absent = sorted({row.key for row in rows} - present)
    if absent:
        notes.append(
            f"{len(absent)} images have captions but no photograph in {folder.name}; left out (e.g. {absent[0]})"
        )
    if silent := sorted(n for n in present - {row.key for row in rows} if n.lower().endswith(".jpg")):
        notes.append(f"{len(silent)} photographs have no caption; left out (e.g. {silent[0]})")
    rows = [row for row in rows if row.key in present]
    if config.split_scheme == "official":
        where: dict[str, str] = {}
        for split, part in zip(SPLITS, ("train", "dev", "test"), strict=True):
            file = root / f"Flickr_8k.{part}Images.txt"
            if not file.is_file():
                raise DataError(f"--split_scheme official: {file} is missing; add it or use --split_scheme seed")
            where |= dict.fromkeys(file.read_text("utf-8").split(), split)
        if rest := len({row.key for row in rows} - where.keys()):
            notes.append(f"{rest} images are in no official list; left out")
        rows = [row for row in rows if row.key in where]
        for row in rows:
            row.split = where[row.key]
    return assemble("flickr8k", rows, config, notes, published=True)


def token_rows(path: Path, folder: Path, notes: list[str]) -> Iterator[Row]:
    """Lines of `name.jpg#0<TAB>caption`."""
    broken: dict[str, None] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(utf8(path, iter(file)), 1):
            key, tab, caption = line.partition("\t")
            name = key.rsplit("#", 1)[0]
            if not tab:
                raise DataError(f"{path}, line {number}: expected `name.jpg#0<TAB>caption`")
            if not name.lower().endswith(".jpg"):  # the original file has one: 2258277193_586949ec62.jpg.1#0
                broken[name] = None
            else:
                yield Row(f"{path}, line {number}", name, folder / name, [caption.strip()])
    notes += [f"{path.name}: {name} is no image name; left out" for name in broken]


def load_karpathy(name: str, config: TrainConfig, images: Path | None = None) -> DataSet:
    """Karpathy's splits: `dataset_NAME.json` in `data_dir`, or for COCO the Hub's copy. COCO's images come from
    `image_root` (`train2014/`, `val2014/`), or are downloaded once into a cache."""
    folder = Path(config.data_dir).expanduser() if config.data_dir else None
    root = images or (Path(config.image_root).expanduser() if config.image_root else None)
    source = folder / f"dataset_{name.removesuffix('_karpathy')}.json" if folder else None
    if source and source.is_file():
        rows, where = read_json(source).get("images"), str(source)
    elif source and not (name == "coco_karpathy" and folder and list(folder.rglob("*.parquet"))):
        raise DataError(f"--data_dir {folder}: has no {source.name} (Karpathy's splits)")
    elif name == "coco_karpathy":
        where = "yerevann/coco-karpathy"
        rows = [row for table in hub(str(folder or where), config).values() for row in table]
    else:
        raise DataError(
            f"{name}: name the folder of dataset_{name}.json with --data_dir, that of its images with --image_root"
        )
    if root is None and name != "coco_karpathy":
        guess = next((folder / n for n in (f"{name}-images", "images", "Images") if folder and (folder / n).is_dir()), None)  # fmt: skip
        if guess is None:
            raise DataError(f"{name}: name the folder of its images with --image_root")
        root = guess
    found = karpathy_rows(rows, root or cache_dir() / "coco", where, download_missing=root is None)
    return assemble(name, found, config, [], published=True)


def karpathy_rows(images: Any, root: Path, where: str, download_missing: bool = False) -> Iterator[Row]:
    """Objects with filename, split, sentences, and for COCO filepath, cocoid and url -> rows."""
    try:
        for number, image in enumerate(images):
            at = f"{where}, image {number}"
            name = f"{image['filepath']}/{image['filename']}" if image.get("filepath") else image["filename"]
            url = None
            if download_missing:
                url = image.get("url") or f"http://images.cocodataset.org/{name}"
            key = str(image.get("cocoid", image["filename"]))
            yield Row(
                at, key, inside(root, name, at), captions_in(image["sentences"]), SPLIT_NAMES[image["split"]], url
            )
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: not in Karpathy's form: {type(error).__name__} {error}") from error
