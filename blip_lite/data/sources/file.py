"""A captions file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import SequenceMatcher
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from blip_lite.data.dataset import Listing
from blip_lite.data.names import (
    CAPTION_COLUMNS,
    ID_COLUMNS,
    IMAGE_COLUMNS,
    caption_columns,
    find_column,
    is_derived,
    plain,
    says_nothing,
    split_of_name,
    words_in,
)
from blip_lite.data.sources.encoding import encoding_of, utf8
from blip_lite.data.sources.hub import datasets_rows, parquet
from blip_lite.data.sources.karpathy import karpathy_rows
from blip_lite.data.sources.lists import FOLDERS, Lists, has_suffix, in_lists, may_be_list, split_lists
from blip_lite.data.sources.marks import Marks, agreed
from blip_lite.data.sources.records import LISTS_OF_ROWS, Place, are_rows, places, transposed
from blip_lite.data.sources.relations import is_key, is_number, with_pictures
from blip_lite.data.sources.table import (
    ANNOTATIONS,
    PROBE,
    are_copies,
    captions_of,
    captions_told,
    folded,
    header_of,
    image_path,
    inside,
    on_disk,
    read_json,
    read_table,
    table_rows,
    with_suffix,
)
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture
from blip_lite.settings import TABLES, DataSettings

_NUMBERED = re.compile(r"(?:COCO_[a-z]+\d*_)?(\d+)", re.ASCII | re.IGNORECASE)
_UPLOADED = re.compile(r"^.*/[0-9a-f]{8}-(?=[^/]+$)")

IMAGE_FOLDERS = ("images", "image", "imgs", "photos", "data")  # before others that have files of the same names
REMEDIES = {
    **dict.fromkeys(
        (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst"), "unpack it, and name what was in it"
    ),
    **dict.fromkeys(
        (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers"), "save the sheet as CSV (UTF-8) and name that"
    ),
    **dict.fromkeys((".ndjson", ".jsonlines", ".jl"), "these are JSON lines: call it .jsonl"),
    **dict.fromkeys((".pq", ".parq"), "call it .parquet"),
    **dict.fromkeys(
        (".xml", ".yaml", ".yml", ".pkl", ".pickle", ".feather", ".h5", ".hdf5", ".npz", ".npy", ".db", ".sqlite"),
        "export the images' names and captions as CSV, JSON lines or Parquet",
    ),
    ".txt": "a table's first line names its columns: `image,caption`",
    ".arrow": "name the folder that `datasets.save_to_disk` wrote; a lone file becomes Parquet with "
    "`datasets.Dataset.from_file(FILE).to_parquet('data.parquet')`",
    ".lmdb": "export it to files or .tar shards",
    **dict.fromkeys(IMAGE_SUFFIXES, "this is a picture; name the folder, or the table of the captions"),
}


class SeveralFolders(DataError):
    """Images of a table's names are in two folders."""


def file_rows(
    path: Path, root: Path, settings: DataSettings, notes: list[str], split: str | None = None
) -> Iterable[Picture]:
    """Rows of a captions file; its images are in `root`, or in the folder beside it that has them."""
    suffix = path.suffix.lower()
    content = read_json(path) if suffix == ".json" else None
    files = partial(files_of, root, path, split)

    def named(table: Iterable[Place]) -> Iterable[Place]:
        return table if settings.image_column else with_pictures(table, path, files, notes)

    def rows_of(table: Iterable[Place], split: str | None = split) -> Iterable[Picture]:
        return table_rows(named(table), root, settings, notes, split, files=files)

    rows: Iterable[Picture]
    if suffix == ".parquet":
        rows = datasets_rows({"": parquet(path)}, str(path), root, settings, notes, split, named)
    elif is_tokens(path):
        rows = token_rows(path, root, notes, split)
    elif isinstance(content, Mapping):
        rows = object_rows(content, root, path, rows_of, notes, split, settings.caption_column)
    elif isinstance(content, list) and any(map(is_label_studio, content[:PROBE])):
        rows = rows_of(label_studio(content, path))
    else:
        rows = rows_of(utf8(path, read_table(path, notes=notes)))
    return in_right_folder(rows, root, notes, split)


