"""What `caption` may be given -> pictures, one after another, none of them opened yet."""

from __future__ import annotations

import codecs
import glob
import io
import os
import stat
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlparse
from urllib.request import url2pathname

from blip_lite.data.names import IMAGE_COLUMNS, find_column
from blip_lite.data.sources.encoding import utf8, utf16_of
from blip_lite.data.sources.hub import parquet_columns, reading
from blip_lite.data.sources.shards import expand_braces, members, read_piece
from blip_lite.data.sources.table import read_table
from blip_lite.errors import ConfigError, ImageError
from blip_lite.processing.download import fetch_again, is_url
from blip_lite.processing.encoded import from_base64, is_base64
from blip_lite.processing.file_kinds import HEAD, begins_like_a_picture, begins_like_another_picture, head_of
from blip_lite.processing.images import IMAGE_SUFFIXES, OTHER_PICTURES, ImageInput
from blip_lite.processing.picture import Picture
from blip_lite.settings import TABLES

IGNORED = {"__macosx"}  # folders
ARCHIVES = {".tar": "name it to read the images in it"}
ARCHIVES |= dict.fromkeys((".zip", ".gz", ".tgz", ".rar", ".7z", ".bz2", ".tbz2", ".xz", ".txz", ".zst"), "unpack it")
# Files that lie beside pictures, maybe one each; others without one of the usual suffixes are looked into.
NO_PICTURES = {*TABLES, ".txt", ".caption", ".lock", ".tmp", ".npy", ".npz", ".pt", ".xml", ".yaml", ".html", ".md"}
UNUSUAL = "pictures by what they hold: give them a usual suffix, or name them"
BARE = "pictures without a suffix"  # of a kind that is not read
PIPES = "pipes or devices"
PATH_TABLES = tuple(suffix for suffix in TABLES if suffix != ".json")  # a JSON file is no list of images


def expand(
    arguments: Iterable[str],
    allow_urls: bool = False,
    image_column: str | None = None,
    passed_over: Counter[str] | None = None,
    empty: list[str] | None = None,
) -> Iterator[Picture]:
    """Images, in order; nothing is held but one folder's names, those that match a pattern, a row group of a Parquet
    file.

    Files as they are; folders as the images in them, recursively and in name order; a name with `*`, `?`, `[` or
    `{0..9}` that is no file as the files that a shell would make of it; `-`, `.txt` files and pipes as lists of one
    path or URL a line; `.csv`, `.tsv`, `.jsonl` and `.parquet` as tables with a column of paths (relative to the
    table), URLs or image bytes; `.tar` as webdataset shards.

    Args:
        arguments: as on the command line.
        allow_urls: whether http and https URLs are fetched.
        image_column: of tables; else one of the usual names.
        passed_over: files in folders that are no pictures or none that is read, counted by suffix here.
        empty: the arguments that gave no image, each with what it holds instead, are added here.

    Raises:
        ConfigError: a list or table that is not there, an argument that is a URL and was not allowed; and, before the
            first image, a table that cannot be read at all or has no column of images. After that, and of bad lines
            and images always, one that cannot be had stands for them: it raises when it is loaded.
    """
    arguments, images = list(arguments), 0
    passed_over = Counter() if passed_over is None else passed_over
    check(arguments, allow_urls)
    for argument in arguments:
        before, names = images, spelled_out(argument)
        pattern = argument not in names and glob.has_magic(argument)
        if pattern and not names:
            images += 1
            yield broken(argument, "no file matches this pattern")
        end = os.path.splitext(argument)[1]
        mixed = pattern and (glob.has_magic(end) or not end)  # `photos/*` is as the folder is
        for name in names:
            one_by_one = mixed and not os.path.isdir(name)
            found = (
                in_place(name, passed_over) if one_by_one else expand_one(name, allow_urls, image_column, passed_over)
            )
            try:
                for picture in found:
                    images += 1
                    yield picture
            except ValueError as error:  # of a table
                if not images:
                    raise
                images += 1
                yield broken(name, str(error).removeprefix(f"{name}: "))
        if images == before and empty is not None:
            empty.append(f"{argument} ({held_by(argument)})")


