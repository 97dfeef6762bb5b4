"""Tables: CSV, TSV, JSON lines, lists of JSON objects, and whatever else has columns."""

from __future__ import annotations

import ast
import contextlib
import csv
import filecmp
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TextIO
from urllib.parse import unquote, urlsplit

from blip_lite.data.names import (
    CAPTION_COLUMNS,
    CONVERSATIONS,
    ID_COLUMNS,
    IMAGE_COLUMNS,
    LISTS_OF_CAPTIONS,
    caption_columns,
    find_column,
    plain,
)
from blip_lite.data.sources.encoding import encoding_of, utf16_of
from blip_lite.data.sources.marks import Marks, agreed, is_empty
from blip_lite.errors import DataError, ImageError
from blip_lite.processing.download import cached, is_url
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture
from blip_lite.processing.text import NULLS
from blip_lite.settings import DataSettings
from blip_lite.storage import lines_of

PROBE = 50  # rows that are looked at to find the columns, and the folder of the images

# A text that several files swallowed: the name of an image and a separator, in a line of its own.
_SWALLOWED = re.compile(r"\n[^\n]*\.(?:jpe?g|png|webp|bmp|gif|tiff?)[\"']?\s*(?:[,;|\t\n]|\Z)", re.IGNORECASE)
_IMAGE = re.compile(r"<img>(.+?)</img>")  # in a conversation
_BACKSLASHED = re.compile(r'(?:^|[,;|])"[^"\n]*[^"\\\n]\\"[^,;|"\r\n]', re.MULTILINE)  # "a \"big\" dog"
_QUOTED = re.compile(r"""\"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""")


Files = Callable[[Sequence[str]], Sequence[Path | None]]  # the pictures of such names, None for one that is not there


def pick_columns(
    rows: Sequence[Mapping[str, Any]], settings: DataSettings, where: str, notes: list[str], files: Files | None = None
) -> tuple[str, list[str]]:
    """The column of the image and those of the captions, of the first rows: as told, else by their usual names; of
    several for the image, one that holds paths, not URLs or numbers of rows, and of `files` that are there."""
    sample = first_cells(rows)
    columns = [column for column in sample if column is not None]
    if settings.image_column:
        image = find_column(columns, [settings.image_column])
    else:
        usual = [c for name in IMAGE_COLUMNS if (c := find_column(columns, [name]))]
        paths = [] if settings.allow_urls else [c for c in usual if not is_url(sample[c])]
        paths = sorted(paths, key=lambda c: is_count(c, paths, rows))
        if files and len(paths) > 1 and isinstance(sample[paths[0]], str):
            paths = [column_of_files(paths, rows, files, where)]
        ids = [c for name in ID_COLUMNS if (c := find_column(columns, [name]))]
        ids = [c for c in ids if plain(c) != "id" or not str(sample[c]).strip().isdigit()]  # no numbers of rows
        files_in = (
            [] if settings.allow_urls else [c for c in ids if Path(str(sample[c])).suffix.lower() in IMAGE_SUFFIXES]
        )
        image = next(iter([*paths, *files_in, *usual, *ids]), None)
    if settings.caption_column:
        wanted = settings.caption_column.split(",")
        captions = [found for name in wanted if (found := find_column(columns, [name]))]
        captions = captions if len(captions) == len(wanted) else []
    else:
        captions = caption_columns(columns)
    there = f"there are: {', '.join(map(str, columns))}"
    if (image is None or not captions) and any(Path(str(c).strip()).suffix.lower() in IMAGE_SUFFIXES for c in columns):
        raise DataError(f"{where}: the first line looks like data, not a header. Put a line `image,caption` before it")
    if len(columns) == 1 and not str(columns[0]).isidentifier():
        there += " only, so the separator is another one than , ; | or a tab, or this is no header"
    if image is None:
        raise DataError(
            f"{where}: no column {settings.image_column or 'file_name or image'}; {there}. Name it with --image_column"
        )
    if not captions:
        raise DataError(
            f"{where}: no column {settings.caption_column or 'caption (or captions, or text)'}; {there}. Name "
            "it with --caption_column"
        )
    if not (settings.image_column and settings.caption_column):
        notes.append(f"{where}: images are in column {image!r}, captions in {', '.join(map(repr, captions))}")
    return image, captions