def files_of(root: Path, table: Path, split: str | None, names: Sequence[str]) -> list[Path | None]:
    """The pictures of such names, in `root`, or where `in_right_folder` looks for them; None for one that is not there
    in that spelling. Where two folders have them, one that is neither's stands for each."""
    try:
        probe = [image_path(root, name, str(table))[1] for name in names]
        if any(map(on_disk, probe)):
            return [on_disk(path) for path in probe]
        found = right_folders(probe, root, str(table), split) if probe else None
        if found is None or found.shorter is None:
            return [None for _ in names]
        return [on_disk(found.file(path, str(table))[1]) for path in probe]
    except SeveralFolders:
        return [Path("?", name) for name in names]
    except DataError:
        return [None for _ in names]


def load_file(path: Path, settings: DataSettings) -> Listing:
    """A captions file: CSV, TSV, JSONL, Parquet, or JSON (a list of objects, COCO's annotations, Karpathy's, and more
    in `object_rows`). One that says in its name that it is a test stays one."""
    if path.suffix.lower() not in TABLES and not is_text_table(path):
        if remedy := REMEDIES.get(path.suffix.lower()):
            raise DataError(f"--dataset {path}: {remedy}")
        raise DataError(f"--dataset {path}: a file is to be one of {', '.join(sorted(TABLES))}, .tar")
    root, notes = Path(settings.image_root).expanduser() if settings.image_root else path.parent, list[str]()
    split = split_of_name(path.stem)
    with os.scandir(path.parent) as entries:
        pictures = tuple(IMAGE_SUFFIXES)  # of which there may be many
        names = [Path(e.path) for e in entries if not e.name.lower().endswith(pictures)]
    alike = sorted(p for p in names if p.suffix.lower() == path.suffix.lower())
    others = [p for p in alike if split_of_name(p.stem) not in (None, split)]
    lists = lists_beside(path, names, notes)
    if split and others:
        notes.append(f"{others[0].name}, beside it, is not read; the name of the folder takes both, as splits")
    elif split == "validation":
        notes.append(f"{path.name} says validation; read alone, it is shared out anew")
    rows = file_rows(path, root, settings, notes, "test" if split == "test" else None)
    return Listing(path.stem, in_lists(rows, lists, notes, keep=split is not None), notes)


def lists_beside(path: Path, beside: Iterable[Path], notes: list[str]) -> Lists:
    """The lists of splits among what lies beside a captions file, and in folders for lists or annotations there."""
    below = [file for p in beside if p.name.casefold() in FOLDERS and p.is_dir() for file in p.rglob("*")]
    about = [p for p in beside if plain(p.name) in ("meta", "metadata", "annotations", "annotation") and p.is_dir()]
    doubtful = [file for p in about for file in p.iterdir() if split_of_name(file.stem, strict=True)]
    files = [p for p in (*beside, *below, *doubtful) if may_be_list(p) and p.name != path.name and p.is_file()]
    return split_lists(files, notes, doubtful=doubtful)


def is_text_table(path: Path) -> bool:
    """Whether a file that is not called so is a table: of tokens, or a `.txt` whose first line names a column of images
    (Kaggle's captions.txt)."""
    if is_tokens(path):
        return True
    if path.suffix.lower() != ".txt":
        return False
    columns = header_of(path)
    return len(columns) > 1 and find_column(columns, IMAGE_COLUMNS) is not None


def is_tokens(path: Path) -> bool:
    """Whether a file is one of `token_rows`: Flickr's `.token`, or a `.txt` that begins with such a line."""
    if path.suffix.lower() == ".token" or path.name.lower().endswith(".token.txt"):
        return True
    if path.suffix.lower() != ".txt":
        return False
    if split_of_name(path.stem, strict=True):  # a list, with classes maybe
        return False
    with open(path, "rb") as file:
        name, tab, caption = file.readline(10_000).decode("utf-8-sig", "replace").partition("\t")
    words = re.findall(r"[^\W\d_]+", caption)
    return bool(tab and has_suffix(name.rsplit("#", 1)[0]) and len(words) > 2)