def check(arguments: Iterable[str], allow_urls: bool) -> None:
    """Raises ConfigError for what can be told of the arguments before the first image."""
    arguments = list(arguments)
    for argument in arguments:
        if is_url(argument) and not allow_urls:
            raise ConfigError(f"{argument}: a URL; --allow_urls fetches such images")
    for name in lists_in(arguments):
        suffix = Path(name).suffix.lower()
        if not os.path.exists(name):
            raise ConfigError(f"{name}: there is no such file")
        if suffix != ".txt" and is_pipe(name):
            raise ConfigError(f"{name}: a pipe, and a table is read more than once. Write it into a file")
        if suffix == ".parquet":
            import pyarrow  # noqa: F401  of an extra: missing, it is to be told before the first image


def spelled_out(argument: str) -> list[str]:
    """What a shell would make of an argument: of a pattern the names that match, of `{0..9}` each one, of `~` the home
    folder. A file may be called so."""
    if argument == "-" or is_url(argument) or os.path.lexists(argument):
        return [argument]
    there = glob.has_magic(argument) and glob.glob(argument, recursive=True)  # of a folder called `b {0..1}`, say
    names = [argument] if there else expand_braces(os.path.expanduser(argument))
    return [n for name in names for n in (sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name])]


def lists_in(arguments: Iterable[str]) -> list[str]:
    """The lists and tables that the arguments name."""
    named_so = [a for a in arguments if Path(a).suffix.lower() in {".txt", *PATH_TABLES} and not is_url(a)]
    return [name for argument in named_so for name in spelled_out(argument)]


def held_by(argument: str) -> str:
    """What an argument is that gave no image, and what to name instead."""
    names, suffix = spelled_out(argument), Path(argument).suffix.lower()
    if not names:
        return "a range that counts down: write the smaller number first"
    if os.path.isdir(argument):
        inside: Counter[str] = Counter()
        for _, folders, files in os.walk(argument, followlinks=False):
            folders[:] = [f for f in folders if not is_hidden(f)]
            inside.update(os.path.splitext(name)[1].lower() or "without a suffix" for name in files)
        read = next((kind for kind, _ in inside.most_common() if kind in (*PATH_TABLES, ".tar")), None)
        hint = f": name '{os.path.join(argument, '**', f'*{read}')}' to read those" if read else ""
        files_in = ", ".join(f"{n} {kind}" for kind, n in inside.most_common(3))
        return f"a folder with {files_in}{hint}" if files_in else "an empty folder"
    if argument not in names:
        return "no image in the files that match"
    kinds = {"": "nothing in it", ".txt": "a list without a line", ".tar": "a tar without an image"}
    return kinds.get(suffix, "a table with no row below its header" if suffix in PATH_TABLES else "nothing in it")


def without_texts(arguments: Iterable[str]) -> list[str]:
    """The arguments without the texts of other ones: a shell makes of `photos/*` each `1.txt` beside its `1.jpg`."""
    arguments = list(arguments)
    pictures = {os.path.splitext(a)[0] for a in arguments if Path(a).suffix.lower() in IMAGE_SUFFIXES}
    return [a for a in arguments if not (Path(a).suffix.lower() == ".txt" and os.path.splitext(a)[0] in pictures)]


def expand_one(name: str, allow_urls: bool, image_column: str | None, passed_over: Counter[str]) -> Iterator[Picture]:
    """`expand` of a single name, without patterns."""
    path, suffix = Path(name), Path(name).suffix.lower()
    if name == "-":
        yield from in_list(standard_input(), Path(), allow_urls, passed_over)
    elif os.path.isdir(name):
        yield from in_folder(name, passed_over)
    elif is_url(name):
        yield named(name, None, allow_urls)
    elif suffix == ".txt" or (is_pipe(name) and not suffix):  # `<(find ...)`
        try:
            with opened(path) as file:
                yield from in_list(file, path.parent, allow_urls, passed_over)
        except OSError as error:
            raise ConfigError(f"{name}: a list of paths that cannot be read ({error})") from error
    elif suffix == ".tar":
        yield from in_tar(name, passed_over)
    elif suffix in PATH_TABLES:
        rows = in_parquet(path, image_column) if suffix == ".parquet" else utf8(path, read_table(path, strict=False))
        yield from in_table(path, rows, image_column, allow_urls)
    else:
        yield named(name, None, False)