def column_of_files(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], files: Files, where: str) -> str:
    """Of columns that may name the images, the first if half of its files are there, else the one that has most: a
    `filename` may be what a picture was called before it came to its `path`. Raises DataError for two that lead to
    files of other names."""
    found: dict[str, list[Path | None]] = {}
    for column in columns:
        cells = [cell for row in rows if isinstance(cell := row.get(column), str) and not is_url(cell)]
        named = all("/" in cell or Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in cells)
        if named and len(cells) == len(rows):  # numbers of rows may be names of other pictures
            found[column] = [file if file and file.is_file() else None for file in files(cells)]
    counts = {column: sum(map(bool, some)) for column, some in found.items()}
    best = max(found, key=lambda c: counts[c], default=columns[0])
    best = columns[0] if 2 * counts.get(columns[0], 0) >= len(rows) else best
    for other in found:
        if 0 < counts[other] == counts[best] and other != best:
            pairs = [(a, b) for a, b in zip(found[best], found[other], strict=True) if a and b and a.name != b.name]
            if odd := next(((a, b) for a, b in pairs if not are_copies(a, b)), None):  # not a picture and its thumbnail
                raise DataError(
                    f"{where}: column {best!r} leads to {odd[0]}, column {other!r} to {odd[1]}; say which with "
                    "--image_column"
                )
    return best if counts.get(best) else columns[0]


def are_copies(one: Path, other: Path) -> bool:
    """Whether two pictures are the same one, byte for byte. Of one that is not there, yes."""
    return not (one.is_file() and other.is_file()) or filecmp.cmp(one, other, shallow=False)


