"""A folder of images with their captions, as people have them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from blip_lite.data.dataset import Listing
from blip_lite.data.names import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    caption_columns,
    find_column,
    may_be_about_splits,
    plain,
    says_captions,
    split_of_name,
    split_of_path,
)
from blip_lite.data.sources.encoding import encoding_of, utf8
from blip_lite.data.sources.file import IMAGE_FOLDERS, REMEDIES, file_rows, header_of, is_text_table
from blip_lite.data.sources.hub import datasets_rows, hub, parquet_columns, saved
from blip_lite.data.sources.lists import LISTS, YAML, has_suffix, in_lists, last, may_be_list, split_lists
from blip_lite.data.sources.marks import Marks
from blip_lite.data.sources.relations import is_called_after_pictures, without_pictures
from blip_lite.data.sources.shards import tar_rows
from blip_lite.data.sources.table import ANNOTATIONS, PROBE, captions_of, captions_told, folded, read_json
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture
from blip_lite.settings import TABLES, DataSettings

SIDECARS = (".caption", ".txt")  # beside an image; of two, the first: kohya's .txt holds tags then
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}
QUIET = {".md", ".json", ".py", ".html", ".pdf", ".log", ".sh", ""}  # that nobody takes for images


@dataclass
class Found:
    """The files below a folder, by what they are; hidden ones and those of a Mac's zip are passed over."""

    images: list[Path] = field(default_factory=list)
    texts: set[Path] = field(default_factory=set)
    tables: list[Path] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)  # of splits, maybe
    parquets: list[Path] = field(default_factory=list)
    tars: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    no_captions: str = ""  # what the .json beside the images have instead


def walk(folder: Path) -> Found:
    found, seen = Found(), set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f.casefold() not in IGNORED)
        for name in sorted(files):
            path = Path(place, name)
            suffix = path.suffix.lower()
            if name.startswith(".") or name.casefold() in IGNORED:
                continue
            if not path.is_file():  # a link to nothing, a pipe
                found.others["(no file)"] += 1
            elif suffix in IMAGE_SUFFIXES:
                found.images.append(path)
            elif suffix in (*SIDECARS, *LISTS):
                found.texts.add(path)
            elif suffix in YAML or (suffix in ("", ".npy", ".ids") and may_be_list(path)):
                found.lists.append(path)
            elif suffix == ".parquet":
                found.parquets.append(path)
            elif suffix in TABLES or suffix == ".token":
                found.tables.append(path)
            elif suffix == ".tar":
                found.tars.append(path)
            else:
                found.others[suffix] += 1
    return found


