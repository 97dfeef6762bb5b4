"""Lists of images that share them out: beside captions, which say nothing of splits themselves."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from blip_lite.data.names import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    MAYBE_SPLIT_COLUMNS,
    SPLIT_COLUMNS,
    SPLIT_WORDS,
    caption_columns,
    find_column,
    may_be_about_splits,
    plain,
    split_of_name,
)
from blip_lite.data.sources.encoding import encoding_of
from blip_lite.data.sources.hub import parquet_columns, plain_rows
from blip_lite.data.sources.marks import Marks, agreed, form_of, split_in
from blip_lite.data.sources.table import PROBE, read_json, read_table
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture

LISTS = (".txt", ".lst", ".list")
YAML = (".yaml", ".yml")
KINDS = (*LISTS, ".csv", ".tsv", ".json", *YAML)  # of files that may be lists
UNUSUAL = (".ids", ".npy", ".jsonl", ".parquet", "")  # that are seldom lists
FOLDERS = ("splits", "split", "lists", "imagesets")  # below a captions file, that may hold lists
_NAMES = (*IMAGE_COLUMNS, *ID_COLUMNS, "name", "names")  # of a list's column of images
_FORMS = 'a name a line, a table `image,split`, {"train": [names], ...}, or {name: "train", ...}'
_SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
_LINE = re.compile(rf"(.+?(?:{_SUFFIX}))(?:#\d+)?[\s,;]+(.*)", re.IGNORECASE)
_NUMBERS = r"-?\d+(?:\s+-?\d+)*"  # of classes
_CELEBA = {"0": "train", "1": "validation", "2": "test"}  # list_eval_partition.txt, by its README


class Lists:
    """The split of each image that lists name, with or without its folder and its suffix.

    Attributes:
        unread: files called after splits that name no images in a form we know.
        keyed: of names that stand in a column of ids, the column.
        maybe: what files say that are lists only if together they name nearly all images.
    """

    def __init__(self) -> None:
        self.names: dict[str, dict[str, str]] = {}  # by the last part: names without suffix -> split
        self.bare: set[str] = set()  # that are written without a suffix: they may be numbers of images, too
        self.unread: list[Path] = []
        self.keyed: dict[str, str] = {}
        self.maybe: list[tuple[Path, list[tuple[str, ...]]]] = []

    def add(self, path: Path, split: str, name: str, column: str | None = None) -> None:
        """Take a name of a list, from its column of ids if it has one. Raises DataError for a name in two splits."""
        key, there = key_of(name), self.names.setdefault(last(name), {})
        if there.setdefault(key, split) != split:
            raise DataError(f"{path}: {name} is in {split}, and in {there[key]}, by the lists of {path.parent}")
        if not has_suffix(name):
            self.bare.add(key)
        if column is not None:
            self.keyed[key] = plain(column)

    def settle(self, rows: Sequence[Picture], notes: list[str]) -> None:
        """Take the files of `maybe`, or none of them."""
        if not self.maybe:
            return
        known = [{last(name) for name in (row.place, row.image_id, row.key[1]) if name} for row in rows]
        every = set[str]().union(*known)
        has_train = any("train" in there.values() for there in self.names.values())
        files = [
            (path, said)
            for path, said in self.maybe
            if 2 * sum(last(name) in every for _, name, *_ in said) >= len(said)
            and not (has_train and plain(path.stem) == "trainval")
        ]
        splits: dict[str, set[str]] = {}
        for there in self.names.values():
            for name, split in there.items():
                splits.setdefault(last(name), set()).add(split)
        for split, name, *_ in chain.from_iterable(said for _, said in files):
            splits.setdefault(last(name), set()).add(split)
        named = sum(not names.isdisjoint(splits) for names in known)
        clash = any(len(found) > 1 for found in splits.values())
        if files and (clash or named < 0.9 * len(rows) or "train" not in set[str]().union(*splits.values())):
            notes.append(
                f"not read as lists of splits, of which {', '.join(path.name for path, _ in files[:4])} might be some: "
                + ("a name is in two of them" if clash else f"they name {named} of {len(rows)} rows' images")
            )
            return
        for path, said in files:
            for entry in said:
                if last(entry[1]) in every:
                    self.add(path, *entry)

    def choose(self, rows: Sequence[Picture], notes: list[str]) -> None:
        """Take a list's column of ids for one of names, where the images have other ids: `id;split` holds often names
        without their suffix."""
        for column in {*self.keyed.values()}:
            own = {name for name, of in self.keyed.items() if of == column}
            lasts = {last(name) for name in own}
            ids = [key_of(key) for other, key in map(id_of, rows) if other in ("", column) and key]
            if 0.1 * sum(last(row.place) in lasts for row in rows) > sum(key in own for key in ids):
                notes.append(f"a list's column {column} holds names of images, which have other ids")
                self.keyed = {name: of for name, of in self.keyed.items() if of != column}

    def split_of(self, row: Picture, alone: bool) -> str | None:
        """The split of a row's image: by its name, else, where that is another thing, by its id; first by its id where
        the list's column is that of the ids. `alone`: no other image has the last part of its name, so that the folders
        before it need not be the same."""
        named = self.find(row.place, row.where, alone)
        column, key = id_of(row)
        if not key or (named and named[0] not in self.bare):
            return named[1] if named else None
        numbered = self.find(key, row.where, alone)
        numbered = numbered if numbered and numbered[0] in self.bare else None
        for each in filter(None, (numbered, named)):
            if each[0] in self.keyed and column in ("", self.keyed[each[0]]):
                return each[1] if each is numbered else None  # an image of that name has another id
        numbered = numbered if column != "id" else None  # which may count the rows
        if named and numbered and named[1] != numbered[1]:
            raise DataError(
                f"{row.where}: by the lists, {row.place} is in {named[1]} as a name, and in {numbered[1]} by its id "
                f"{key}. Write names with their suffix there"
            )
        found = named or numbered
        return found[1] if found else None

    def find(self, name: str, where: str, alone: bool) -> tuple[str, str] | None:
        """(name as the lists have it, split). Raises DataError for a name that may be two of them."""
        there, key = self.names.get(last(name), {}), f"/{key_of(name)}"
        ends = [other for other in there if key.endswith(f"/{other}")]
        found = [max(ends, key=len)] if ends else [other for other in there if f"/{other}".endswith(key)]
        found = found or [*there] * alone
        if len({there[other] for other in found}) > 1:
            raise DataError(f"{where}: {name} may be {' or '.join(found[:2])} of the lists; write the folder before it")
        return (found[0], there[found[0]]) if found else None


def id_of(row: Picture) -> tuple[str, str]:
    """(the column of a row's id, empty where it is the image's own; the id, empty where the row has but a name)."""
    return row.key if row.key[1] else ("", row.image_id if row.name else "")


def key_of(name: str) -> str:
    r"""A name in one spelling, without an image's suffix: `.\a\1.jpg`, `/a/1` and `a/1` are one."""
    name = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    name = re.sub(r"^[A-Za-z]:/", "", name)
    path = PurePosixPath(name.lstrip("/"))
    return str(path.with_suffix("") if has_suffix(name) else path)