def first_cells(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A cell of each column, as objects may differ."""
    sample: dict[str, Any] = {}
    for row in rows:
        sample |= {key: value for key, value in row.items() if sample.get(key) is None}
    return sample


def is_count(column: str, others: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a column holds numbers that another one, which names pictures, contradicts: 0 beside `17.jpg`."""
    for other in others:
        cells = [(str(row.get(column)).strip(), name) for row in rows if isinstance(name := row.get(other), str)]
        pairs = [(number, Path(name).stem) for number, name in cells if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        numbers = all(number.isdigit() for number, _ in pairs)
        if numbers and any(number.lstrip("0") != stem.lstrip("0") for number, stem in pairs):
            return True
    return False


def captions_in(value: Any) -> list[str]:
    """All captions in a cell: a text, a list of them (as JSON, pandas or numpy write it, too), Karpathy's
    `{"raw": ...}`, or a conversation with one answer. Raises ValueError for one with several, and for a key that comes
    twice."""
    if isinstance(value, str):
        return list_in(value.strip())
    if isinstance(value, Mapping):
        columns = [*value]
        name = find_column(columns, ("raw", *CAPTION_COLUMNS))
        if name is None and len(columns) == 1 and re.fullmatch(r"[a-z]{2}(?:[-_]\w+)?", str(columns[0]), re.IGNORECASE):
            name = columns[0]  # `{"en": ...}`
        return captions_in(value[name]) if name is not None else []
    if value is None or value != value:  # NaN
        return []
    if isinstance(value, Iterable):
        items = list(value)
        if items and all(isinstance(item, Mapping) and ("from" in item or "role" in item) for item in items):
            return [answer_in(items)]
        return [c for item in items for c in captions_in(item)]
    return [str(value)]


def list_in(text: str) -> list[str]:
    """`['a dog', "two dogs"]`, `["a dog"]`, `('a dog', 'two dogs')`, numpy's `['a dog' 'two dogs']` with or without
    `array(...)`, and `{"text": ["a dog"]}` are lists; any other text is itself."""
    if text[:1] == "{" and text[-1:] == "}" and (captions := captions_in_json(text)):
        return captions
    if text[-1:] not in "])" or not text:
        return [""] if text.casefold() in NULLS else [text]  # empty: to be counted, not to vanish
    inner = re.fullmatch(r"(?:array\()?[\[(](.*?),?\s*[\])](?:,\s*dtype=\w+)?\)?", text, re.DOTALL)
    if inner:
        if text[0] == "[" and (captions := captions_in_json(text)) is not None:
            return captions
        found, rest = _QUOTED.findall(inner[1]), _QUOTED.sub("", inner[1])
        if not re.sub(r"\b(?:nan|None|null)\b|[\s,]", "", rest) and (found or text[0] != "("):
            with contextlib.suppress(ValueError, SyntaxError):
                return [str(ast.literal_eval(one)).strip() for one in found]
    return [text]


def captions_in_json(text: str) -> list[str] | None:
    """The captions in a cell that holds JSON; None if it holds none. Raises ValueError for a key that comes twice."""
    try:
        return captions_in(parse_json(text))
    except RepeatedKey:
        raise
    except (ValueError, RecursionError):
        return None


def captions_of(cell: Any, where: str) -> tuple[str, ...]:
    """All captions in a cell. Raises DataError that names the place."""
    try:
        return tuple(captions_in(cell))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def captions_told(about: Any, columns: str | None, where: str) -> tuple[str, ...]:
    """All captions of an object that is no row of a table (an annotation, the JSON beside a picture): in the columns
    that `--caption_column` names, else where they usually are. Raises DataError for an object that has not all of
    them."""
    if columns is None:
        return captions_of(about, where)
    keys = [*about] if isinstance(about, Mapping) else []
    found = [find_column(keys, [name]) for name in columns.split(",")]
    if None in found:
        there = f"there are: {', '.join(map(str, keys))}" if keys else "its captions have no names"
        raise DataError(f"{where}: no column {columns}; {there}. --caption_column names another one, or leave it out")
    return tuple(caption for key in found for caption in captions_of(about[key], where))


def answer_in(turns: Sequence[Mapping[str, Any]]) -> str:
    """What the assistant says, as LLaVA and chat data keep it."""
    answers = [t for t in turns if str(t.get("from", t.get("role"))).casefold() in ("gpt", "assistant", "model")]
    if len(answers) != 1:
        raise ValueError(f"a conversation with {len(answers)} answers; one is expected")
    content = answers[0].get("value", answers[0].get("content"))
    if isinstance(content, Iterable) and not isinstance(content, str):  # [{"type": "text", "text": ...}]
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content).strip()


ANNOTATIONS = (
    *("annotations", "annotation", "captions", "labels", "meta", "metadata", "text", "texts", "splits"),
    *("flickr8ktext", "csv", "json", "tables", "lists"),
)


def image_path(root: Path, name: str, where: str) -> tuple[str, Path]:
    """(the image's id, its file): `a.jpg`, `./a.jpg` and another Unicode spelling of it are one image.

    An absolute path that lies elsewhere and is not here (of another machine, of Label Studio) becomes one below
    `root`; `file.in_right_folder` finds what part of it is in the data set. Raises DataError.
    """
    name = unescaped(name.strip())
    if name[:7].casefold() == "file://":
        name = unquote(urlsplit(name).path)
    if len(name) > 255 and re.fullmatch(r"[\w+/=\s-]+", name):
        raise DataError(f"{where}: {name[:60]!r} is no path: its name is too long. Is it base64, or a text?")
    if "\\" in name and not os.path.exists(os.path.join(root, name)):  # written on Windows
        name = name.replace("\\", "/")
    if "/?d=" in name:  # Label Studio's local files
        name = unquote(name.partition("?d=")[2])
    name = re.sub(r"^[A-Za-z]:/", "/", name)
    bare = re.split(r"[#?]", name)[0]  # Flickr's `1.jpg#0`, a URL's `1.jpg?raw=true`
    if bare != name and Path(bare).suffix.lower() in IMAGE_SUFFIXES and Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        name = bare
    if name.startswith("/") and not name.startswith(os.path.abspath(root)) and not os.path.exists(name):
        name = name.lstrip("/")
    if len(name) > 63 and max(len(part.encode("utf-8", "replace")) for part in name.split("/")) > 255:
        raise DataError(f"{where}: {name[:60]!r} is no path: its name is too long. Is it base64, or a text?")
    path = inside(root, name, where)
    if name.endswith(".0") and name[:-2].isdecimal() and not on_disk(path):  # a column of numbers with an empty cell
        path, name = inside(root, name[:-2], where), name[:-2]
    return unicodedata.normalize("NFC", os.path.normpath(name)), with_suffix(path)


def unescaped(name: str) -> str:
    r"""`caf\udce9.png`, as our own tables write a file name that is no UTF-8, is that name again."""
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda found: chr(int(found[1], 16)), name)