def token_rows(path: Path, folder: Path, notes: list[str], split: str | None = None) -> Iterator[Picture]:
    """Lines of `name.jpg#0<TAB>caption`, as Flickr8k's and Flickr30k's authors distribute them."""
    broken: dict[str, None] = {}
    with open(path, encoding=encoding_of(path, notes)) as file:
        for number, line in enumerate(utf8(path, iter(file)), 1):
            if not line.strip():
                continue
            key, tab, caption = line.partition("\t")
            name = key.rsplit("#", 1)[0]
            if not tab:
                raise DataError(f"{path}, line {number}: expected `name.jpg#0<TAB>caption`")
            if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                broken[name] = None  # the original file has one: 2258277193_586949ec62.jpg.1#0
            else:
                yield Picture(name, folder / name, (caption.strip(),), f"{path}, line {number}", split)
    notes += [f"{path.name}: {name} is no image name; left out" for name in islice(broken, 3)]
    notes += [f"{path.name}: {len(broken)} names are no image's; left out"] * (len(broken) > 3)


def in_right_folder(
    rows: Iterable[Picture], root: Path, notes: list[str], split: str | None = None
) -> Iterator[Picture]:
    """The rows; where none of the first has its image in `root`, with the folders below or beside it that have them,
    and without the leading folders that these share, where they are another machine's; or as numbers, where these find
    more. Raises DataError where several folders have images of the same names, and none is called after
    images or the table's split."""
    rows = iter(rows)
    first = list(islice(rows, PROBE))
    probe = [row.image for row in first if isinstance(row.image, Path) and not row.url]
    there = [*map(on_disk, probe)]
    elsewhere = probe and (not any(there) or (not all(there) and are_numbers(probe, root)))
    found = right_folders(probe, root, first[0].where, split) if elsewhere else None
    if not found or (any(there) and (found.shorter or found.best != root)):
        yield from first
        yield from rows
        return
    paths, used = dict[str, tuple[Path, Path]](), dict[Path, None]()
    for row in chain(first, rows):
        if isinstance(row.image, Path) and not row.url:
            name = str(row.image)
            if name not in paths:
                paths[name] = found.file(row.image, row.where)
                used.setdefault(paths[name][0])
            folder, row.image = paths[name]
            if found.shorter is None:
                row.name = row.image.name  # lists of splits say that
            elif found.names is not None:
                row.name = row.place  # whose folders may say a split
            of_folder = split_of_name(folder.name, strict=True) if folder != root.parent else None
            if of_folder == "test" and row.split not in (None, "test"):
                raise DataError(f"{row.where}: {row.image_id} is in {row.split}, but its folder {folder} says test")
            if of_folder == "test" or found.elsewhere:
                row.split = row.split or of_folder
        yield row
    example = "; their names are numbers with leading zeros (5 is 00005.jpg, say)" * (found.shorter is None)
    notes.append(f"images are in {', '.join(map(str, used))}{example}; --image_root says another folder")


class RightFolders(NamedTuple):
    """Where the pictures of a table are.

    Attributes:
        root: the folder that the table's names are relative to.
        best: the folder that has most of them.
        elsewhere: the folders of those that others have and `best` has not, by name or number.
        twins: another folder of those that are in two that are as likely.
        shorter: makes names in these of those in `root`; None where the names are numbers, and those of the pictures,
            too, but for leading zeros or COCO's beginning.
        names: where all folders are left out of names, the name that each file was found for; else None.
    """

    root: Path
    best: Path
    elsewhere: dict[str, Path]
    twins: dict[str, Path]
    shorter: Callable[[str], str | None] | None
    names: dict[Path, str] | None

    def file(self, image: Path, where: str) -> tuple[Path, Path]:
        """(the folder, the file) of an image in `root`. Raises DataError for one that lies outside, and SeveralFolders
        for one that may be either of two."""
        name = Path(str(image).removeprefix(os.path.join(os.path.abspath(self.root), ""))).as_posix()
        if (short := self.shorter(name) if self.shorter else without_zeros(name)) is None:
            return self.best, image
        if self.names is not None and on_disk(image):
            return image.parent, image

        def within(folder: Path) -> Path:
            if self.shorter is None:
                return folder / numbered_pictures(folder).get(short, name)
            return with_suffix(inside(folder, short, where))

        folder = self.elsewhere.get(folded(short), self.best)
        file = within(folder)
        if (twin := self.twins.get(folded(short))) and not are_copies(file, within(twin)):
            raise SeveralFolders(
                f"{where}: images of these names are in {folder} and in {twin}; say which with --image_root, or write "
                "the folder before each name"
            )
        other = name if self.names is None else self.names.setdefault(file, name)
        if os.path.dirname(other) != os.path.dirname(name):
            raise SeveralFolders(f"{where}: there is only {file} for {other} and {name}; put each into its own folder")
        return folder, file