def last(name: str) -> str:
    return key_of(name).rpartition("/")[2]


def has_suffix(name: str) -> bool:
    return PurePosixPath(name.strip()).suffix.lower() in IMAGE_SUFFIXES


def may_be_list(path: Path) -> bool:
    """Whether a file is of a kind that lists are; of an unusual one, only if it is called after splits: `train`,
    `val_ids.npy`."""
    suffix = path.suffix.lower()
    if suffix in UNUSUAL:
        about = split_of_name(path.stem) or may_be_about_splits(path.stem)
        return bool(about) if suffix else split_of_name(path.name, strict=True) is not None
    return suffix in KINDS


def split_lists(
    files: Iterable[Path], notes: list[str], captioned: bool = False, doubtful: Collection[Path] = ()
) -> Lists:
    """What the lists among files beside the captions say: `train.txt` and `test.txt` with a name a line, the same as
    JSON, `{"train": [names], ...}`, `{name: "train", ...}`, a table of images and splits, or CUB-200's numbers.
    Raises DataError for a name in two of them.

    Args:
        captioned: tables that are called after splits may be lists, too, where they have captions, which are not read.
        doubtful: of the files, those that lie where lists seldom do.
    """
    lists, files = Lists(), sorted(files)
    splits_of: dict[tuple[Path, str | None], set[str | None]] = {}  # of names that differ in the split's word alone
    for path in files:
        splits_of.setdefault((path.parent, form_of(path.stem)), set()).add(split_of_name(path.stem))
    for path in files:
        own = split_of_name(path.stem)
        about = bool(own) or may_be_about_splits(path.stem) or plain(path.stem) == "trainval"
        firm = bool(split_of_name(path.stem, strict=True) or re.search("split|partition", path.stem.casefold()))
        usual, pairs = path.suffix.lower() in KINDS and path not in doubtful, None
        try:
            pairs = candidates(path, about) if usual else None
            named = [(split, str(name), *column) for split, name, *column in pairs or () if split]
        except UnicodeDecodeError as error:
            notes.append(f"no list of a split: {path} cannot be read ({error})")
            lists.unread += [path] if firm else []
            continue
        except DataError as error:
            if firm and path.suffix.lower() not in YAML:
                raise
            notes.append(f"no list of a split: {error}")
            continue
        for entry in named:
            lists.add(path, *entry)
        if named:
            continue
        among = own if len(splits_of[path.parent, form_of(path.stem)]) > 1 else None  # birds_train.txt, birds_test.txt
        with contextlib.suppress(DataError, UnicodeDecodeError):  # it need not be one
            told = usual and path.suffix.lower() in (".json", *YAML)  # which says the same again
            loose = None if told else candidates(path, about, Loose(among, captioned and firm))
            if maybe := [(split, str(name), *column) for split, name, *column in loose or () if split]:
                lists.maybe.append((path, maybe))
                continue
        if about and pairs is not None:
            notes.append(f"{path.name} is not read: it names no images of a split")
            lists.unread += [path] if firm else []
    return lists