def with_suffix(path: Path) -> Path:
    """`p2` is `p2.jpg`, if that is there: one file, one path, so that it cannot be in two splits. A name that has a
    picture's suffix is not looked for: there may be millions. Raises DataError where two pictures have the name: one
    may be the other's mask."""
    if path.suffix.lower() in IMAGE_SUFFIXES or (found := on_disk(path)) is None:
        return path
    there = (found.with_name(f"{path.name}{suffix}") for suffix in sorted(IMAGE_SUFFIXES))
    if other := next((p for p in there if p != found and p.is_file() and not are_copies(p, found)), None):
        raise DataError(f"{path}: is it {found.name} or {other.name}? Write the suffix, or take one away")
    return found


def on_disk(path: Path) -> Path | None:
    """The file of that name: it and its folders in another Unicode spelling or other capitals, as file systems differ,
    with an image's suffix, if the name has none, or with a blank for `%20`."""
    if os.path.isfile(path):
        return path
    if (folder := folder_on_disk(path.parent)) is None:
        return None
    path = folder / path.name
    there = spellings(str(folder), os.stat(folder).st_mtime_ns)
    names = [path.name]
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        names += [path.name + suffix for suffix in sorted(IMAGE_SUFFIXES)]
    if "%" in path.name and not {"/", "\0"} & set(plain_name := unquote(path.name)):
        names.append(plain_name)
    found = next((there[folded(name)] for name in names if there.get(folded(name))), None)
    return path.with_name(found) if found and os.path.isfile(path.with_name(found)) else None


def folder_on_disk(path: Path) -> Path | None:
    """The folder of that name, in whatever spelling."""
    try:
        if path.is_dir() or path.parent == path:
            return path
        if (above := folder_on_disk(path.parent)) is None:
            return None
        name = spellings(str(above), os.stat(above).st_mtime_ns).get(folded(path.name))
    except (OSError, ValueError):
        return None
    return above / name if name and (above / name).is_dir() else None


@lru_cache(1024)
def spellings(folder: str, changed: int) -> dict[str, str]:
    """The names in a folder by their folded spelling; of two that differ in capitals alone neither, as it may be
    either. `changed`: the folder's time, after which it is read again."""
    names = os.listdir(folder)
    several = Counter(map(folded, names))
    return {key: name for name in names if several[key := folded(name)] == 1}


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def inside(root: Path, name: str, where: str) -> Path:
    """`root / name`. Raises DataError if that lies outside of `root`, or outside the folder that holds it where `root`
    is the one for annotations (`../images/1.jpg`)."""
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name))
    if plain(os.path.basename(base)) in ANNOTATIONS and name.startswith("../"):
        base = os.path.dirname(base)
    if not path.startswith(os.path.join(base, "")):
        raise DataError(f"{where}: {name} lies outside {root}. If that is meant, say so with --image_root")
    return Path(path)


def image_in(turns: Any) -> str | None:
    """The one picture that a conversation names: `<img>1.jpg</img>`, or a part `{"image": "1.jpg"}`."""
    contents = [t.get("value", t.get("content")) for t in turns or () if isinstance(t, Mapping)]
    texts = [found for content in contents if isinstance(content, str) for found in _IMAGE.findall(content)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, Mapping)]
    named = texts + [part["image"] for part in parts if isinstance(part.get("image"), str)]
    return named[0] if len(named) == 1 else None