def right_folders(probe: Sequence[Path], root: Path, where: str, split: str | None) -> RightFolders | None:
    """Where the files of `probe` are, of which some or all are not in `root` as they are spelled; None if nowhere."""
    names = [Path(os.path.relpath(path, root)).as_posix() for path in probe]
    beside: list[Path] = []
    if plain(root.name) in ANNOTATIONS:  # COCO
        beside = [root.parent, *root.parent.glob("*/")]
        if not any(on_disk(folder / path.name) for folder in beside for path in probe):
            beside += root.parent.glob("*/*/")  # detectors' images/train2017
    folders = sorted(p for p in {*root.glob("*/"), *root.glob("*/*/"), *beside} if p.is_dir())
    folders = [f for f in folders if not any(part[:1] in (".", "_") for part in f.relative_to(root.parent).parts[1:])]
    if split:  # another split's folder has other images of these names
        folders = [f for f in folders if f == root.parent or split_of_name(f.name, strict=True) in (None, split)]

    def likely(folder: Path) -> tuple[bool, bool, bool]:
        named = split_of_name(folder.name, strict=True)
        return folder == root, bool(split) and named == split, plain(folder.name) in IMAGE_FOLDERS

    for fits, way in shortenings(names, root):
        shorter: Callable[[str], str | None] | None = way
        within = [f for f in folders if fits(f)]
        has = {f: {n for n in names if on_disk(f / (way(n) or n))} for f in (root, *within)}
        if any(has.values()):
            break
    folders = within
    if are_numbers(probe, root) and len({*map(without_zeros, names)}) == len({*names}):  # `3` beside `0003`: which?
        # Where some are there as they are spelled, the others are not elsewhere: one that is lost is no other folder's.
        numbers = {f: numbered_pictures(f) for f in has if has[f] or not any(has.values())}
        by_number = {f: {n for n in names if without_zeros(n) in numbers[f]} for f in numbers}
        found = len(set[str]().union(*by_number.values()))
        if found > len(set[str]().union(*has.values())) and 2 * found > len({*names}):
            shorter, has, folders = None, by_number, [f for f in folders if f in numbers]
    if not (most := max(len(some) for some in has.values())):
        return None
    full = [f for f in has if len(has[f]) >= 0.9 * most]  # one that is called `images` may lack a few
    full.sort(key=lambda f: (likely(f), len(has[f])), reverse=True)
    best = full[0]
    names_in: Callable[[Path], AbstractSet[str]] = pictures_in if shorter else lambda f: numbered_pictures(f).keys()
    own, elsewhere, twins = names_in(best), dict[str, Path](), dict[str, Path]()
    for folder in folders:  # a table of several folders names each picture once
        more = names_in(folder) if folder != best else frozenset[str]()
        if not (both := more & (own | elsewhere.keys())):
            elsewhere |= dict.fromkeys(more, folder)
        elif likely(folder) == likely(best):  # cats/ and dogs/; not images/ and masks/
            twins |= dict.fromkeys(both, folder)
    key: Callable[[str], str] = without_zeros if shorter is None else lambda name: folded(shorter(name) or name)
    for folder in has:  # names of the first rows may have folders of their own
        if folder != best and likely(folder) == likely(best):
            twins |= {key(name): folder for name in has[best] & has[folder]}
    return RightFolders(root, best, elsewhere, twins, shorter, {} if shorter is os.path.basename else None)


def are_numbers(probe: Sequence[Path], root: Path) -> bool:
    """Whether a table's names are numbers; those that are there have their suffix already."""
    base = Path(os.path.abspath(root))
    return all((path.parent == base and path.name.isdecimal()) or on_disk(path) for path in probe)


def without_zeros(name: str) -> str:
    """`00005.jpg` -> `5`."""
    return PurePosixPath(name).stem.lstrip("0") or "0"


def numbered_pictures(folder: Path) -> dict[str, str]:
    """The names of the pictures in a folder that are numbers of one length, by these, without the leading zeros that
    Excel takes away (`5` of 00005.jpg), and without COCO's beginning (`COCO_val2014_000000000139.jpg`); of two with one
    number neither."""
    return numbered(str(folder), folder.stat().st_mtime_ns)