def in_folder(folder: str, passed_over: Counter[str]) -> Iterator[Picture]:
    """The images in a folder and the folders in it, linked ones once; a folder that cannot be read is one that fails.
    What is hidden, what a Mac keeps beside files, pipes and devices are passed over."""
    errors: list[OSError] = []
    been: set[str] = set()
    for path, folders, names in os.walk(folder, onerror=errors.append, followlinks=True):
        real = os.path.realpath(path)
        if real in been:  # a link that leads back
            folders.clear()
            continue
        been.add(real)
        folders[:] = sorted(f for f in folders if not is_hidden(f))
        for name in sorted(names):
            yield from in_place(os.path.join(path, name), passed_over)
    for error in errors:
        yield broken(str(error.filename), f"a folder that cannot be read ({error.strerror})")


def in_place(file: str, passed_over: Counter[str]) -> Iterator[Picture]:
    """A file of a folder, if it is a picture."""
    if is_picture(os.path.basename(file), partial(head_of, file), passed_over):
        if os.path.exists(file) and not os.path.isfile(file):
            passed_over[PIPES] += 1
        else:
            yield named(file, None, False)


def is_picture(name: str, head: Callable[[], bytes], passed_over: Counter[str]) -> bool:
    """Whether a file of a folder or a tar is a picture that is read. One that is none of these, but a picture or an
    archive, is counted.

    Args:
        name: of the file, without its folder.
        head: reads what it begins with, if it has none of the usual suffixes.
        passed_over: is counted into, by suffix.
    """
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("._") or suffix in NO_PICTURES:
        return False
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in OTHER_PICTURES or suffix in ARCHIVES:
        passed_over[suffix] += 1
        return False
    begins = head()
    if not suffix and begins_like_a_picture(begins):
        return True
    passed_over[suffix or BARE] += begins_like_a_picture(begins) or begins_like_another_picture(begins)
    return False


def is_hidden(folder: str) -> bool:
    """Whether a folder is passed over, by its name."""
    return (folder.startswith(".") and folder != "..") or folder.casefold() in IGNORED


def in_list(file: Iterable[str], folder: Path, allow_urls: bool, passed_over: Counter[str]) -> Iterator[Picture]:
    """The images of a list: paths from here or, where there is no such file, from the list's folder; URLs; folders."""
    for line in lines(file):
        picture = found_in((None, folder), line, allow_urls)
        if isinstance(picture.image, str) and os.path.isdir(picture.image):
            yield from in_folder(picture.image, passed_over)
        else:
            yield picture


def passed_over_text(passed_over: Counter[str]) -> str:
    """`3 .heic (...), 2 .jxl (...)`, or nothing."""
    hints = OTHER_PICTURES | ARCHIVES | {BARE: "convert them"}
    return ", ".join(
        f"{n} {suffix}" + (f" ({hint})" if (hint := hints.get(suffix, UNUSUAL if suffix[:1] == "." else "")) else "")
        for suffix, n in sorted(passed_over.items())
        if n
    )


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A list, in UTF-8 or UTF-16. It is opened once, as it may be a pipe; then UTF-16 needs a mark."""
    utf16 = None if is_pipe(path) else utf16_of(path)
    with open(path, "rb") as file:
        utf16 = utf16 or ("utf-16" if is_marked(file) else None)
        yield io.TextIOWrapper(file, utf16 or "utf-8", errors="replace" if utf16 else "surrogateescape")


def standard_input() -> Iterable[str]:
    """Its lines, in UTF-8 or in UTF-16 with a mark."""
    raw = getattr(sys.stdin, "buffer", None)
    return io.TextIOWrapper(raw, "utf-16", errors="replace") if raw is not None and is_marked(raw) else sys.stdin


def is_marked(file: io.BufferedReader) -> bool:
    """Whether a file that is not read yet begins with a mark of UTF-16."""
    return file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def lines(file: Iterable[str]) -> Iterator[str]:
    """Paths of a list: without a mark at the beginning, and without quotes and blanks around them where no file has
    those in its name."""
    for number, line in enumerate(pieces(file)):
        line = line if number else line.removeprefix("\ufeff")
        bare = line.strip().strip("\"'").strip()
        if bare and bare != line and not os.path.exists(line):
            line = bare
        if bare:
            yield line


def pieces(file: Iterable[str]) -> Iterator[str]:
    """The lines of a list; of `find -print0`, in which names may hold a line's end, what lies between its zeros."""
    rest = ""
    for line in file:
        if rest or "\0" in line:
            *whole, rest = (rest + line).split("\0")
            yield from whole
        else:
            yield line.rstrip("\r\n")
    yield rest


