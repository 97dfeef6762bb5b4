"""What a row says of itself besides its image and its captions: its split, and that somebody rejected it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from blip_lite.data.names import (
    BAD,
    GOOD,
    MAYBE_SPLIT_COLUMNS,
    REJECTED,
    SPLIT_COLUMNS,
    SPLIT_WORDS,
    find_column,
    is_about_verdicts,
    may_be_about_splits,
    may_be_usable,
    plain,
    split_of_flag,
    split_of_name,
    verdict_of_flag,
    words_in,
)
from blip_lite.errors import DataError
from blip_lite.processing.text import NULLS

SplitReader = Callable[[Mapping[str, Any], str], str | None]
RejectedReader = Callable[[Mapping[str, Any], str], str | None]


class Marks:
    """What rows say of themselves: their split, and that somebody rejected them. A column tells it by its name
    (`split`, `is_test`, `rejected`), or by what the first rows hold in it (`train`, `rejected`).

    Args:
        taken: the columns of the image and the captions.
        notes: what is no plain `split` is told here.
        first: the first rows.
    """

    def __init__(self, taken: Collection[str], notes: list[str], first: Iterable[Mapping[str, Any]] = ()) -> None:
        self.taken, self.notes, self.rejected = taken, notes, Counter[str]()
        self.said: dict[str, list[Any]] = {}
        for row in first:
            for column, value in row.items():
                if not is_empty(value):
                    self.said.setdefault(column, []).append(value)
        self.readers: dict[tuple[str, ...], tuple[SplitReader, RejectedReader]] = {}
        self.doubtful: dict[str, Doubt] = {}

    def of(self, row: Mapping[str, Any], where: str) -> tuple[SplitReader, RejectedReader]:
        """What reads rows that have the columns of this one."""
        keys = tuple(row)
        if keys not in self.readers:
            columns = [key for key in keys if key is not None and key not in self.taken]
            said = {c: self.said.get(c) or [v for v in [row[c]] if not is_empty(v)] for c in columns}
            flags = self.flags_of(said, where)
            about_splits = {c: values for c, values in said.items() if not judges(c, values)}
            about_verdicts = {c: values for c, values in said.items() if c not in flags}
            readers = split_reader(about_splits, flags, self.notes), rejected_reader(about_verdicts, self.notes)
            self.readers[keys] = readers
        return self.readers[keys]

    def flags_of(self, said: Mapping[str, Sequence[Any]], where: str) -> dict[str, str]:
        """The columns of yes and no that are about splits. One called `valid` is about the validation part beside
        another one about splits, or where few rows have it and it is `is_valid`, as fastai writes it; about what can
        be used where another column names the splits, or most rows have it. Raises DataError for what is neither."""
        columns = [c for c in said if may_be_usable(c) and said[c] and all(map(is_flag, said[c]))]
        flags = split_flags({c: values for c, values in said.items() if c in columns or not judges(c, values)})
        if not columns or flags.keys() - {*columns}:
            return flags
        others = [c for c in said if c not in columns]
        if find_column(others, SPLIT_COLUMNS) or any(holds_splits(said[c]) for c in others):
            return {}
        for column in columns:
            if column not in self.doubtful:
                first = Doubt(where, sum(map(is_yes, said[column])), len(said[column]))
                self.doubtful[column] = Doubt(where, usable=plain(column) != "isvalid" or first.settle(column))
        return {c: "validation" for c in columns if not self.doubtful[c].usable}

    def split(self, row: Mapping[str, Any], where: str) -> str | None:
        return self.of(row, where)[0](row, where)

    def is_rejected(self, row: Mapping[str, Any], where: str) -> bool:
        """Whether somebody rejected the row: VizWiz's judges, a label tool, `blip-lite review`."""
        reason = self.of(row, where)[1](row, where)
        self.rejected.update([reason] if reason else [])
        for column, doubt in self.doubtful.items():
            doubt.rows += column in row
            doubt.yes += is_yes(row.get(column))
        return reason is not None

    def tell(self) -> None:
        """The note of the rejected rows. Raises DataError where all rows say otherwise of a column `valid` than the
        first ones did."""
        for column, doubt in self.doubtful.items():
            doubt.settle(column)
        for column, count in sorted(self.rejected.items()):
            self.notes.append(f"column {column!r}: {count} captions are marked as rejected; left out")


