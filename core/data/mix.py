"""What a run learns from and is measured on: the split of each dataset, and their mix.

Everything is drawn with the recipe's seed, from row numbers alone: the same recipe and the same
datasets give the same rows, and no row of a million is read before it is needed.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import orjson

from core.config import DataSection, MixPart
from core.data import check, rows
from core.errors import StudioError
from core.store import datasets as store

Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """One dataset's share of a run.

    ``train`` and ``held_out`` are row numbers from 0; in ``train`` a number stands as often as its
    row is shown in an epoch. ``held_out_part`` says which file the held-out numbers belong to.
    """

    dataset: dict[str, Any]
    part: MixPart
    train: Any
    held_out: Any
    held_out_part: str

    @property
    def name(self) -> str:
        return self.part.dataset


def choose(data: DataSection) -> list[Chosen]:
    """The rows of every dataset of a recipe.

    :raises StudioError: when a dataset is missing or too small to hold any row out, or lacks a column
        that rows are split or ordered by
    """
    chosen = [_choose(part, data) for part in data.parts]
    total = sum(len(one.train) for one in chosen)
    if data.max_rows is None or data.max_rows >= total:
        return chosen
    if len(chosen) == 1:
        return [_only(chosen[0], chosen[0].train[: data.max_rows])]
    kept = numpy.sort(_random(data, 3).permutation(total)[: data.max_rows])
    ends = numpy.cumsum([len(one.train) for one in chosen])
    starts = ends - [len(one.train) for one in chosen]
    return [
        _only(one, one.train[kept[(kept >= start) & (kept < end)] - start])
        for one, start, end in zip(chosen, starts, ends, strict=True)
    ]


def _only(chosen: Chosen, train: Any) -> Chosen:
    return Chosen(chosen.dataset, chosen.part, train, chosen.held_out, chosen.held_out_part)


def _random(data: DataSection, purpose: int) -> Any:
    return numpy.random.default_rng([data.split_seed, purpose])


def _choose(part: MixPart, data: DataSection) -> Chosen:
    dataset = store.by_name(part.dataset)
    total = dataset["rows"]
    if data.order == "by column":
        _refuse_no_column(dataset, data.order_column)
    if dataset["held_out_rows"]:
        train, held_out, where = numpy.arange(total), numpy.arange(dataset["held_out_rows"]), "held_out"
    else:
        train, held_out = split(dataset, data)
        where = "train"
    return Chosen(dataset, part, _repeated(train, part.weight, data), held_out, where)


def _repeated(train: Any, weight: float, data: DataSection) -> Any:
    """Row numbers as often as the weight says; a fraction is a random part of them."""
    whole, rest = divmod(weight, 1.0)
    repeats = [train] * int(whole)
    if rest > 1e-9:
        count = max(1, round(rest * len(train)))
        repeats.append(numpy.sort(_random(data, 2).permutation(train)[:count]))
    return numpy.concatenate(repeats)


def split(dataset: dict[str, Any], data: DataSection) -> tuple[Any, Any]:
    """Numbers of training and held-out rows, both in file order.

    :raises StudioError: when a column is missing, or one side would be empty
    """
    total = dataset["rows"]
    wanted = max(1, round(total * data.held_out_share))
    if total < 2 or wanted >= total:
        raise StudioError(
            "data.held_out_share", f"would take all {total} rows", "Add rows or a held-out file."
        )
    if data.split == "random":
        # Python's own sample: runs of earlier versions were split with it, and stay as they were.
        held_out = random.Random(data.split_seed).sample(range(total), wanted)
    else:
        column = data.split_column or ("label" if data.split == "stratified" else "group")
        classes = [str(value) for value in values(dataset, column)]
        draw = _stratified if data.split == "stratified" else _grouped
        held_out = draw(classes, wanted, _random(data, 1))
        if len(held_out) in (0, total):
            raise StudioError(
                "data.split",
                f"by {column} leaves one side empty",
                "Choose another column, or a random split.",
            )
    mask = numpy.zeros(total, bool)
    mask[held_out] = True
    return numpy.flatnonzero(~mask), numpy.flatnonzero(mask)


def _by_class(classes: list[str]) -> dict[str, Any]:
    found: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        found.setdefault(name, []).append(number)
    return {name: numpy.array(numbers) for name, numbers in sorted(found.items())}


def _stratified(classes: list[str], wanted: int, generator: Any) -> Any:
    """The same share of every class; a class of one row stays in training."""
    share = wanted / len(classes)
    drawn = []
    for numbers in _by_class(classes).values():
        count = min(round(share * len(numbers)) or int(len(numbers) > 1), len(numbers) - 1)
        drawn.append(generator.permutation(numbers)[:count])
    return numpy.concatenate(drawn)


def _grouped(classes: list[str], wanted: int, generator: Any) -> Any:
    """Whole groups, in random order, until there are about enough rows."""
    groups = list(_by_class(classes).values())
    held_out: list[int] = []
    for number in generator.permutation(len(groups)):
        more = groups[number]
        if len(held_out) + len(more) / 2 > wanted and held_out:
            continue
        if len(held_out) + len(more) < len(classes):
            held_out += more.tolist()
    return numpy.array(held_out, int)


def _refuse_no_column(dataset: dict[str, Any], column: str) -> None:
    """:raises StudioError: when a dataset keeps no such column beside its rows"""
    known = store.columns(dataset)
    if column not in known:
        raise StudioError(
            f"dataset {dataset['name']!r}",
            f"has no column {column!r}",
            f"It has {', '.join(known)}." if known else "It has no columns beside its rows.",
        )


def values(dataset: dict[str, Any], column: str) -> list[str]:
    """A column of every training row. :raises StudioError: when there is no such column"""
    _refuse_no_column(dataset, column)
    lines, _ = rows.paths(dataset["id"], "train")
    with open(lines, "rb") as file:
        found = []
        for line in file:
            row = orjson.loads(line)
            found.append(row.get(column) or row.get("columns", {}).get(column, ""))
    return found


def train_rows(data: DataSection, chosen: list[Chosen]) -> Iterator[tuple[str, Row]]:
    """Training rows with their dataset's name, task prefix applied, in the recipe's order.

    "Shuffled" leaves them in the order of the files: the trainer shuffles each epoch.
    """
    order = _order(data, chosen)
    if order is None:
        for one in chosen:
            for row in rows.at(one.dataset["id"], "train", one.train):
                yield one.name, prefixed(row, one.part.prefix)
        return
    for which, number in order:
        one = chosen[which]
        row = next(rows.at(one.dataset["id"], "train", [number]))
        yield one.name, prefixed(row, one.part.prefix)


def _order(data: DataSection, chosen: list[Chosen]) -> list[tuple[int, int]] | None:
    """Dataset and row numbers as a curriculum shows them; None for none."""
    if data.order == "shuffled":
        return None
    entries: list[tuple[Any, int, int]] = []
    for which, one in enumerate(chosen):
        if data.order == "by column":
            keys: Any = [_sortable(value) for value in values(one.dataset, data.order_column)]
        else:
            sizes = rows.index(one.dataset["id"], "train")["size"].astype(int)
            keys = sizes if data.order == "short to long" else -sizes
        entries += [(keys[number], which, int(number)) for number in one.train]
    return [(which, number) for _, which, number in sorted(entries, key=lambda entry: entry[0])]


def _sortable(value: str) -> tuple[int, float, str]:
    """Numbers by value, and before texts."""
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def held_out_rows(chosen: list[Chosen], limit: int | None = None) -> Iterator[tuple[str, Row]]:
    """Held-out rows with their dataset's name, task prefix applied.

    :param limit: most rows altogether; each dataset gets an even share of it, from its beginning
    """
    each = None if limit is None else max(1, limit // len(chosen))
    for one in chosen:
        for row in rows.at(one.dataset["id"], one.held_out_part, one.held_out[:each]):
            yield one.name, prefixed(row, one.part.prefix)


def prefixed(row: Row, prefix: str) -> Row:
    """A row whose first user turn, or text, begins with a task prefix."""
    if not prefix:
        return row
    if "text" in row:
        return {**row, "text": prefix + row["text"]}
    messages = list(row["messages"])
    first = next((n for n, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        return row
    messages[first] = {**messages[first], "content": prefix + messages[first]["content"]}
    return {**row, "messages": messages}


def leaks(chosen: list[Chosen]) -> list[check.Finding]:
    """Held-out rows that are trained on too, across all datasets of the mix."""
    train = [rows.index(one.dataset["id"], "train")[numpy.unique(one.train)] for one in chosen]
    held_out = [rows.index(one.dataset["id"], one.held_out_part)[one.held_out] for one in chosen]
    return check.leaks(numpy.concatenate(train), numpy.concatenate(held_out))


def record(chosen: list[Chosen]) -> str:
    """The choice as JSON, for the run's folder: what was trained on and held out, row by row."""
    return json.dumps(
        [
            {
                "dataset": one.name,
                "sha256": one.dataset["sha256"],
                "weight": one.part.weight,
                "prefix": one.part.prefix,
                "train_rows": len(one.train),
                "held_out_part": one.held_out_part,
                "held_out": one.held_out.tolist() if one.held_out_part == "train" else len(one.held_out),
            }
            for one in chosen
        ],
        indent=1,
    )
