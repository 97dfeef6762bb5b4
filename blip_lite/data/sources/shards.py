"""Local webdataset shards."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from blip_lite.data.dataset import Listing
from blip_lite.data.names import CAPTION_COLUMNS, split_of_name, split_of_path
from blip_lite.data.sources.marks import Marks, agreed
from blip_lite.data.sources.table import PROBE, RepeatedKey, captions_in, captions_told, parse_json
from blip_lite.errors import DataError
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture
from blip_lite.processing.text import has_words

TEXTS = ("caption", "txt", "text")  # of several, the first


def expand_braces(pattern: str) -> list[str]:
    """`a/{0000..0002}.tar` -> `a/0000.tar`, `a/0001.tar`, `a/0002.tar`."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [p for n in numbers for p in expand_braces(pattern[: found.start()] + n + pattern[found.end() :])]


def load_tars(pattern: str, columns: str | None = None) -> Listing:
    """Local webdataset shards. They are indexed, not streamed: so the order of an epoch is exact, every image comes
    once, and a run can continue in the middle of an epoch, with any number of workers. `columns`: of the captions, in
    the samples' JSON."""
    paths = [Path(p).expanduser() for p in expand_braces(pattern)]
    if missing := [p for p in paths if not p.is_file()]:
        raise DataError(f"--dataset {pattern}: {len(missing)} of {len(paths)} shards are missing, e.g. {missing[0]}")
    notes: list[str] = []
    name = Path(re.sub(r"\{.*?\}", "", pattern)).stem.strip("-_.") or paths[0].parent.name
    return Listing(name, tar_rows(paths, notes, columns=columns), notes)


def tar_rows(
    paths: Sequence[Path], notes: list[str], root: Path | None = None, columns: str | None = None
) -> Iterator[Picture]:
    """One row a sample: the files of one name up to the first dot, as webdataset has it. The split is what the shard's
    name says, or its folder's (`train-0000.tar`)."""
    lacking = used = several = 0
    found = shards(paths, root, columns)
    first = list(islice(found, PROBE))
    marks = Marks(CAPTION_COLUMNS, notes, [about for *_, about in first])
    for where, name, split, pieces, captions, about in chain(first, found):
        images = pictures_of(pieces)
        several += len(images) > 1
        if marks.is_rejected(about, where):
            continue
        if not images or not any(map(has_words, captions)):
            lacking += 1
            continue
        used += 1
        image = pieces[images[0]]
        yield Picture(
            hashlib.sha256(image()).hexdigest()[:16],
            image,
            tuple(c for c in captions if has_words(c)),
            where,
            agreed(marks.split(about, where), split, where) or split_of_path(PurePosixPath(name)),
            name=f"{name}.{images[0]}".removeprefix("./"),
        )
    if lacking and not used:
        raise DataError(
            f"{paths[0]}: none of its {lacking} samples has an image and a caption of one name, as in webdataset. "
            "If a folder is packed in it, unpack it and name the folder"
        )
    marks.tell()
    if several:
        notes.append(f"{several} samples hold several images; the first of each is taken")
    if lacking:
        notes.append(f"{lacking} samples have no image or no caption; left out")


Pieces = dict[str, Callable[[], bytes]]  # what reads each file of a sample, by its extension


def shards(
    paths: Iterable[Path], root: Path | None, columns: str | None
) -> Iterator[tuple[str, str, str | None, Pieces, list[str], Mapping[str, Any]]]:
    """(where, name, the shard's split, pieces, captions, what its JSON says) of each sample."""
    for path in paths:
        inner = PurePosixPath(os.path.relpath(path, root)) if root else PurePosixPath(path.parent.name, path.name)
        split = split_of_name(path.stem) or split_of_path(inner)
        try:
            for key, parts in samples(members(path)):
                pieces: Pieces = {ext: partial(read_piece, path, m.offset_data, m.size) for ext, m in parts.items()}
                yield f"{path}, {key}", key, split, pieces, *tar_captions(pieces, f"{path}, {key}", columns)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{path}: not a whole, uncompressed tar file ({error})") from error


def members(path: Path, strict: bool = False) -> Iterator[tarfile.TarInfo]:
    """What a tar holds, and what `cat` joined to it holds. Raises TarError for what is no whole tar, or a compressed
    one, whose files cannot be read in any order; if `strict`, also for what lies behind it and is none, a signature."""
    with open(path, "rb") as file:
        at: int | None = 0
        while at is not None:
            file.seek(at)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # else millions of them are kept
                    yield member
                if at and tar.offset == at:
                    raise tarfile.ReadError(f"what lies at byte {at} is damaged, or no tar")
                check_end(tar, path)
                at = behind_zeros(file, tar.offset)
            if at is not None and not strict:
                file.seek(at + 257)
                at = at if file.read(5) == b"ustar" else None