@dataclass
class Doubt:
    """How many of the `rows` from `where` on have a yes in a column `valid`; `usable`, what it was taken for."""

    where: str
    yes: int = 0
    rows: int = 0
    usable: bool | None = None

    def settle(self, column: str) -> bool:
        """Whether most have it, so that it is about what can be used. Raises DataError where it is neither that nor
        like a validation part, or not what it was taken for."""
        usable = 3 * self.yes >= 2 * self.rows
        few = 3 * self.yes <= self.rows and plain(column) == "isvalid"
        if not (usable or few) or self.usable not in (None, usable):
            raise DataError(
                f"{self.where}: column {column!r} says yes of {self.yes} of {self.rows} rows: are they the validation "
                "part, or rows that can be used? Call it `is_validation`, or `is_usable`"
            )
        return usable


def split_flags(said: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """The columns of yes and no that are about splits: `is_test`, and `train` beside `val`."""
    called = {c: split for c in said if (split := split_of_flag(c))}
    named = {c: split for c in said if all(map(is_flag, said[c])) and (split := split_of_name(c, strict=True))}
    found = {**named, **called}
    return found if called or {"train", "test"} & {*found.values()} else {}  # `val` alone may be a value


def judges(column: str, values: Iterable[Any]) -> bool:
    """Whether a column of yes and no says whether a caption is to be used: `is_rejected`, `valid_caption`."""
    return verdict_of_flag(column) is not None and all(map(is_flag, values))


def split_reader(said: Mapping[str, Sequence[Any]], flags: Mapping[str, str], notes: list[str]) -> SplitReader:
    """What tells the split of a row: a column called so, flags (`is_test`), a column of any name that holds names of
    splits, or one whose name may be about splits (`subset`).

    Args:
        said: the columns, with what the first rows hold in each.
        flags: of them, those that `split_flags` found.
        notes: what is no plain `split` is told here.
    """
    columns = [*said]
    if named := find_column(columns, SPLIT_COLUMNS):
        return lambda row, where: split_in(row[named], where)
    if flags:
        tell(notes, f"splits are in column {', '.join(map(repr, flags))}")
        return lambda row, where: flagged(flags, row, where)
    if held := next((c for c in columns if holds_splits(said[c])), None):
        tell(notes, f"splits are in column {held!r}")
        return lambda row, where: split_in(row[held], f"{where}, column {held!r}")
    forms = {c: form for c in columns if (form := form_of_all(said[c]))}
    for column in forms:
        if len({split_of_name(value) for value in said[column]}) > 1:
            tell(notes, f"splits are in column {column!r}, as {said[column][0]!r}")
            return lambda row, where: split_in(row[column], f"{where}, column {column!r}")
    maybe = find_column(columns, MAYBE_SPLIT_COLUMNS)
    odd = maybe or next(filter(may_be_about_splits, columns), None)
    if odd and odd not in forms:
        tell(
            notes,
            f"column {odd!r} holds {next(iter(said[odd]), '')!r}, which names no split (train, validation or test)",
        )
    return lambda row, where: split_of_name(str(row[maybe])) if maybe else no_late_test(row, columns, where, forms)


def tell(notes: list[str], note: str) -> None:
    notes += [note] if note not in notes else []


def holds_splits(values: Iterable[Any]) -> bool:
    """Whether a column's first cells name splits: a test, or at least every second of what they say. Among buses and
    cars, a train is none."""
    said = {value: split_of_name(value[:40], strict=True) for value in values if isinstance(value, str)}
    return "test" in said.values() or 0 < len(said) <= 2 * sum(map(bool, said.values()))


def form_of_all(values: Sequence[Any]) -> str | None:
    """What a column's first cells have in common, if all name a split and differ in that alone: `birds *` of
    `birds_train` and `birds_test`, as the names of folders may. None of others."""
    forms = {form_of(value) for value in values}
    return forms.pop() if len(forms) == 1 else None


def form_of(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > 40 or " " in value or not split_of_name(value):  # a steam train
        return None
    words = [re.sub(r"\d+", "", word) or word for word in words_in(value)]
    return " ".join("*" if word in SPLIT_WORDS else word for word in words) if {*words} & SPLIT_WORDS.keys() else None


def no_late_test(row: Mapping[str, Any], columns: Iterable[str], where: str, forms: Mapping[str, str]) -> None:
    """Raises DataError for a cell that says test in a column that held no split in the first rows, or one only."""
    for column in columns:
        late = column in forms and form_of(row[column]) == forms[column] and split_of_name(row[column]) == "test"
        if late or lone_word(row[column]) == "test":
            raise DataError(
                f"{where}: column {column!r} says {row[column]!r}, but no split in the rows before. If it names "
                "splits, call it `split`; else take it out"
            )


def lone_word(cell: Any) -> str | None:
    """`test` or `rejected`, if that is all that a cell of any column says. Asked of every cell, so what is none of
    these is told first by what costs little: they are short, and end in no digit."""
    if not isinstance(cell, str) or not 0 < len(cell) < 12 or cell[-1].isdecimal():
        return None
    return known_word(cell)


@lru_cache(10_000)
def known_word(text: str) -> str | None:
    if SPLIT_WORDS.get(text.strip().casefold()) == "test":
        return "test"
    return "rejected" if plain(text) in REJECTED else None


def rejected_reader(said: Mapping[str, Sequence[Any]], notes: list[str]) -> RejectedReader:
    """What tells the column that rejects a row: a flag (`is_rejected`, `approved`), a verdict (`quality`, where all
    first rows say good or bad), or a cell of any column that says `rejected`, as label tools have a `status` or an
    `answer`.

    Args:
        said: the columns, with what the first rows hold in each.
        notes: verdicts that are not understood are told here.
    """
    flags = {c: verdict_of_flag(c) for c in said if plain(c).startswith("is") or all(map(is_flag, said[c]))}
    flags = {column: verdict for column, verdict in flags.items() if verdict is not None}
    verdicts = {c for c in said if c not in flags and is_about_verdicts(c) and are_verdicts(c, said[c], notes)}

    def rejected(row: Mapping[str, Any], where: str) -> str | None:
        for column in said:
            if column in flags:
                if is_true(row[column], column, where) != flags[column]:
                    return column
            elif column in verdicts:
                if is_bad(row[column], column, where):
                    return column
            elif lone_word(row[column]) == "rejected":
                return column
        return None

    return rejected


def are_verdicts(column: str, values: Sequence[Any], notes: list[str]) -> bool:
    """Whether all of a column's first cells say good or bad. A note where only some do, and one is bad."""
    words = {plain(value): value for value in values}
    odd = [value for word, value in words.items() if word not in BAD and word not in GOOD]
    bad = [value for word, value in words.items() if word in BAD - REJECTED]
    if odd and bad:
        tell(notes, f"column {column!r} says {bad[0]!r}, but also {odd[0]!r}; nothing is left out for {bad[0]!r}")
    return bool(words) and not odd


def is_bad(value: Any, column: str, where: str) -> bool:
    """Whether a verdict is against a caption; an empty one is not. Raises DataError for what is not understood."""
    word = plain(value)
    if not (word in BAD or word in GOOD or is_empty(value)):
        raise DataError(
            f"{where}: column {column!r} says {value!r}, where the rows before say good or bad. Mend the cell, or call "
            "the column otherwise if it does not judge captions"
        )
    return word in BAD


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().casefold() in NULLS)


def split_in(value: Any, where: str) -> str:
    """The split that a cell names. Raises DataError, as what is not understood must not be trained on."""
    if isinstance(value, str) and (split := split_of_name(value)):
        return split
    raise DataError(
        f"{where}: its split is {value!r}; expected train, validation or test (or val, dev, eval, ...). Mend the "
        "cell, or rename the column if it means something else"
    )


# As spreadsheets write them in English, German, French, Spanish, Portuguese, Italian, Dutch.
TRUE = {"true", "yes", "y", "t", "1", "1.0", "x"} | {"wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar"}
FALSE = {"false", "no", "n", "f", "0", "0.0"} | {"falsch", "faux", "falso", "onwaar"} | NULLS


def is_flag(value: Any) -> bool:
    return str(value).strip().casefold() in TRUE | FALSE


def is_true(value: Any, column: str, where: str) -> bool:
    """Whether a cell says yes; an empty one says no. Raises DataError for what is neither."""
    if not is_flag(value):
        raise DataError(f"{where}: column {column} says {value!r}; expected true or false, 1 or 0. Mend the cell")
    return is_yes(value)


def is_yes(value: Any) -> bool:
    return str(value).strip().casefold() in TRUE


def flagged(flags: Mapping[str, str], row: Mapping[str, Any], where: str) -> str | None:
    """The split whose column says yes. If none does, what is not for training is for the test, and what is not for the
    test or validation is for training."""
    said = {split for column, split in flags.items() if is_true(row[column], column, where)}
    if len(said) > 1:
        raise DataError(f"{where}: it is in {' and in '.join(sorted(said))}, say the columns {', '.join(flags)}")
    if said or "train" not in flags.values():
        return said.pop() if said else "train"
    return "test" if set(flags.values()) == {"train"} else None


def agreed(own: str | None, of_file: str | None, where: str) -> str | None:
    """The row's own word before that of its file, folder or part. Raises DataError where that says test, and the row
    something else: what one of them keeps out of training, the other must not bring in."""
    if of_file == "test" and own not in (None, "test"):
        raise DataError(f"{where}: its split is {own}, but the file or part it is in says test. Mend one of them")
    return own or of_file