def load_folder(folder: Path, settings: DataSettings) -> Listing:
    """A folder: images with `metadata.csv|jsonl|parquet` (the Hugging Face `imagefolder` convention), with one table,
    with tables named after the splits, or with a `.caption` or `.txt` beside each image; `.tar` shards; Parquet files
    (a copy of a Hub data set); or what `datasets.save_to_disk` wrote. Folders called after splits, at any depth, are
    the splits.
    """
    notes: list[str] = []
    if tables := saved_tables(folder):
        refuse_parts(settings)
        rows: Iterable[Picture] = datasets_rows(tables, folder.name, folder, settings, notes)
        return Listing(folder.resolve().name, rows, notes, published=True)
    found = walk(folder)
    if not found.parquets:
        refuse_parts(settings)
    columns = {path: parquet_columns(path) for path in found.parquets}
    logs = [p for p in found.parquets if {"url", "status"} <= {plain(c) for c in columns[p]}]
    about = jsons_beside(found, settings.caption_column)
    beside = sidecars(found)
    texts = {image: [text] for image, text in about.items()} | beside
    if both := about.keys() & beside.keys():
        notes.append(f"{len(both)} images have a text and a .json with a caption beside them; the text is read")
    if not texts and not any(may_hold_captions(table) for table in found.tables):
        texts = parallel(found.images, found.texts)
    mostly = 2 * len(texts) >= max(1, len(found.images))
    extracted = [p for p in found.tables if p.suffix.lower() != ".json" and found.images and looks_like_captions(p)]
    asked_for = bool(settings.caption_column or settings.image_column)  # a text beside an image has no columns
    boxes = mostly and all(map(says_boxes, [beside[0] for beside in list(texts.values())[:20]]))
    if found.tars or mostly:
        found.parquets = [p for p in found.parquets if p not in logs]  # img2dataset's logs of what it downloaded
    metadata = [
        p for p in (*found.tables, *found.parquets) if p.stem.casefold() == "metadata" and p.suffix.lower() != ".json"
    ]
    published, named, read, captioned = bool(logs), dict[Path, str | None](), 0, list[Path]()
    if metadata:
        rows = metadata_rows(folder, metadata, found, settings, notes)
        if mostly:
            notes.append("the texts beside the images are not read: metadata names the captions")
    elif found.tars and not extracted and not mostly:
        rows, read = tar_rows(found.tars, notes, folder, settings.caption_column), len(found.tars)
    elif found.parquets and (settings.dataset_config or settings.dataset_split):
        rows, published = datasets_rows(hub(str(folder), settings), folder.name, folder, settings, notes), True
    elif captioned := captioned_parquets(found, columns, settings, notes):
        rows, published = parquet_rows(folder, captioned, settings, notes), True
    elif (not mostly or (extracted and (boxes or asked_for))) and (
        named := captions_tables(folder, found, settings, notes)
    ):
        rows = split_tables(folder, named, settings, notes)
    else:
        rows = sidecar_rows(folder, found, texts, notes, settings.caption_column)
        notes += [f"captions of {p.name} are not read: most images have a text beside them" for p in extracted]
    if len(found.tars) > read:
        notes.append(f"{len(found.tars)} .tar are not read, as captions of the pictures beside them are")
    used = {*metadata, *named, *captioned, *(text for beside in texts.values() for text in beside)}
    bare = {path for path in found.parquets if path not in logs and not has_captions(columns[path])}
    lists = split_lists({*found.texts, *found.tables, *found.lists, *bare} - used, notes, captioned=True)
    rows = in_lists(rows, lists, notes)
    odd = {suffix: n for suffix, n in found.others.items() if suffix not in QUIET}
    if odd and (found.images or found.tables):
        told = {suffix: f" ({REMEDIES[suffix]})" for suffix in odd if suffix in REMEDIES}
        notes.append("not read: " + ", ".join(f"{n} {s}{told.get(s, '')}" for s, n in sorted(odd.items())))
    return Listing(folder.resolve().name, rows, notes, published)


def has_captions(columns: Sequence[str]) -> bool:
    return bool(caption_columns(columns) or says_captions(columns))


def captioned_parquets(
    found: Found, columns: Mapping[Path, Sequence[str]], settings: DataSettings, notes: list[str]
) -> list[Path]:
    """Parquet files that have captions, and do not just name the pictures of others."""
    files = [p for p in found.parquets if settings.caption_column or has_captions(columns[p])]
    if not any(map(is_called_after_pictures, files)):
        return files
    captions = without_pictures([*files, *filter(looks_like_captions, found.tables)], notes)
    return [p for p in files if p in captions]


def parquet_rows(folder: Path, files: Sequence[Path], settings: DataSettings, notes: list[str]) -> Iterator[Picture]:
    """A copy of a Hub data set: the splits are in the names of its files and folders; a lone train says nothing."""
    inner = {path: PurePosixPath(path.relative_to(folder).as_posix()) for path in files}
    splits = {path: split_of_path(inner[path]) or split_of_name(path.stem) for path in files}
    lone = set(splits.values()) <= {"train", None} or set(splits.values()) <= {"validation"}
    given = {path: None if lone else splits[path] for path in files}
    rows = {path: (split, file_rows(path, folder, settings, notes, split)) for path, split in given.items()}
    yield from not_twice(folder, rows)