class Loose(NamedTuple):
    """What may be taken for a list where it names nearly all images.

    Attributes:
        among: the split that a file's name says that differs in that from others.
        captioned: a table with captions is meant, too.
    """

    among: str | None
    captioned: bool


def candidates(path: Path, about: bool, loose: Loose | None = None) -> Iterable[tuple[Any, ...]] | None:
    """(split, name of an image) of a file that may be a list, with the column of names if that is one of ids; None for
    a file that is something else: captions, a text about one image.

    Args:
        about: its name is about splits.
        loose: whether, and how, it is asked of what is seldom a list.
    """
    suffix, own = path.suffix.lower(), split_of_name(path.stem)
    if not about and suffix not in (".csv", ".tsv"):
        return None
    if any(path.with_suffix(image).exists() for image in IMAGE_SUFFIXES):
        return None
    if suffix in (*LISTS, ".ids", "", ".npy"):
        images = path.with_name("images.txt")
        cub = plain(path.stem) == "traintestsplit" and images.is_file()
        return by_number(path, images) if cub else in_names(lines_in(path), path, loose)
    if suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        rows = rows_in(path)
        first = next(rows, {})
        columns = [c for c in first if c is not None]
        if not first and about:
            return ()
        if not first or (caption_columns(columns) and not (loose and loose.captioned)):
            return None
        said = about or find_column(columns, (*SPLIT_COLUMNS, *(MAYBE_SPLIT_COLUMNS if loose else ())))
        return in_rows([*chain([first], rows)], path) if said else None
    if suffix == ".json" and (not own or "split" in path.stem.casefold() or begins_as_names(path)):
        return in_json(read_json(path), path)
    if suffix in YAML:
        import yaml

        try:
            return in_json(yaml.safe_load(path.read_text(encoding_of(path))), path)
        except yaml.YAMLError as error:
            raise DataError(f"{path}: cannot be read as YAML ({error})") from error
    return None