@lru_cache(1024)
def numbered(folder: str, changed: int) -> dict[str, str]:
    names = [name for name in os.listdir(folder) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    digits = {name: found[1] for name in names if (found := _NUMBERED.fullmatch(Path(name).stem))}
    if len({*map(len, digits.values())}) > 1:
        return {}
    several = Counter(digits.values())
    return {without_zeros(number): name for name, number in digits.items() if several[number] == 1}


def pictures_in(folder: Path) -> set[str]:
    """The names of the pictures in a folder, with and without suffix."""
    with os.scandir(folder) as entries:
        names = [Path(folded(entry.name)) for entry in entries]
    return {name for path in names if path.suffix in IMAGE_SUFFIXES for name in (path.name, path.stem)}


def stands_for(other: str, folder: Path) -> bool:
    """Whether a folder may be another one, called otherwise: one of them says nothing (`images`), or they are alike
    (`cats_small`, `flickr8k_images`), and no other part of the same (`part2`)."""
    names = (folder.name, other)
    one, two = ("".join(word for word in words_in(name) if not says_nothing(word)) for name in names)
    numbers = [re.findall(r"\d+", name) for name in names]
    if (all(numbers) and numbers[0] != numbers[1]) or not is_no_mask_of(other, folder):
        return False
    return not (one and two) or one in two or two in one or SequenceMatcher(None, one, two).ratio() > 0.6


def is_no_mask_of(other: str, folder: Path) -> bool:
    return is_derived(other) or not is_derived(folder.name)


def without(begins: str, name: str) -> str | None:
    """A name without what it begins with; None for one that begins otherwise."""
    return name[len(begins) :] if name.startswith(begins) else None


def shortenings(
    names: Sequence[str], root: Path
) -> Iterator[tuple[Callable[[Path], bool], Callable[[str], str | None]]]:
    """What may be left out of names, after whether a folder may have what is left: nothing; one after the other of the
    folders that all of these begin with, up to one that may name a split (None for a name that begins otherwise); the
    eight signs that Label Studio puts before the name of an uploaded file; and all folders, for pictures that were put
    into one folder whose name says nothing.

    A folder that is left out where it is the only one must be called alike; more are another machine's, for which any
    stands but one of masks."""

    def anything(folder: Path) -> bool:
        return True

    def nothing_said(folder: Path) -> bool:
        below = os.path.relpath(folder, root if folder.is_relative_to(root) else root.parent)
        return all(map(says_nothing, words_in(below)))

    shared = PurePosixPath(os.path.commonpath([os.path.dirname(name) for name in names])).parts
    yield anything, partial(without, "")
    for cut, lost in enumerate(shared, 1):
        if split_of_name(lost):  # what is cut off so is not looked at again
            if not split_of_name(lost, strict=True):  # `flowers_test` may be another's test
                return
            break
        alike = partial(stands_for if len(shared) == 1 else is_no_mask_of, lost)
        yield alike, partial(without, "".join(f"{part}/" for part in shared[:cut]))
    if all(_UPLOADED.search(name) for name in names):
        yield anything, lambda name: _UPLOADED.sub("", name)
    if any(map(os.path.dirname, names)):
        yield nothing_said, os.path.basename


def object_rows(
    content: Mapping[str, Any],
    root: Path,
    path: Path,
    rows_of: Callable[[Iterable[Place], str | None], Iterable[Picture]],
    notes: list[str],
    split: str | None,
    columns: str | None = None,
) -> Iterable[Picture]:
    """JSON that is one object: COCO's annotations, Karpathy's images, `{"data": [rows]}`, `{"train": [rows], ...}`,
    `{"image": [...], "caption": [...]}`, `{id: row}` or `{name: captions}`.

    Args:
        rows_of: makes pictures of rows and their split.
        columns: of the captions, as told.
    """
    info = content.get("info")
    about = {k: v for k, v in {**(info if isinstance(info, dict) else {}), **content}.items() if isinstance(v, str)}
    if Marks((), []).split(about, str(path)) == "test":  # as TextCaps says it of a file
        split = agreed(split, "test", str(path))
    if "annotations" in content and "images" in content:
        return coco_rows(content, root, path, notes, split, columns)
    if isinstance(content.get("images"), list) and not caption_columns([*content]):
        images = [image for image in content["images"] if isinstance(image, Mapping)]
        if any(caption_columns([*image]) and "sentences" not in image for image in images):
            return rows_of(places(path, "images", content["images"]), split)
        if not any("sentences" in image for image in images):
            if split == "test":  # published without its captions
                notes.append(f"{path}: its images have no captions; left out")
                return ()
            raise DataError(f"{path}: its images have no captions (neither `sentences` nor `annotations`)")
        return karpathy_rows(content["images"], root, str(path), notes, columns=columns)
    tables = {key: content[key] for key in LISTS_OF_ROWS if are_rows(content.get(key))}
    parts = {key: split_of_name(key) for key in content if are_rows(content[key])}
    inner = {key: split_of_name(key) for key, value in content.items() if isinstance(value, Mapping) and value}
    if len(inner) == len(content) > 0 and all(inner.values()):  # {"train": {"1.jpg": "a dog"}, "test": {...}}
        named_parts = ((content[key], agreed(of, split, f"{path}, {key}")) for key, of in inner.items())
        return chain.from_iterable(
            object_rows(part, root, path, rows_of, notes, of, columns) for part, of in named_parts
        )
    if any(parts.values()):  # a part that is called something else must not be lost, or trained on
        if odd := [
            key
            for key, value in content.items()
            if value and not parts.get(key) and isinstance(value, (list, Mapping)) and key != "info"
        ]:
            raise DataError(f"{path}: parts {', '.join(parts)}; {odd[0]!r} is no split (train, validation, test)")
        named = ((agreed(part, split, f"{path}, {key}"), content[key], key) for key, part in parts.items())
        return chain.from_iterable(rows_of(places(path, key, rows), part) for part, rows, key in named)
    if tables:
        key = next(iter(tables))
        return rows_of(places(path, key, tables[key]), split)
    if find_column([*content], (*IMAGE_COLUMNS, *ID_COLUMNS)) and caption_columns([*content]):
        return rows_of(transposed(content, path), split)
    if are_rows([*content.values()]) and all(find_column([*row], IMAGE_COLUMNS) for row in content.values()):
        return rows_of(((f"{path}, {key}", row) for key, row in content.items()), split)
    values = [*content.values()]
    if content and all(map(is_number, content)) and all(map(is_named, values)) and not any(map(are_rows, values)):
        return rows_of(numbered_rows(content, root, path, split), split)
    if (
        content
        and (columns or all(map(is_named, values)))
        and all(has_suffix(n) or isinstance(content[n], Mapping) for n in content)
    ):
        return named_rows(content, root, path, notes, split, columns)
    lists = [(key, value) for key, value in content.items() if are_rows(value)]
    if content and len(lists) == len(content):  # by class, as NWPU-Captions
        rows = chain.from_iterable(places(path, key, value) for key, value in lists)
        return rows_of(rows, split)
    keys = ", ".join(map(repr, list(content)[:5]))
    raise DataError(
        f"{path}: an object with {keys}; expected COCO's images and annotations, Karpathy's images, "
        '{"data": [{"image": ..., "caption": ...}]} or {"001.jpg": "a caption"}'
    )


def is_label_studio(task: Any) -> bool:
    """Whether this is a task of Label Studio's JSON export."""
    return (
        isinstance(task, Mapping)
        and isinstance(task.get("data"), Mapping)
        and isinstance(task.get("annotations"), list)
    )


def label_studio(tasks: Sequence[Mapping[str, Any]], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of Label Studio's JSON export: a task's data, the texts that were typed in for it, and what was chosen
    (`quality: Reject`, `split: test`); of several fields each is a column of its name. A task that nobody has done has
    no caption. Raises DataError for one that is none."""
    typed: list[dict[str, list[str]]] = []
    chosen: list[dict[str, list[str]]] = []
    for number, task in enumerate(tasks, 1):
        if not (isinstance(task, Mapping) and isinstance(task.get("data"), Mapping)):
            raise DataError(f"{path}, item {number}: no task of Label Studio, as others are: it has no data")
        typed.append({})
        chosen.append({})
        done = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
        for one in chain.from_iterable(annotation.get("result") or () for annotation in done):
            value, name = one.get("value") or {}, str(one.get("from_name", ""))
            for kind, fields in (("text", typed[-1]), ("choices", chosen[-1])):
                said = value.get(kind) or []
                fields.setdefault(name, []).extend([said] if isinstance(said, str) else said)
    lone = len({name for fields in typed for name, texts in fields.items() if texts}) == 1
    for number, (task, texts, choices) in enumerate(zip(tasks, typed, chosen, strict=True), 1):
        picked = {name: said[0] if len({*said}) == 1 else said for name, said in choices.items() if said}
        named = {"caption" if lone else name: said for name, said in texts.items() if said}
        yield f"{path}, item {number}", {**task["data"], **picked, **named}


def is_named(value: Any) -> bool:
    """Whether a value beside an image's name is its captions."""
    if isinstance(value, Mapping):
        return find_column([*value], CAPTION_COLUMNS) is not None
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, (str, dict, type(None))) for text in texts)


