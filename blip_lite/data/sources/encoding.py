"""In what a file's text is written."""

from __future__ import annotations

import codecs
import contextlib
import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from blip_lite.errors import DataError
from blip_lite.processing.file_kinds import kind_of

T = TypeVar("T")

CP1252_SIGNS = "‘’“”«»¿¡–—…€£°½¼·´\xa0"  # that people write


def encoding_of(path: Path, notes: list[str] | None = None) -> str:
    """UTF-8, with or without a mark, UTF-16 with one, or Windows' cp1252 if that makes words. Raises DataError."""
    if utf16 := utf16_of(path):
        return utf16
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with open(path, "rb") as file:
        head = file.read(1024)
        if head.startswith((b"<", b"version https://git-lfs")) and (kind := kind_of(head)):
            raise DataError(f"{path}: {kind}; a table is expected")
        file.seek(0)
        try:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
            return "utf-8-sig"
        except UnicodeDecodeError as error:
            reason = error
        file.seek(0)
        odd = b"".join(re.findall(rb"[^\n]*[\x80-\xff][^\n]*", file.read(1 << 24)))
    with contextlib.suppress(UnicodeDecodeError):
        text = odd.decode("cp1252")
        signs = [c for c in text if ord(c) > 127]
        # Another 8-bit writing (Shift-JIS, KOI8) would give many signs, few of them letters between letters; that of
        # old Macs gives capitals in words.
        if (
            not re.search(r"[a-z][ŠŒŽŸÀ-ÖØ-Þ]", text)
            and len(signs) < 0.1 * len(text)
            and all(c.isalpha() or c in CP1252_SIGNS for c in signs)
        ):
            if notes is not None:
                words = list(dict.fromkeys(re.findall(r"\w*[^\x00-\x7f]\w*", text)))[:3]  # cp1250's would look odd
                notes.append(
                    f"{path.name} is not UTF-8; read as Windows' cp1252 ({', '.join(words)}). If that reads wrong, "
                    "save it as UTF-8"
                )
            return "cp1252"
    raise DataError(f"{path}: " + (kind_of(head) or f"cannot be read ({reason}); save it as UTF-8"))


def utf16_of(path: Path) -> str | None:
    """Python's name of the kind of UTF-16 that a file is in: with a mark, or without one, as every second byte of
    Latin letters is 0 then. None if it is in none."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise DataError(f"{path}: cannot be read (it is UTF-32); save it as UTF-8")
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    for name, zeros, others in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if len(zeros) > 3 and zeros.count(0) > 0.4 * len(zeros) and others.count(0) < 0.1 * len(others):
            return name
    return None


def utf8(path: Path, rows: Iterator[T]) -> Iterator[T]:
    """The rows; what the file's text is at fault for becomes a DataError."""
    try:
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8") from error