def in_json(content: Any, path: Path) -> Iterable[tuple[Any, ...]] | None:
    """What a list that is written as JSON says. Other keys than splits, like a seed, name no images; those of another
    part are left out."""
    if isinstance(content, Mapping) and (inner := find_column([*content], ("splits", "split"))):
        content = content[inner]
    if isinstance(content, list) and content and all(isinstance(row, Mapping) for row in content):
        return None if caption_columns([*content[0]]) else in_rows(content, path)
    if isinstance(content, list):
        return in_names([str(name) for name in content if isinstance(name, (str, int))], path)
    if not isinstance(content, Mapping):
        return ()
    if {"images", "annotations"} & content.keys():  # COCO's
        return None
    content = {str(key): value for key, value in content.items()}
    parts = {key: names for key, names in content.items() if isinstance(names, list) and split_of_name(key)}
    if parts:
        rows = [row for names in parts.values() for row in names if isinstance(row, Mapping)]
        if any(caption_columns([*row]) for row in rows):
            return None
        return [
            (split_of_name(key), name[find_column([*name], _NAMES) or ""] if isinstance(name, Mapping) else name)
            for key, names in parts.items()
            for name in names
            if not isinstance(name, Mapping) or find_column([*name], _NAMES)
        ]
    said = {name: value for name, value in content.items() if isinstance(value, str) and not split_of_name(name, True)}
    if 2 * sum(bool(split_of_name(value)) for value in said.values()) > len(content):
        return [(split_in(value, f"{path}, {name}"), name) for name, value in said.items()]
    return None if any(map(has_suffix, content)) else ()  # captions


def rows_in(path: Path) -> Iterator[Mapping[Any, Any]]:
    """The rows of a table; none of Parquet that has captions. Raises DataError."""
    if path.suffix.lower() != ".parquet":
        yield from (row for _, row in read_table(path, strict=False))
    elif not caption_columns(parquet_columns(path)):
        yield from plain_rows(path)


def lines_in(path: Path) -> list[str]:
    if path.suffix.lower() == ".npy":
        try:
            names = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a list of names ({error})") from error
        return [str(name) for name in names.tolist()] if names.ndim == 1 and names.dtype.kind in "USiu" else []
    with open(path, encoding=encoding_of(path)) as file:
        return [line.strip() for line in file if line.strip()]


def by_number(path: Path, images: Path) -> Iterator[tuple[str, str]]:
    """(split, name) as CUB-200 and NABirds have them: lines of an image's number and 1 for training or 0 for the test,
    and `images.txt` with the name of each number. Raises DataError for a line that is none."""
    names = {number: name for number, _, name in (line.partition(" ") for line in lines_in(images))}
    for line in lines_in(path):
        number, _, said = line.partition(" ")
        if number not in names or said not in ("0", "1"):
            raise DataError(f"{path}: {line!r}; expected a number of {images.name}, and 1 (training) or 0 (test)")
        yield ("train" if said == "1" else "test"), names[number]


def begins_as_names(path: Path) -> bool:
    """Whether JSON is a list of texts or numbers, by its first signs: one of captions may be large, and is not read."""
    with open(path, "rb") as file:
        return re.match(rb'[\xef\xbb\xbf\xff\xfe\0\s]*\[[\0\s]*["\d\]]', file.read(1024)) is not None