def behind_zeros(file: BinaryIO, at: int) -> int | None:
    """Where the first block of a tar is, from `at` on, that is not all zeros; None if there is none."""
    file.seek(at)
    while block := file.read(1 << 20):
        if rest := block.lstrip(b"\0"):
            return at + (len(block) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(block)
    return None


def samples(tar: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(name, its files by extension) in the order of the shard, whose files may stand in any. The name is what is
    before the first dot; where several pictures with a text share that, what is before the last one (`2026.01.jpg`).
    Where shards were joined, names come again: files that stand together stay so, and each has one picture."""
    found: list[tuple[str, str, dict[str, tarfile.TarInfo]]] = []
    of_name: dict[tuple[str, str], list[dict[str, tarfile.TarInfo]]] = {}
    for (folder, stem), run in runs(tar):
        known = of_name.setdefault((folder, stem), [])
        fits = (p for p in known if not p.keys() & run.keys() and not (pictures_of(p) and pictures_of(run)))
        if (parts := next(fits, None)) is not None:
            parts |= run
        else:
            known.append(run)
            found.append((folder, stem, run))
    for folder, stem, parts in found:
        for name, files in by_last_dot(stem, parts).items():
            yield f"{folder}/{name}", files


def runs(tar: Iterable[tarfile.TarInfo]) -> Iterator[tuple[tuple[str, str], dict[str, tarfile.TarInfo]]]:
    """((folder, name up to the first dot), files by extension) of files that stand together."""
    key, parts = ("", ""), dict[str, tarfile.TarInfo]()
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if not member.isfile() or not extension or name.startswith("."):
            continue
        if parts and ((folder, stem) != key or extension.lower() in parts):
            yield key, parts
            parts = {}
        key = folder, stem
        parts[extension.lower()] = member
    if parts:
        yield key, parts


def pictures_of(parts: Iterable[str]) -> list[str]:
    """The extensions of a sample that are those of pictures; before `depth.png` and the like, one that is only that."""
    found = [extension for extension in parts if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    return sorted(found, key=lambda extension: "." in extension)


def by_last_dot(stem: str, parts: dict[str, tarfile.TarInfo]) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The files of a sample; several samples, where several pictures have a text of their own. What a JSON without
    such a name says is said of all of them."""
    names: dict[str, dict[str, tarfile.TarInfo]] = {}
    for extension, member in parts.items():
        inner, _, kind = extension.rpartition(".")
        names.setdefault(f"{stem}.{inner}" if inner else stem, {})[kind] = member
    if sum(bool(pictures_of(files)) and bool({*TEXTS, "json"} & files.keys()) for files in names.values()) < 2:
        return {stem: parts}
    shared = {} if pictures_of(names.get(stem, ())) else names.pop(stem, {})
    return {name: {k: m for k, m in shared.items() if k == "json"} | files for name, files in names.items()}


def tar_captions(
    pieces: Mapping[str, Callable[[], bytes]], where: str, columns: str | None
) -> tuple[list[str], Mapping[str, Any]]:
    """(captions, what its `.json` says) of a sample. The captions are the lines of its `.caption`, `.txt` or `.text`,
    else they are in the `.json`; where `columns` are told, there. A key may have dots in it."""
    kinds = {extension.rpartition(".")[2]: piece for extension, piece in pieces.items()}
    named = [ext for ext in pieces if re.fullmatch(r"captions?\d*\.(?:txt|text|caption)|caption\d+", ext)]
    named = sorted(named, key=lambda ext: (len(ext), ext))  # `7.caption.txt` beside `7.tags.txt`; `7.caption1.txt`, ...
    texts = [pieces[ext] for ext in named] or [kinds[kind] for kind in TEXTS if kind in kinds][:1]
    texts = [] if columns and pictures_of(pieces) else texts
    about: Any = None
    try:
        lines = [line.strip() for text in texts for line in text().decode("utf-8-sig").splitlines()]
        captions = [line for line in lines if line]
        if "json" in kinds:
            try:
                about = parse_json(kinds["json"]())
            except (ValueError, RecursionError) as error:
                if not texts or isinstance(error, RepeatedKey):  # beside a text, it need not be JSON
                    raise
        if not texts:
            captions = (
                [*captions_told(about, columns, where)] if columns and pictures_of(pieces) else captions_in(about)
            )
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise DataError(f"{where}: its caption cannot be read ({error})") from error
    return captions, about if isinstance(about, Mapping) else {}


def check_end(tar: tarfile.TarFile, path: Path) -> None:
    """After its last member, a whole tar file has blocks of zeros. Raises tarfile.ReadError."""
    if path.stat().st_size < tar.offset + 512:
        raise tarfile.ReadError("it was cut short")


def read_piece(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