def table_rows(
    table: Iterable[tuple[str, Mapping[str, Any]]],
    root: Path,
    settings: DataSettings,
    notes: list[str],
    split: str | None = None,
    load: Callable[[int, str], bytes] | None = None,
    files: Files | None = None,
) -> Iterator[Picture]:
    """Rows of any table.

    Args:
        table: (where, row) pairs.
        root: the folder to which image paths are relative.
        settings: for the columns, and whether URLs may be followed.
        notes: what was guessed is added here.
        split: of all rows; else a column `split` is looked at.
        load: (number of the row, column) -> the bytes again, where the table holds images.
        files: finds the pictures of names, where several columns may name them.
    """
    table = iter(table)
    first = list(islice(table, PROBE))
    if not first:
        return
    sample = first_cells([row for _, row in first])
    turns = find_column([c for c in sample if c is not None], CONVERSATIONS)
    if turns and not find_column([*sample], IMAGE_COLUMNS) and image_in(sample[turns]):  # Qwen-VL
        rows = chain(first, table)
        table = ((where, {"image": image_in(row.get(turns)), **row}) for where, row in rows)
        first = list(islice(table, len(first)))
    image, names = pick_columns([row for _, row in first], settings, first[0][0], notes, files)
    joined = {name for name in names if plain(name) in LISTS_OF_CAPTIONS}
    if folder := folder_column([row for _, row in first], image, names, root):
        notes.append(f"{first[0][0]}: the images' folders are in column {folder[1]!r}")
    ids = id_column([c for c in sample if c is not None], image)
    log = {"url", "status", "errormessage"} <= {plain(c) for c in sample if c is not None}  # img2dataset's
    marks = Marks([image, *names], notes, [row for _, row in first])
    failed = 0
    paths: dict[str, tuple[str, Path]] = {}  # by what the cell says: five captions of an image, one path
    columns = {tuple(sample): names}  # of the captions, by all columns of a row, as objects may differ
    for number, (where, row) in enumerate(chain(first, table)):
        if log and plain(row.get("status")) != "success":
            failed += 1
            continue
        if marks.is_rejected(row, where):
            continue
        value = row.get(image)
        if (keys := tuple(row)) not in columns:
            new = [] if settings.caption_column else [c for c in keys if c is not None and c not in sample]
            columns[keys] = [*names, *caption_columns(new)]
        captions = tuple(c for name in columns[keys] for c in captions_of(row.get(name), where))
        if joined and len(captions) == 1:
            captions = tuple(part.strip() for caption in captions for part in caption.split("|"))
        in_split = agreed(marks.split(row, where), split, where)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0:  # 7, for 7.jpg
            value = str(int(value))
        if folder and isinstance(value, str) and not (is_empty(value) or re.search(r"[/\\]", value)):
            base, inner = folder[0], row.get(folder[1])
            value = value if is_empty(inner) else f"{base}{str(inner).strip()}/{value.strip()}"
        key = (ids[0], id_text(row.get(ids[1]))) if ids else ("", "")
        if isinstance(value, str) and value in paths:
            yield Picture(*paths[value], captions, where, in_split, key=key)
            continue
        if isinstance(value, str) and value[:1] == "[" and len(names_in := list_in(value.strip())) == 1:
            value = names_in[0]  # `['1.jpg']`
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        name = ""
        if isinstance(value, Mapping):  # {"bytes", "path"}, as `datasets` keeps an image
            name = PurePosixPath(str(value.get("path") or "").replace("\\", "/")).name
            value = value.get("bytes") or value.get(find_column([*value], IMAGE_COLUMNS) or "path")
        if value is None or value != value or (isinstance(value, str) and value.strip().casefold() in NULLS):
            yield Picture(f"{where}: no image in column {image}", no_image, captions, where, in_split)
        elif isinstance(value, bytes):
            assert load is not None
            digest = hashlib.sha256(value).hexdigest()[:16]
            yield Picture(digest, partial(load, number, image), captions, where, in_split, name=name, key=key)
        elif not isinstance(value, str):
            raise DataError(
                f"{where}: column {image} holds {type(value).__name__}; expected a path, a URL or bytes. "
                "--image_column names another column"
            )
        elif is_url(value):
            if not settings.allow_urls:
                raise DataError(
                    f"{where}: the image is a URL, {value}; --allow_urls downloads such images into a cache"
                )
            yield Picture(value.strip(), cached(value.strip()), captions, where, in_split, url=value.strip())
        elif re.match(r"\s*(?!file:)[a-z][a-z0-9]+:", value, re.IGNORECASE):
            raise DataError(
                f"{where}: {value[:200]}: only paths, http and https URLs are read. If the images are here, "
                "--image_column names a column with their paths"
            )
        else:
            paths[value] = image_path(root, value, where)
            yield Picture(*paths[value], captions, where, in_split, key=key)
    if failed:
        notes.append(f"{failed} images were not downloaded (status is not success); left out")
    marks.tell()


JOINED = "image's id in the other table"  # the column of it in rows of two tables


def id_column(columns: Sequence[str], image: str) -> tuple[str, str] | None:
    """(name, column) of the images' ids, beside the column of their files; no name where they are another table's."""
    if JOINED in columns:
        return "", JOINED
    found = ((name, find_column(columns, [name])) for name in ID_COLUMNS)
    return next(((name, column) for name, column in found if column not in (None, image)), None)