def not_twice(folder: Path, files: Mapping[Path, tuple[str | None, Iterable[Picture]]]) -> Iterator[Picture]:
    """The rows of several files in the folder, each with its split. Raises DataError where two of one
    split have other captions of most of the same pictures: an old copy (`train_old.csv`), another language. Files whose
    paths differ in numbers alone are parts of one."""
    forms = {file: (split, re.sub(r"\d+", "", str(file.relative_to(folder)))) for file, (split, _) in files.items()}
    alone = {split for split, count in Counter(split for split, _ in set(forms.values())).items() if count == 1}
    read: dict[tuple[str | None, str], tuple[Path, set[str], set[int]]] = {}
    for file, (split, rows) in files.items():
        if split in alone:  # a thousand shards, say: nothing is to be remembered
            yield from rows
            continue
        _, ids, said = read.setdefault(forms[file], (file, set(), set()))
        for row in rows:
            ids.add(row.image_id)
            said |= {hash((row.image_id, caption)) for caption in row.captions}
            yield row
    for ((one, _), (file, ids, said)), ((two, _), (other, more, words)) in combinations(read.items(), 2):
        both = len(ids & more) if one == two else 0
        if 2 * both > min(len(ids), len(more)) and 2 * len(said & words) < min(len(said), len(words)):
            names = " and ".join(path.relative_to(folder).as_posix() for path in (file, other))
            raise DataError(
                f"{folder}: {names} have other captions of {both} images: which? Take one away, name the "
                "file with --dataset, or put the captions of both into one table"
            )


def refuse_parts(settings: DataSettings) -> None:
    """Raises DataError where a part is to be chosen of what has none."""
    for option in ("dataset_config", "dataset_split"):
        if getattr(settings, option):
            raise DataError(
                f"--{option} chooses a part of a data set of the Hub, or of a folder that is a copy of one, in "
                f"Parquet; {settings.dataset} is none. Leave it out"
            )


def saved_tables(folder: Path) -> dict[str, Any]:
    """What `datasets.save_to_disk` wrote into the folder, or into one in it; parts that were saved one by one are
    called after their folders."""
    children = sorted(p for p in folder.iterdir() if p.is_dir())
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return saved(folder)
    if dicts := [child for child in children if (child / "dataset_dict.json").is_file()]:
        return saved(dicts[0]) if len(dicts) == 1 else {}
    parts = [child for child in children if (child / "state.json").is_file()]
    return {child.name if len(parts) > 1 else split_of_name(child.name) or "": saved(child)[""] for child in parts}


def sidecars(found: Found) -> dict[Path, list[Path]]:
    """The texts beside each image that has any, those to be read first: `a.caption`, `a.txt`, `a.jpg.caption`,
    `a.jpg.txt`; else those whose names differ in capitals or in Unicode's spelling."""
    names = {
        image: [*(image.with_suffix(s) for s in SIDECARS), *(Path(f"{image}{s}") for s in SIDECARS)]
        for image in found.images
    }
    there = {image: [name for name in wanted if name in found.texts] for image, wanted in names.items()}
    taken = {text for texts in there.values() for text in texts}  # `a.txt` is not that of `A.jpg` beside `a.jpg`
    folded: dict[str, list[Path]] = {}
    for text in sorted(found.texts - taken):
        folded.setdefault(fold(text), []).append(text)
    for image, texts in there.items():
        if not texts and (others := [text for name in names[image] for text in folded.pop(fold(name), ())]):
            there[image] = others
    return {image: texts for image, texts in there.items() if texts}


def parallel(images: Sequence[Path], texts: Collection[Path]) -> dict[Path, list[Path]]:
    """The text of each image in a folder of the same inner structure: `images/a/1.jpg`, `text/a/1.txt` (CUB-200), or
    `train/images/1.jpg`, `train/captions/1.txt`; not a detector's boxes (`labels/1.txt`)."""
    if not images or not texts:
        return {}
    base = Path(os.path.commonpath([*images, *texts]))
    return paired(images, texts, base, named=False) or paired(images, texts, base, named=True)