def is_pipe(name: str | Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(name).st_mode)
    except (OSError, ValueError):  # not there; no name that a file can have
        return False


def named(name: str, folder: Path | None, allow_urls: bool) -> Picture:
    """An image by its path, relative to `folder`, or by its URL. `~` and `file://` are understood where no file is
    called so."""
    if is_url(name):
        return (
            Picture(name, partial(fetch_again, name)) if allow_urls else broken(name, "a URL; --allow_urls fetches it")
        )
    if name.startswith(("~", "file://")) and not os.path.lexists(os.path.join(folder or "", name)):
        name = url2pathname(urlparse(name).path) if name.startswith("file://") else os.path.expanduser(name)
    if "\\" in name and os.sep == "/" and not os.path.exists(os.path.join(folder or "", name)):  # written on Windows
        name = name.replace("\\", "/")
    path = os.path.join(folder, name) if folder else name
    if ".." not in path.split("/"):  # behind a link, `..` is elsewhere
        path = os.path.normpath(path)
    return Picture(path, path)


def found_in(folders: tuple[Path | None, Path | None], name: str, allow_urls: bool) -> Picture:
    """`named` in the first of two folders or, where it is in the second alone, there."""
    first = named(name, folders[0], allow_urls)
    if not isinstance(first.image, str) or os.path.lexists(first.image):
        return first
    second = named(name, folders[1], allow_urls)
    return second if os.path.lexists(str(second.image)) else first


def identity(name: str) -> str:
    """`p.jpg`, `./p.jpg` and `/here/p.jpg` are one image."""
    if is_url(name):
        return name
    folder, file = os.path.split(name)
    return os.path.join(os.path.realpath(folder), file) if ".." in name.split("/") else os.path.abspath(name)


def broken(name: str, reason: str) -> Picture:
    """An image that cannot be had."""

    def fail() -> ImageInput:
        raise ImageError(reason)

    return Picture(name, fail)


def in_table(
    path: Path, rows: Iterable[tuple[str, dict[Any, Any]]], image_column: str | None, allow_urls: bool
) -> Iterator[Picture]:
    """The images of a table's rows; those that hold bytes are named by file and row."""
    column = None
    for where, row in rows:
        if set(row) == {None}:
            yield broken(where, row[None])
            continue
        column = column or pick(list(row), image_column, str(path))
        value = row.get(column)
        if isinstance(value, dict):  # {"bytes", "path"}, as `datasets` keeps an image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            yield Picture(where, value)
        elif isinstance(value, str) and is_base64(value):
            yield Picture(where, partial(from_base64, value))
        elif isinstance(value, str) and value.strip():
            yield found_in((path.parent, None), value, allow_urls)  # our own tables name paths as the command did
        else:
            yield broken(where, f"no image in column {column}")