def id_text(value: Any) -> str:
    """7, 7.0 and `7` are one id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if is_empty(value) else str(value).strip()


def folder_column(
    rows: Sequence[Mapping[str, Any]], image: str, captions: Sequence[str], root: Path
) -> tuple[str, str] | None:
    """(what comes before, the column) where a column names the folder of each image, as `class` does beside
    `filename`: there all of these are, and in `root` none is."""
    cells = [row for row in rows if isinstance(row.get(image), str) and not is_url(row[image])]
    names = [row[image].strip() for row in cells]
    if not names or any("/" in name or "\\" in name or on_disk(root / name) for name in names):
        return None
    columns = [c for c in cells[0] if c is not None and c not in (image, *captions)]
    for base in ("", *(f"{path.name}/" for path in sorted(root.glob("*/")))):
        for column in columns:
            folders = ["" if row.get(column) is None else str(row[column]).strip() for row in cells]
            if all(re.fullmatch(r"[^/\\]+", f) and f not in (".", "..") for f in folders) and all(
                on_disk(root / f"{base}{f}" / name) for f, name in zip(folders, names, strict=True)
            ):
                return base, column
    return None


def no_image() -> bytes:
    """Stands for the image that a row does not name."""
    raise ImageError("no image")


def delimiter_of(header: str, suffix: str) -> str:
    """What separates the columns: that which gives columns we know, else the usual one, else the most frequent."""
    usual = "\t" if suffix == ".tsv" else ","
    several = sorted((d for d in ",;\t|" if d in header), key=lambda d: (d != usual, -header.count(d)))
    for delimiter in several:
        columns = [cell.strip().strip('"') for cell in header.split(delimiter)]
        if find_column(columns, IMAGE_COLUMNS) and len(columns) > 1:
            return delimiter
    return several[0] if several else usual


def header_of(path: Path) -> list[str]:
    """The cells of a table's first line."""
    with open(path, "rb") as file:
        line = file.readline(10_000) + b"\0" * bool(utf16_of(path))
    text = line.decode(utf16_of(path) or "utf-8", "replace").strip("\ufeff\0 \r\n")
    return text.split(delimiter_of(text, ".csv"))


def read_table(path: Path, strict: bool = True, notes: list[str] | None = None) -> Iterator[tuple[str, dict[Any, Any]]]:
    """("FILE, line N", row) of a CSV, TSV, JSONL or JSON file (a list of objects).

    Raises DataError for a bad row; if not `strict`, a row that cannot be read is `{None: REASON}`, and a CSV row with
    too many fields has those under None.
    """

    def bad(where: str, reason: str) -> tuple[str, dict[Any, Any]]:
        if strict:
            raise DataError(f"{where}: {reason}")
        return where, {None: reason}

    suffix = path.suffix.lower()
    if suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise DataError(f"{path}: expected a list of objects, or the JSON of COCO or Karpathy")
        yield from ((f"{path}, item {number}", row) for number, row in enumerate(content, 1))
        return
    encoding = encoding_of(path, notes) if strict else utf16_of(path) or "utf-8-sig"
    errors = "strict" if strict or encoding.startswith("utf-16") else "surrogateescape"
    with open(path, encoding=encoding, newline="", errors=errors) as file:
        if suffix != ".jsonl":
            yield from csv_rows(path, file, suffix, strict, bad)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = parse_json(line)
            except (ValueError, RecursionError) as error:
                yield bad(where, f"not valid JSON ({error})")
                continue
            yield (
                (where, row) if isinstance(row, dict) else bad(where, "expected an object, with file_name and caption")
            )