def paired(images: Sequence[Path], texts: Collection[Path], base: Path, named: bool) -> dict[Path, list[Path]]:
    """`parallel`, where the first folder below `base` is left out of each path, or the last one that is `named` after
    images or texts; not where the two that are left out are of other splits."""

    def inner(path: Path) -> tuple[str | None, ...]:
        parts = Path(fold(path.relative_to(base))).with_suffix("").parts
        after = [n for n, part in enumerate(parts[:-1]) if plain(part) in (*IMAGE_FOLDERS, *ANNOTATIONS)]
        left_out = after[-1] if named and after else 0
        return (*parts[:left_out], *parts[left_out + 1 :], split_of_name(parts[left_out], strict=True))

    of_inner: dict[tuple[str | None, ...], list[Path]] = {}
    for text in sorted(texts):
        of_inner.setdefault(inner(text), []).append(text)
    of_inner = {p: [t for t in there if len(there) == 1 or not says_boxes(t)] for p, there in of_inner.items()}
    of_inner = {place: there for place, there in of_inner.items() if len(place) > 1 and len(there) == 1}
    count = Counter(map(inner, images))
    return {image: of_inner[place] for image in images if count[place := inner(image)] == 1 and place in of_inner}


def jsons_beside(found: Found, columns: str | None) -> dict[Path, Path]:
    """The `.json` with a caption, or with `columns` that are told, beside each image or, where there are no texts, in a
    folder of their own, where most have one. They are taken from the tables, as each is about one image, like
    LabelMe's, which has boxes and no caption. Raises DataError for one in another folder that is about another image.
    """
    jsons = {table for table in found.tables if table.suffix.lower() == ".json"}
    names = ((image, (image.with_suffix(".json"), Path(f"{image}.json"))) for image in found.images)
    beside = {image: path for image, paths in names for path in paths if path in jsons}
    if not beside and 2 * len(jsons) >= len(found.images) and not parallel(found.images, found.texts):
        beside = {image: path for image, (path,) in parallel(found.images, jsons).items()}
    if 2 * len(beside) < max(1, len(found.images)):
        return {}
    read = ((image, read_json(path)) for image, path in [*beside.items()][:20])
    first = {image: about for image, about in read if isinstance(about, Mapping)}
    if not first:  # lists of names, tables
        return {}
    found.tables = [table for table in found.tables if table not in set(beside.values())]
    for image, about in first.items():
        path, column = beside[image], find_column([*about], IMAGE_COLUMNS)
        of = about[column] if column else None
        if path.parent != image.parent and isinstance(of, str) and has_suffix(of) and last(of) != last(image.name):
            raise DataError(f"{path}: is about {of} by what it says, and about {image} by its name")
    for image, about in first.items():
        if captions_of(about, str(beside[image])) or (columns and find_column([*about], columns.split(","))):
            return beside
        found.no_captions = f"{beside[image]} has no caption, but {', '.join(map(str, [*about][:8]))}"
    return {}


def fold(path: Path) -> str:
    return os.path.join(path.parent, folded(path.name))


def says_boxes(text: Path) -> bool:
    """Whether a `.txt` holds what a detector is trained on: a class and four or more numbers a line (YOLO)."""
    lines = text.read_bytes().split(b"\n")
    return all(re.fullmatch(rb"\s*|\s*\d+(\s+-?[\d.e+-]+){4,}\s*", line) for line in lines)


def metadata_rows(
    folder: Path, tables: Sequence[Path], found: Found, settings: DataSettings, notes: list[str]
) -> Iterator[Picture]:
    """`metadata.*` of the folder itself, else one in each folder of a split."""
    tables = [p for p in tables if p.parent == folder] or tables
    if twins := [name for name, count in Counter(p.parent for p in tables).items() if count > 1]:
        names = ", ".join(sorted(p.name for p in tables if p.parent == twins[0]))
        raise DataError(f"{twins[0]}: which of {names}? Name the file with --dataset, or take one away")
    named = set()
    for table in tables:
        inner = PurePosixPath(table.relative_to(folder).as_posix())
        for row in file_rows(table, image_root(settings) or table.parent, settings, notes, split_of_path(inner)):
            named.add(spelled(row.image))
            if isinstance(row.image, Path) and not row.url:
                row.image_id = id_in(folder, row)
            yield row
    if silent := [p.relative_to(folder) for p in found.images if spelled(p) not in named]:
        names = ", ".join(sorted({table.name for table in tables}))
        notes.append(f"{len(silent)} images are not in {names}; left out (e.g. {silent[0]})")


