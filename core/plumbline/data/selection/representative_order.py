"""An order of rows in which every stretch is about what all of them are.

It comes from what the rows hold, not from a run's seed or from where they stand in their file: every run on
the same rows has the same order.
"""

from typing import Any

import numpy
import xxhash

from plumbline.data import rows
from plumbline.data.selection import row_labels
from plumbline.store.records import DatasetRow

WHOLE = 2.0**64  # hashes have 64 bits


def ordered(dataset: DatasetRow, part: str, numbers: Any) -> Any:
    """Row numbers in that order: by label where rows have one, within it by group, else as if drawn.

    :param dataset: a row of the store
    :param numbers: row numbers from 0, none twice
    """
    keys = rows.index(dataset["id"], part)["row"][numbers]
    order = numpy.argsort(keys, kind="stable")
    for column in ("group", "label"):
        classes = row_labels.of(dataset, part, column)
        if classes is not None:
            order = _spread(order, classes.codes[numbers], classes.names)
    return numpy.asarray(numbers)[order]


def _spread(order: Any, codes: Any, names: tuple[str, ...]) -> Any:
    """The same places, those of each class as far apart as its size allows, in the order that they had.

    :param order: places in ``codes``
    """
    by_class = numpy.argsort(codes[order], kind="stable")
    class_codes, starts, sizes = numpy.unique(codes[order][by_class], return_index=True, return_counts=True)
    # Where a class begins is drawn too: with many small ones, none is always first.
    begins = numpy.array([_fraction(names[code] if code != row_labels.BLANK else "") for code in class_codes])
    ranks = numpy.arange(len(order)) - numpy.repeat(starts, sizes)
    places = numpy.empty(len(order))
    places[by_class] = (ranks + numpy.repeat(begins, sizes)) / numpy.repeat(sizes, sizes)
    return order[numpy.argsort(places, kind="stable")]


def _fraction(name: str) -> float:
    return xxhash.xxh3_64_intdigest(name.encode()) / WHOLE
