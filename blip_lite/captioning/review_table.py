"""`reviewed.csv`: decisions -> rows that `train` takes, and back, as a person may edit them in a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from blip_lite.data.names import find_column
from blip_lite.data.sources.encoding import utf8
from blip_lite.data.sources.marks import is_true
from blip_lite.data.sources.table import captions_in, on_disk, read_table, unescaped
from blip_lite.errors import DataError
from blip_lite.processing.download import is_url
from blip_lite.processing.text import has_words

STATUSES = ("approved", "rejected", "")  # "": a decision that was undone
COLUMNS = ("image", "caption", "is_rejected", "machine_caption")
FORMULA_ERRORS = {"#name?", "#ref!", "#value!", "#div/0!", "#num!", "#null!", "#spill!"}  # of a spreadsheet
MISREAD = (("utf-8", "cp1252"), ("cp1252", "cp1252"), ("mac_roman", "cp1252"))  # (as written, as read)


@dataclass
class Decision:
    """What a person said of a picture.

    Attributes:
        place: where the picture lies: its absolute path, or its URL.
        status: one of `STATUSES`.
        captions: one a row.
        machine: the captions of the model.
        more: of each row, the cells of columns that a person added to the table.
    """

    place: str
    status: str
    captions: list[str]
    machine: list[str]
    more: list[dict[str, str]] = field(default_factory=list)

    def rows(self) -> list[dict[str, str]]:
        """Its rows, without the image; one at least, as a picture without a caption can be rejected."""
        said, rejected = " | ".join(self.machine), str(self.status == "rejected").lower()
        rows = [dict(zip(COLUMNS[1:], (caption, rejected, said))) for caption in self.captions or [""]]
        return [{**row, **(self.more[i] if i < len(self.more) else {})} for i, row in enumerate(rows)]


def image_root(places: Iterable[str], folder: Path) -> str | None:
    """The folder that `--image_root` is to name: none where all files lie in `folder`."""
    base = os.path.abspath(folder)
    files = [place for place in places if not is_url(place)]
    if all(place.startswith(os.path.join(base, "")) for place in files):
        return None
    return os.path.commonpath([os.path.dirname(place) for place in files])


def names_in_table(places: Sequence[str], folder: Path) -> list[str]:
    """What a table in `folder` calls images, so that `train` finds them: all by relative paths, or, where one of them
    lies elsewhere, by absolute ones. What a reader would take for something else (`C:`, a blank, a formula) gets `./`.
    """
    if image_root(places, folder) is not None:
        return list(places)
    base = os.path.abspath(folder)
    names = [place if is_url(place) else Path(os.path.relpath(place, base)).as_posix() for place in places]
    return [name if is_url(name) or re.fullmatch(r"[^\W_][\w. /-]*\w", name) else f"./{name}" for name in names]


def one_line(text: str) -> str:
    """A caption without line breaks and what else no line of text holds."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip().encode("utf-8", "replace").decode()


def wrong_with(captions: Sequence[str]) -> str | None:
    """Why a data set could not be read back with these captions; None if it can."""
    if not captions:
        return "an approved picture needs a caption"
    for caption in captions:
        if not has_words(caption):
            return f"{caption!r} has no letter and no digit"
        try:
            read = captions_in(caption)
        except ValueError as error:
            return f"a table cannot read {caption!r} ({error})"
        if read != [caption]:
            return f"a table reads {caption!r} as empty, or as a list"
    return None


def table_of(decisions: Sequence[Decision], folder: Path, added: Iterable[str] = ()) -> bytes:
    """The table, in `folder`, of decisions that hold: names that are no UTF-8 with `\\udc..`, as `train` reads them.

    Args:
        added: columns that a person added, even if all their cells are empty.
    """
    more = dict.fromkeys([*added, *(column for one in decisions for cells in one.more for column in cells)])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *more], restval="")
    writer.writeheader()
    for name, one in zip(names_in_table([one.place for one in decisions], folder), decisions, strict=True):
        writer.writerows({"image": name, **row} for row in one.rows())
    return text.getvalue().encode("utf-8", "backslashreplace")