def csv_rows(
    path: Path, file: TextIO, suffix: str, strict: bool, bad: Callable[[str, str], tuple[str, dict[Any, Any]]]
) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Rows of a table with a header. A tab-separated one has no quoting (as CC3M's), but for whole cells."""
    before, head = 0, file.readline()
    while head and not head.strip(" \t\r\n,;|"):  # nothing before the header
        before, head = before + 1, file.readline()
    if told := re.fullmatch(r'"?sep=(.)"?\s*', head):  # Excel's own line
        before, head = before + 1, file.readline()
    delimiter = told[1] if told else delimiter_of(head, suffix)
    tabs, backslashed = delimiter == "\t", _BACKSLASHED.search(file.read(1 << 20)) is not None
    file.seek(0)
    for _ in range(before):
        file.readline()
    csv.field_size_limit(2**31 - 1)  # its 131,072 letters are few for an image in base64
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    lines = (line.replace('\\"', '""') for line in file) if backslashed and not tabs else file
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=strict)
    header: list[str] | None = None
    for line, end, cells in rejoined(numbered(reader, path, before)) if tabs else numbered(reader, path, before):
        where = f"{path}, line {line}"
        if not cells:
            continue
        if tabs:
            cells = [unquoted(cell) for cell in cells]
        if header is None:
            names = [cell.strip() for cell in cells]
            header = [f"{name}_{n + 1}" if (n := names[:i].count(name)) else name for i, name in enumerate(names)]
            continue
        if any("\n" in cell and swallowed(cell, cells, delimiter, len(header)) for cell in cells):
            yield bad(where, f"a quotation mark opens here and swallows rows up to {end}")
            continue
        while len(cells) > len(header) and not cells[-1].strip():  # Excel ends each line with separators
            cells.pop()
        row: dict[Any, Any] = dict(zip(header, cells))
        row |= dict.fromkeys(header[len(cells) :])
        if len(cells) > len(header):  # a comma in a caption without quotes would cut it
            if strict:
                raise DataError(
                    f"{where}: more fields than columns ({', '.join(header)}); put captions with {delimiter!r} in "
                    "quotes, without a blank before the first one"
                )
            row[None] = cells[len(header) :]
        yield where, row


def unquoted(cell: str) -> str:
    """A cell that is in quotation marks as a whole; `"a" and "b"` is not."""
    inner = cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner else cell


def numbered(reader: Any, path: Path, before: int) -> Iterator[tuple[int, int, list[str]]]:
    """(its first line, its last line, cells) of each row."""
    while True:
        line = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: a quotation mark opens here and is not closed ({error})") from error
        yield line, before + reader.line_num, cells


def rejoined(rows: Iterator[tuple[int, int, list[str]]]) -> Iterator[tuple[int, int, list[str]]]:
    """Tab-separated rows, where pandas and Excel put a text of several lines in quotes: a line whose last cell opens a
    quotation mark goes on in the next, if one of them has fewer cells than the header. Another such mark is a sign
    like others."""
    width, held = 0, None
    for line, end, cells in rows:
        width = width or len(cells)
        if held and len(held[2]) + len(cells) - 1 <= width and min(len(held[2]), len(cells)) < width:
            last, *others = cells or [""]
            line, cells = held[0], [*held[2][:-1], f"{held[2][-1]}\n{last}", *others]
        elif held:
            yield held
        held = (line, end, cells) if cells and cells[-1][:1] == '"' and cells[-1].count('"') % 2 else None
        if not held:
            yield line, end, cells
    if held:
        yield held


def swallowed(cell: str, cells: Sequence[str], delimiter: str, columns: int) -> bool:
    """Whether a cell of several lines has rows in it: an image's name in a line of its own, or a line whose first or
    last field is built like that of the row (`0017` like `0016`)."""
    if _SWALLOWED.search(cell):
        return True
    ends = [
        shape for text in (cells[0], cells[-1]) if text is not cell and re.search(r"[9/._-]", shape := shape_of(text))
    ]
    rows = [line.split(delimiter) for line in cell.splitlines()[1:]]
    return any(shape_of(row[i]) in ends for row in rows if len(row) >= columns for i in (0, -1))


def shape_of(text: str) -> str:
    """`img_0017.png` -> `a_9.a`: how a name is built."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", text.strip()))


def read_json(path: Path) -> Any:
    """A JSON file; or one of JSON lines that is called so, as a list."""
    try:
        text = path.read_text(encoding_of(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        with contextlib.suppress(ValueError, RecursionError):
            rows = [parse_json(line) for line in lines_of(text)]
            if rows and all(isinstance(row, dict) for row in rows):
                return rows
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def parse_json(text: str | bytes) -> Any:
    """What JSON holds. Raises ValueError, RepeatedKey among them, or RecursionError."""
    return json.loads(text, object_pairs_hook=without_repeats)


class RepeatedKey(ValueError):
    """A key that comes twice in an object of JSON."""


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises RepeatedKey for one that comes twice, of which Python would keep the last without a
    word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RepeatedKey(f"the key {twice!r} comes twice; several captions of an image are a list")
    return found
