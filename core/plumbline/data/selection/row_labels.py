"""The labels and groups of a dataset's rows: which row has which, and which have none."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy
import orjson

from plumbline.data import rows
from plumbline.errors import StudioError
from plumbline.store import datasets as store
from plumbline.store.records import DatasetRow

BLANK = -1


@dataclass(frozen=True)
class Classes:
    """A column of all rows of a part.

    :param names: the values that it has, in alphabetical order
    :param codes: for each row the place of its value in ``names``, or BLANK, (rows,)
    """

    names: tuple[str, ...]
    codes: Any

    def counted(self, numbers: Any) -> Counter[str]:
        """How many of some rows have each value; those with a blank are not counted.

        :param numbers: row numbers from 0
        """
        codes = self.codes[numbers]
        counts = numpy.bincount(codes[codes != BLANK], minlength=len(self.names))
        return Counter({name: int(count) for name, count in zip(self.names, counts, strict=True) if count})

    def blanks(self, numbers: Any) -> int:
        return int((self.codes[numbers] == BLANK).sum())


def of(dataset: DatasetRow, part: str, column: str) -> Classes | None:
    """A column of a part's rows; None when the dataset has no such column.

    :param dataset: a row of the store
    """
    if column not in store.columns(dataset):
        return None
    return _of(dataset["id"], dataset["sha256"], part, column)


@lru_cache(maxsize=16)
def _of(dataset_id: int, sha256: str, part: str, column: str) -> Classes:
    """``sha256`` only tells one content from another."""
    codes: dict[str, int] = {}
    row_codes = [codes.setdefault(text, len(codes)) for text in _texts(dataset_id, part, column)]
    names = sorted(name for name in codes if name.strip())
    ranks = numpy.full(len(codes), BLANK, numpy.int64)
    for rank, name in enumerate(names):
        ranks[codes[name]] = rank
    return Classes(tuple(names), ranks[numpy.array(row_codes, numpy.int64)])


def _texts(dataset_id: int, part: str, column: str) -> list[str]:
    lines, _ = rows.paths(dataset_id, part)
    if not lines.exists():
        return []
    with open(lines, "rb") as file:
        texts = []
        for line in file:
            row = orjson.loads(line)
            value = row.get(column) or row.get("columns", {}).get(column, "")
            texts.append("" if value is None else str(value))
    return texts


def values(dataset: DatasetRow, column: str) -> list[str]:
    """A column of every training row. :raises StudioError: when there is no such column"""
    refuse_no_column(dataset, column)
    return _texts(dataset["id"], "train", column)


def refuse_no_column(dataset: DatasetRow, column: str) -> None:
    """:raises StudioError: when a dataset keeps no such column beside its rows"""
    known = store.columns(dataset)
    if column not in known:
        raise StudioError(
            f"dataset {dataset['name']!r}",
            f"has no column {column!r}",
            f"It has {', '.join(known)}." if known else "It has no columns beside its rows.",
        )
