"""What says that rows are to be held out: the name of their file, or a column of theirs."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plumbline.data.errors import RowError
from plumbline.data.formats.columns import plain

Side = Literal["train", "held_out"]
_FILE = re.compile(r"(?<![a-z])(test|valid|validation|val|dev|eval|held[-_ ]?out)(?![a-z])")
_COLUMN = re.compile(r"(?:.*_)?(?:split|subset|partition|fold)s?|set|usage|phase")
# Words of a value, as in validation, test_sft, PublicTest, held-out.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_TRAIN = {"train", "training", "trn"}
_HELD_OUT = {
    *("test", "testing", "tst", "validation", "valid", "val", "dev", "devel", "development"),
    *("eval", "evaluation", "holdout", "heldout"),
}
LONGEST = 40  # characters of a value; more is a text
FIX = "Write train, validation or test there, or say that all rows are trained on"


def named_held_out(names: Sequence[str]) -> list[str]:
    """Of several files those whose names say that they are for testing, where others are for training."""
    found = [name for name in names if _FILE.search(name.lower())]
    return found if len(found) < len(names) else []


def side_of(value: Any) -> Side | None:
    """Which rows a value marks, as in ``train`` or ``test_sft``; None where it says neither, or both."""
    if type(value) is not str or len(value) > LONGEST:
        return None
    said = _WORD.findall(value.strip())
    words = {word.lower() for word in said} | {
        f"{first}{second}".lower() for first, second in zip(said, said[1:], strict=False)
    }
    train, held_out = bool(words & _TRAIN), bool(words & _HELD_OUT)
    return None if train == held_out else "train" if train else "held_out"


@dataclass(frozen=True)
class SplitColumn:
    """A column that marks rows, and which of them are taken.

    :param takes: empty for all rows, whose marks are only counted then
    """

    name: str
    takes: Side | Literal[""] = ""

    def is_taken(self, record: dict[str, Any]) -> bool:
        """:raises RowError: when the record says neither; told once, with the training rows"""
        if not self.takes:
            return True
        value = record.get(self.name)
        side = side_of(value)
        if side is None and self.takes == "train":
            said = "is empty" if value in (None, "") else f"is {str(value)[:LONGEST]!r}"
            raise RowError(f"{self.name[:LONGEST]} {said}, which is neither for training nor held out", FIX)
        return side == self.takes


def split_column(records: Sequence[dict[str, Any]], used: Collection[str]) -> str:
    """The column that says which rows are held out: named like one, and with no other values; else empty.

    :param used: columns that play another part
    """
    found = [name for name, values in _named(records, used) if all(map(side_of, values))]
    marking = [name for name in found if any(side_of(record.get(name)) == "held_out" for record in records)]
    return next(iter([*marking, *found]), "")


def not_followed(records: Sequence[dict[str, Any]], used: Collection[str]) -> str:
    """A warning of a column that marks some rows as held out, and says of others what is not known."""
    for name, values in _named(records, used):
        marks = [value for value in values if side_of(value) == "held_out"]
        others = [value for value in values if side_of(value) is None]
        if marks and others:
            return (
                f"the column {name[:LONGEST]!r} marks rows as {marks[0]}, and others as "
                f"{str(others[0])[:LONGEST]!r}, which is neither for training nor held out: it is not "
                "followed, so rows that it marks may be trained on"
            )
    return ""


def _named(records: Sequence[dict[str, Any]], used: Collection[str]) -> Iterable[tuple[str, list[Any]]]:
    for name in dict.fromkeys(name for record in records for name in record):
        if name not in used and _COLUMN.fullmatch(plain(name).strip("_")):
            values = [record.get(name) for record in records]
            if known := [value for value in values if value not in (None, "")]:
                yield name, known


def counts(marks: Counter[str] | dict[str, int]) -> str:
    """Rows by their mark, as in ``60 validation, 40 test``."""
    return ", ".join(f"{count:,} {mark}" for mark, count in Counter(marks).most_common())


def held_out_by(origin: dict[str, Any]) -> str:
    """How a dataset's rows came to be held out, as in ``by the column 'split': 40 test``; empty for a file.

    :param origin: of the dataset
    """
    found = origin.get("held_out_by")
    return f"by the column {found['column'][:LONGEST]!r}: {counts(found['values'])}" if found else ""


def trained_on(column: str, marks: Counter[str], total: int, why: str) -> str:
    """What is told of rows that are trained on although a column marks them."""
    many = sum(marks.values())
    return (
        f"{many:,} of {total:,} rows are trained on although the column {column[:LONGEST]!r} marks them "
        f"({counts(marks)}): {why}"
    )


def foreseen(
    records: Sequence[dict[str, Any]], used: Collection[str], all_trained: bool, complete: bool
) -> str:
    """What a file's split column will do, as far as its first records tell; empty where there is none.

    :param complete: whether these are all
    """
    column = split_column(records, used)
    if not column:
        return not_followed(records, used)
    marks = Counter(record[column] for record in records if side_of(record.get(column)) == "held_out")
    many, total = sum(marks.values()), len(records)
    if all_trained:
        return trained_on(column, marks, total, "as was asked for") if marks else ""
    if complete and many == total:
        return trained_on(column, marks, total, "no row is marked for training")
    if complete and not many:
        return ""
    rows = f"{many:,} of its {'' if complete else 'first '}{total:,} rows"
    said = f" ({counts(marks)})" if marks else ""
    return f"Held out by the column {column[:LONGEST]!r}: {rows}{said}, unless a held-out file is given."