def spelled(image: Any) -> str:
    """One spelling of a file's path, wherever the command runs and whatever writes its accents."""
    return unicodedata.normalize("NFC", os.path.abspath(image) if isinstance(image, (str, Path)) else "")


def captions_tables(folder: Path, found: Found, settings: DataSettings, notes: list[str]) -> dict[Path, str | None]:
    """The tables of a folder that has no `metadata.*`, with the split that the name of each says: those that name
    splits, else the only one. Raises DataError where there are several and none says so."""
    headed = [text for text in sorted(found.texts) if is_text_table(text)]
    tables = [table for table in (*found.tables, *headed) if looks_like_captions(table)]
    wanted = settings.caption_column.split(",") if settings.caption_column else None
    kinds = (".json",) if wanted else (".json", ".jsonl")  # what a CSV is, its header says
    jsons = [p for p in tables if p.suffix.lower() in kinds]
    lists = [p for p in jsons if (found_in := split_lists([p], [])).names or found_in.unread or found_in.maybe]
    tables = [p for p in tables if p not in lists]
    tables = [p for p in tables if names_captions(p, wanted)] or tables
    tables = without_pictures(tables, notes)
    inner = {table: PurePosixPath(table.relative_to(folder).as_posix()) for table in tables}
    splits = {table: split_of_name(table.stem) or split_of_path(inner[table]) for table in tables}
    several = {split for split, count in Counter(splits.values()).items() if count > 1}
    if odd := [table for table in tables if splits[table] in several and not names_images(table)]:
        notes.append(f"names no images, left out: {', '.join(str(inner[table]) for table in odd)}")
        splits = {table: split for table, split in splits.items() if table not in odd}
        tables = [*splits]
    named = {table: split for table, split in splits.items() if split}
    if len(set(named.values())) > 1 or (named and len(tables) == 1):
        if others := [str(inner[table]) for table, split in splits.items() if not split]:
            notes.append(f"in no split, left out: {', '.join(others)}")
        return dict(named)
    folders = {table.parent for table in tables}
    lone = len({table.name for table in tables}) == 1 and folders <= {image.parent for image in found.images}
    if lone and len({re.sub(r"\d+", "", str(f)) for f in folders}) == len(folders):  # one in each folder of pictures
        return dict.fromkeys(tables)
    if len(tables) > 1:
        names = sorted(table.name for table in tables)
        raise DataError(
            f"{tables[0].parent}: which of {', '.join(names[:5])}{', ...' * (len(names) > 5)}? Name the file with "
            "--dataset, or call them train, val and test"
        )
    return dict.fromkeys(tables)


def split_tables(
    folder: Path, tables: dict[Path, str | None], settings: DataSettings, notes: list[str]
) -> Iterator[Picture]:
    def rows_of(table: Path, split: str | None) -> Iterator[Picture]:
        notes.append(f"captions are in {table.relative_to(folder)}" + (f", for {split}" if split else ""))
        for row in file_rows(table, image_root(settings) or table.parent, settings, notes, split):
            if isinstance(row.image, Path) and not row.url:
                row.image_id = id_in(folder, row)
            yield row

    yield from not_twice(folder, {table: (split, rows_of(table, split)) for table, split in tables.items()})


def image_root(settings: DataSettings) -> Path | None:
    return Path(settings.image_root).expanduser() if settings.image_root else None


def id_in(folder: Path, row: Picture) -> str:
    """What an image of the folder is called: its path there, as two tables may each have a `1.jpg`."""
    base, path = os.path.join(os.path.abspath(folder), ""), os.path.abspath(str(row.image))
    return unicodedata.normalize("NFC", path[len(base) :]) if path.startswith(base) else row.image_id


def names_captions(table: Path, wanted: Sequence[str] | None) -> bool:
    """Whether the header of a CSV has a column of captions; True for what is no CSV."""
    if table.suffix.lower() not in (".csv", ".tsv"):
        return True
    columns = header_of(table)
    return bool(find_column(columns, wanted)) if wanted else has_captions(columns)