def numbered_rows(
    content: Mapping[str, Any], root: Path, path: Path, split: str | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of `{number: row}` and `{number: captions}`. The number is the picture's, unless the rows say another one of
    it, and no pictures are called by those."""
    rows = {key: row if isinstance(row, Mapping) else {"caption": row} for key, row in content.items()}
    own = all(any(map(is_key, row)) for row in rows.values())
    own = own and not all(files_of(root, path, split, [*rows][:PROBE]))
    for key, row in rows.items():
        yield f"{path}, {key}", row if own else {**{k: v for k, v in row.items() if not is_key(k)}, "image": key}


def named_rows(
    content: Mapping[str, Any], root: Path, path: Path, notes: list[str], split: str | None, columns: str | None
) -> Iterator[Picture]:
    """`{name: captions}`, as kohya's `meta_cap.json`."""
    marks = Marks(CAPTION_COLUMNS, notes, [v for v in islice(content.values(), PROBE) if isinstance(v, Mapping)])
    for name, value in content.items():
        where = f"{path}, {name}"
        image_id, file = image_path(root, name, where)
        about = value if isinstance(value, Mapping) else {}
        if marks.is_rejected(about, where):
            continue
        part = agreed(marks.split(about, where), split, where)
        yield Picture(image_id, file, captions_told(value, columns, where), where, part)
    marks.tell()


def coco_rows(
    content: Mapping[str, Any],
    root: Path,
    path: Path,
    notes: list[str],
    split: str | None = None,
    columns: str | None = None,
) -> Iterator[Picture]:
    """COCO's own annotations, e.g. `captions_train2014.json`; and VizWiz's, whose judges marked captions as spam."""
    precanned = boxed = 0
    try:
        images = {str(image["id"]): image for image in content["images"]}
        if not any("file_name" in image for image in images.values()):
            raise DataError(
                f"{path}: its images have no file_name, as in a file for evaluation only. Name the other file"
            )
        if len(images) < len(content["images"]):
            raise DataError(f"{path}: two images have one id")
        of_image = Marks(("id", "file_name"), notes, content["images"][:PROBE])
        marks = Marks(("id", "image_id", "caption"), notes, content["annotations"][:PROBE])
        for number, one in enumerate(content["annotations"], 1):
            where, key = f"{path}, annotation {number}", str(one["image_id"])
            if key not in images:
                raise DataError(f"{where}: its image_id {key} is not among the images")
            if marks.is_rejected(one, where) or of_image.is_rejected(images[key], where):
                continue
            precanned += bool(one.get("is_precanned"))
            boxed += bool(one.get("bbox"))
            if "caption" not in one and not columns:
                raise DataError(f"{where}: has no caption, but {', '.join(one)}. Name a file of captions")
            captions = captions_told(one, columns, where) if columns else captions_of(one["caption"], where)
            own = agreed(marks.split(one, where), of_image.split(images[key], where), where)
            name, file = image_path(root, images[key]["file_name"], where)
            yield Picture(key, file, captions, where, agreed(own, split, where), name=name)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO's annotations: {type(error).__name__} {error}") from error
    marks.tell()
    of_image.tell()
    if silent := images.keys() - {str(one["image_id"]) for one in content["annotations"]}:
        notes.append(f"{len(silent)} images of {path.name} have no caption; left out (e.g. {min(silent)})")
    if boxed:
        notes.append(f"{path.name}: {boxed} captions have a box, so they may be about a part of the image; kept")
    if precanned:
        notes.append(f"{precanned} captions are marked as precanned (a stock sentence, not a description); kept")