def in_names(lines: Sequence[str], path: Path, loose: Loose | None = None) -> Iterator[tuple[str | None, str]]:
    """(split, name) of lines of names: all of images, unless the file's name is nothing but that of a split, or, where
    it is asked loosely, differs in that from others, and each line is one word; `trainval` is for training then. After
    a name may stand its split, CelebA's number of one, or numbers of classes (VOC, Oxford's pets)."""
    own, strict = split_of_name(path.stem), split_of_name(path.stem, strict=True)
    if loose and plain(path.stem) == "trainval":
        own = strict = "train"
    elif loose and not strict and all(len(line.split()) == 1 for line in lines):
        strict = loose.among
    pairs = [name_and_more(line, bool(strict) or not own) for line in lines]
    if len({name for name, _ in pairs}) < len({*lines}):  # `dog 1`, `dog 2`: the numbers are of the names
        pairs = [(line, "") for line in lines]
    more = {said for _, said in pairs}
    if more and all(SPLIT_WORDS.get(said.casefold()) for said in more):
        yield from ((SPLIT_WORDS[said.casefold()], name) for name, said in pairs)
    elif plain(path.stem) == "listevalpartition" and more <= _CELEBA.keys():
        yield from ((_CELEBA[said], name) for name, said in pairs)
    elif (strict and all(re.fullmatch(f"|{_NUMBERS}", said) for said in more)) or (
        own and not any(more) and all(has_suffix(name) for name, _ in pairs)
    ):
        yield from ((own, name) for name, _ in pairs)


def name_and_more(line: str, bare: bool) -> tuple[str, str]:
    """`1.jpg 3` -> `1.jpg`, `3`; so `000001  1`, if `bare` names without a suffix are expected."""
    if has_suffix(line):
        return line, ""
    found = _LINE.fullmatch(line) or (re.fullmatch(rf"(\S+)\s+({_NUMBERS}|[a-z]+)", line) if bare else None)
    return (found[1], found[2]) if found else (line, "")


def in_rows(rows: Sequence[Mapping[Any, Any]], path: Path) -> Iterator[tuple[Any, ...]]:
    """(split, name) of rows with a column of images and what tells a row's split, else the file's name does; without
    a header, too."""
    columns = [column for column in rows[0] if column is not None]
    if any(has_suffix(c) or c.casefold() in SPLIT_WORDS for c in columns) and not find_column(columns, _NAMES):
        cells = [[str(value) for key, value in row.items() if key is not None] for row in rows]
        yield from in_names([" ".join(line) for line in (columns, *cells)], path)
        return
    image = find_column(columns, _NAMES) or (columns[0] if len(columns) == 1 else None)
    if image is None:
        return
    marks = Marks([image], [], rows[:PROBE])
    of_file = split_of_name(path.stem, strict=len(columns) > 1)  # `test.csv`, not `test_results.csv`
    lone = [image] if len(columns) == 1 and plain(image) not in map(plain, _NAMES) else []  # no header, but a name
    yield from ((of_file, name) for name in lone)
    ids = [image] if plain(image) in ID_COLUMNS else []
    for number, row in enumerate(rows, 1):
        if image in row:
            yield marks.split(row, f"{path}, row {number}") or of_file, row[image], *ids


def in_lists(rows: Iterable[Picture], lists: Lists, notes: list[str], keep: bool = False) -> Iterator[Picture]:
    """The rows, in the splits that the lists say; those that no list names are left out, unless they name theirs, or
    `keep`. Raises DataError where a file called after splits names images, but not in a form that we know."""
    if not (lists.names or lists.unread or lists.maybe):
        yield from rows
        return
    rows = list(rows)
    lists.settle(rows, notes)
    lists.choose(rows, notes)
    names: dict[str, set[str]] = {}
    for row in rows:
        names.setdefault(last(row.place), set()).add(row.place)
    for path in lists.unread:
        if mentions(path, names):
            raise DataError(f"{path}: names images, but not as a list of a split does: {_FORMS}. Mend it, or move it")
    silent: set[str] = set()
    for row in rows:
        split = lists.split_of(row, len(names[last(row.place)]) == 1) if lists.names else None
        if lists.names and not split and not row.split and not keep:
            silent.add(row.image_id)
            continue
        row.split = agreed(row.split, split, row.where)
        yield row
    if silent:
        notes.append(f"{len(silent)} images are in no list of a split; left out (e.g. {min(silent)})")


def mentions(path: Path, names: Mapping[str, Any]) -> bool:
    """Whether a file's first megabyte names two images or more."""
    with open(path, encoding=encoding_of(path), errors="replace") as file:
        words = re.findall(r"[^\s,;|\"'\[\]{}]+", file.read(1 << 20))
    return len({last(word) for word in words if has_suffix(word)} & names.keys()) > 1