def names_images(table: Path) -> bool:
    """False for COCO's form without names of files, which BLIP has beside its annotations, for evaluation."""
    content = read_json(table) if table.suffix.lower() == ".json" else None
    images = content.get("images") if isinstance(content, Mapping) else None
    return not isinstance(images, list) or any("file_name" in image or "filename" in image for image in images)


def may_hold_captions(table: Path) -> bool:
    """Whether a table is none of splits, and none that its header says has no captions."""
    return looks_like_captions(table) and not may_be_about_splits(table.stem) and names_captions(table, None)


def looks_like_captions(table: Path) -> bool:
    """Not the odds and ends that lie about in a data set's folder, unless they have columns of images and captions."""
    odd = plain(table.stem) in (
        *("datasetinfo", "config", "classes", "labels", "package", "readme", "info", "stats", "category"),
    ) or plain(table.stem).startswith(("instances", "personkeypoints", "imageinfo", "stuff", "panoptic"))
    if not odd or table.suffix.lower() not in (".csv", ".tsv"):
        return not odd
    columns = header_of(table)
    return bool(find_column(columns, IMAGE_COLUMNS) and caption_columns(columns))


def sidecar_rows(
    folder: Path, found: Found, texts: dict[Path, list[Path]], notes: list[str], columns: str | None = None
) -> Iterator[Picture]:
    """Images with a text of the same name beside them: one caption a line; or with a JSON, in which `columns` may be
    told. Raises DataError for those of a text, and for a text or a JSON beside two pictures of its name."""
    silent, both, used, of_text = [], 0, set(), dict[Path, Path]()
    jsons = [beside[0] for beside in texts.values() if beside[0].suffix.lower() == ".json"]
    first = [about for text in jsons[:PROBE] if isinstance(about := read_json(text), Mapping)]
    marks = Marks(CAPTION_COLUMNS, notes, first)
    for image in found.images:
        if image not in texts:
            silent.append(image)
            continue
        there = texts[image]
        used.update(there)
        both += len(there) > 1
        text = there[0]
        if (other := of_text.setdefault(text, image)) != image:
            raise DataError(
                f"{text}: is it about {other.name} or {image.name}? Take the other away (a mask?), or call the text "
                f"{other.name}{text.suffix}"
            )
        name = image.relative_to(folder).as_posix()
        if text.suffix.lower() == ".json":
            about = read_json(text)
            if isinstance(about, Mapping) and not marks.is_rejected(about, str(text)):
                captions = captions_told(about, columns, str(text))
                yield Picture(name, image, captions, str(text), marks.split(about, str(text)))
            continue
        if columns:
            raise DataError(f"{text}: a text has no columns, so none is called {columns}; leave --caption_column out")
        lines = [line.strip() for line in utf8(text, iter_lines(text, notes))]
        captions = tuple(line for line in lines if line)
        yield Picture(name, image, captions, str(text))
    marks.tell()
    if len(silent) == len(found.images):
        tables = ", ".join(path.name for path in found.tables[:5])
        raise DataError(
            f"{folder}: has no metadata.csv, metadata.jsonl or metadata.parquet with columns file_name "
            "and caption, and no image has a .txt with its caption beside it"
            + (f". There are {tables}" if tables else "")
            + (f". {found.no_captions}; --caption_column names what is one" if found.no_captions else "")
            + ("" if found.images else ". There are no images either")
            + "".join(f". {n} {suffix}: {REMEDIES[suffix]}" for suffix, n in found.others.items() if suffix in REMEDIES)
        )
    if silent:
        notes.append(f"{len(silent)} images have no .txt beside them; left out (e.g. {silent[0].name})")
    if both:
        notes.append(f"{both} images have a .caption and a .txt; the .caption is read")
    if orphans := {text for text in found.texts - used if not may_be_about_splits(text.stem)}:
        notes.append(f"{len(orphans)} .txt have no image; left out (e.g. {min(orphans).name})")


def iter_lines(text: Path, notes: list[str]) -> Iterator[str]:
    try:
        with open(text, encoding="utf-8-sig") as file:
            yield from file.readlines()
    except UnicodeDecodeError:
        with open(text, encoding=encoding_of(text, notes)) as file:
            yield from file