def pick(columns: list[str], image_column: str | None, where: str) -> str:
    """The column of the images of a table. Raises ConfigError if there is none, and for a CSV without a header."""
    columns = [c for c in columns if c is not None]
    column = find_column(columns, [image_column] if image_column else IMAGE_COLUMNS)
    pictures = [c for c in columns if is_url(c) or Path(c.strip()).suffix.lower() in IMAGE_SUFFIXES]
    if pictures and Path(where).suffix.lower() in (".csv", ".tsv") and (column is None or column in pictures):
        what = (
            "`image` before it, or rename it to .txt"
            if len(columns) == 1
            else "of names before it, `image` above the pictures"
        )
        raise ConfigError(f"{where}: has no header, its first line names {pictures[0].strip()}. Put a line {what}")
    if column is None:
        there = ", ".join(columns)
        raise ConfigError(
            f"{where}: no column {image_column or 'image'}; there are: {there}. Name it with --image_column"
        )
    return column


def in_parquet(path: Path, image_column: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE, row N", {column: value}) of the column with images."""
    import pyarrow.parquet

    column, number = pick(parquet_columns(path), image_column, str(path)), 0
    with reading(path), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(16, columns=[column]):
            for row in batch.to_pylist():
                yield f"{path}, row {number}", row
                number += 1


def in_tar(shard: str, passed_over: Counter[str]) -> Iterator[Picture]:
    """The images of a shard, each named by shard and file, as those of a folder. Of joined shards, names come again:
    those are pictures of their own. What is wrong with the shard is one image that cannot be had, so that the other
    shards follow."""
    path = Path(shard)
    pieces: dict[str, tuple[int, int]] = {}  # where each picture lies
    links: dict[str, str] = {}
    early: list[str] = []  # links that come before their pictures
    times: Counter[str] = Counter()

    def found(name: str, piece: tuple[int, int] | str) -> Iterator[Picture]:
        """A file of the shard, if it is a picture; where it lies, or why it cannot be had."""
        head = bytes if isinstance(piece, str) else partial(read_piece, path, piece[0], min(piece[1], HEAD))
        if not is_picture(os.path.basename(name), head, passed_over):
            return
        key = os.path.normpath(name)
        times[key] += 1
        image_id = f"{shard}/{name}" + (f", number {times[key]} of this name" if times[key] > 1 else "")
        if isinstance(piece, str):
            yield broken(image_id, piece)
        else:
            pieces[key] = piece
            yield Picture(image_id, partial(read_piece, path, *piece))

    try:
        for member in members(path, strict=True):
            name = os.path.normpath(member.name)
            if any(map(is_hidden, name.split("/")[:-1])):
                continue
            if member.issparse():  # its bytes do not lie in one piece
                yield from found(member.name, "a sparse file in a tar: unpack it")
            elif member.isfile():
                links.pop(name, None)
                yield from found(member.name, (member.offset_data, member.size))
            elif member.islnk() or member.issym():  # a second name of a file
                folder = os.path.dirname(name) if member.issym() else ""
                links[name] = os.path.normpath(os.path.join(folder, member.linkname))
                if (target := end_of(name, links)) in pieces:
                    yield from found(member.name, pieces[target])
                else:
                    early.append(member.name)
            elif not member.isdir():
                passed_over[PIPES] += os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        for name in early:
            target = end_of(os.path.normpath(name), links)
            reason = f"a link to {target}, which is no picture of this tar: unpack it"
            yield from found(name, pieces.get(target, reason))
    except (tarfile.TarError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield broken(shard, f"not a whole, uncompressed tar file ({reason})")


def end_of(name: str, links: Mapping[str, str]) -> str:
    """What a link leads to in the end; links that lead in a circle lead to one of themselves."""
    been: set[str] = set()
    while name in links and name not in been:
        been.add(name)
        name = links[name]
    return name


def count(arguments: Iterable[str], image_column: str | None = None) -> int | None:
    """How many images there are, where that can be told without reading them all; for the time left."""
    arguments = list(arguments)
    if any(a == "-" or Path(a).suffix.lower() == ".parquet" or is_pipe(a) for a in arguments):
        return None
    try:
        return sum(1 for _ in expand(arguments, True, image_column))
    except ValueError:
        return None