def read_edited(
    path: Path, decided: Mapping[str, Decision], machine: Mapping[str, list[str]]
) -> tuple[list[Decision], list[str]]:
    """What a person changed in the table, whatever the order of rows and columns, the separator and the encoding.

    Args:
        path: of the table.
        decided: what it held when it was written, by place.
        machine: captions of the model, by place.

    Returns:
        The decisions that are not those of `decided`; one whose rows are gone is undone. And the columns that are not
        ours.

    Raises:
        DataError: what could mean several things, with its line and what to do.
    """
    rows = [(where, row) for where, row in utf8(path, read_table(path)) if any(map(text_in, row.values()))]
    if decided and not rows:
        raise DataError(
            f"{path}: has no rows any more. Delete it, to have them again; to begin anew, move its journal away, too"
        )
    there = list(rows[0][1]) if rows else list(COLUMNS)
    image, caption, judged, said = columns_of(path, there)
    if judged is None and any(one.status == "rejected" for one in decided.values()):
        raise DataError(f"{path}: no column is_rejected, but some pictures were rejected. Put it back")
    ours = dict(zip(names_in_table(list(decided), path.parent), decided))
    found, first = dict[str, Decision](), dict[str, str]()
    for where, row in rows:
        name, text = text_in(row.pop(image)), one_line(text_in(row.pop(caption)))
        status = "rejected" if judged and is_true(row.pop(judged), judged, where) else "approved"
        said_here = text_in(row.pop(said)) if said else ""
        place = ours.get(name) or place_in(name, path.parent, where)
        old = decided.get(place)
        if old and said_here not in ("", " | ".join(old.machine)):
            raise DataError(
                f"{where}: machine_caption is what the model had said, {' | '.join(old.machine)!r}. Put it back; "
                "corrections go into the column caption"
            )
        captions = list(filter(None, [text]))
        if reason := (old and damage(text, old.captions)) or (status == "approved" and wrong_with(captions)):
            raise DataError(f"{where}: {reason}. Mend the caption, or delete the row")
        if row.get(""):
            raise DataError(f"{where}: {row['']!r} stands in a column without a name. Name it, or empty the cell")
        machine_said = old.machine if old else machine.get(place) or list(filter(None, [said_here]))
        new = found.setdefault(place, Decision(place, status, [], machine_said))
        first.setdefault(place, where)
        if new.status != status:
            raise DataError(f"{where}: {name} is {status} here and {new.status} in {first[place]}. Delete one of them")
        new.captions += captions
        new.more.append({column: theirs for column, cell in row.items() if (theirs := text_in(cell))})
    changed = [one for place, one in found.items() if place not in decided or decided[place].rows() != one.rows()]
    gone = [replace(one, status="", captions=one.machine) for place, one in decided.items() if place not in found]
    return changed + gone, [column for column in there if column not in ("", image, caption, judged, said)]


def text_in(cell: str | None) -> str:
    return (cell or "").strip()


def columns_of(path: Path, columns: list[str]) -> tuple[str, str, str | None, str | None]:
    """What the table calls `COLUMNS`. Raises DataError where the image or the caption is missing."""
    image, caption, judged, said = (find_column(columns, [name]) for name in COLUMNS)
    if image is None or caption is None:
        missing = "image" if image is None else "caption"
        raise DataError(f"{path}: no column {missing}; there are: {', '.join(columns)}. Put it back")
    return image, caption, judged, said


def place_in(name: str, folder: Path, where: str) -> str:
    """Where the picture lies that a row names. Raises DataError if there is none."""
    if is_url(name):
        return name
    path = Path(os.path.normpath(os.path.join(os.path.abspath(folder), unescaped(name))))
    if not name or not (there := on_disk(path)):
        raise DataError(
            f"{where}: there is no picture {name!r} in {folder.resolve()}. Mend the name, or delete the row"
        )
    return str(there)


def damage(text: str, before: Sequence[str]) -> str:
    """What a spreadsheet has made of a caption that was one of `before`; "" if that cannot be told."""
    if text.casefold() in FORMULA_ERRORS:
        return f"the spreadsheet took a caption for a formula, and made it {text!r}"
    for old in before if text not in before else ():
        if old.startswith(("=", "+", "-", "@")) and re.fullmatch(r"-?[\d.,]+", text):
            return f"the spreadsheet took {old!r} for a formula, and made it {text!r}"
        for written, read in MISREAD:
            misread = old.encode(written, "replace").decode(read, "surrogateescape")  # some bytes are no letters
            if text == one_line(re.sub(r"[\udc80-\udcff]", " ", misread)):
                return f"the spreadsheet made {text!r} of {old!r}; it must open and save the table as UTF-8"
    return ""
