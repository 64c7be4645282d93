"""What a run learns from and is measured on: the split of each dataset, and their mix.

Everything is drawn with the recipe's seed, from row numbers alone: the same recipe and the same
datasets give the same rows, and no row of a million is read before it is needed. What is measured is a
sample of the held-out rows that depends on them alone; see `plumbline.data.selection.representative_order`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy

from plumbline.config.schema import DataSection, MixPart
from plumbline.data import rows
from plumbline.data.importing import quality
from plumbline.data.rows import Row
from plumbline.data.selection import representative_order, row_labels
from plumbline.errors import StudioError
from plumbline.home import run_folder
from plumbline.store import datasets as store
from plumbline.store import runs
from plumbline.store.records import DatasetRow

# A score takes rows from the one end of their order, what is watched while training from the other, so that
# they share as few as can be: what chose the best step is not what the adapter is judged by. "first" is what
# earlier versions measured: the beginning of the file.
Use = Literal["score", "watch", "first"]


@dataclass(frozen=True)
class Chosen:
    """One dataset's share of a run.

    ``train`` and ``held_out`` are row numbers from 0; in ``train`` a number stands as often as its
    row is shown in an epoch. ``held_out_part`` says which file the held-out numbers belong to.
    """

    dataset: DatasetRow
    part: MixPart
    train: Any
    held_out: Any
    held_out_part: str

    @property
    def name(self) -> str:
        return self.part.dataset


def choose(data: DataSection, before: list[dict[str, Any]] | None = None) -> list[Chosen]:
    """The rows of every dataset of a recipe.

    :param before: the choice of a run that has begun, as `recorded` gives it: what it held out it holds out
        still, however rows would be split today
    :raises StudioError: when a dataset is missing, named twice, or too small to hold any row out, or lacks
        a column that rows are split or ordered by
    """
    known = {each["dataset"]: each for each in before or ()}
    chosen = [_choose(part, data, known.get(part.dataset)) for part in data.parts]
    if len({each.dataset["id"] for each in chosen}) < len(chosen):
        what = "names one dataset twice, by its name and a former one"
        raise StudioError("data.mix", what, "Give it a higher weight.")
    total = sum(len(each.train) for each in chosen)
    if data.max_rows is None or data.max_rows >= total:
        return chosen
    if len(chosen) == 1 and is_earlier(before):
        return [replace(chosen[0], train=chosen[0].train[: data.max_rows])]
    drawn = numpy.sort(_random(data, 3).permutation(total)[: data.max_rows])
    ends = numpy.cumsum([len(each.train) for each in chosen])
    starts = ends - [len(each.train) for each in chosen]
    return [
        replace(each, train=each.train[drawn[(drawn >= start) & (drawn < end)] - start])
        for each, start, end in zip(chosen, starts, ends, strict=True)
    ]


def of_run(run_id: int) -> list[Chosen]:
    """The rows of a run: what it held out when it began, whatever its recipe would choose today."""
    return choose(runs.recipe(run_id).data, recorded(run_id))


def recorded(run_id: int) -> list[dict[str, Any]] | None:
    """What `record` kept of a run, or of the run that it trains again; None when it has yet to begin."""
    row = runs.get(run_id)
    while True:
        path = run_folder(row["id"]) / "data.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        if row["relation"] != "reproduction" or row["parent"] not in runs.numbers():
            return None
        row = runs.get(row["parent"])


def is_earlier(before: list[dict[str, Any]] | None) -> bool:
    """Whether a run began in a version that took the first rows of a file for all of them."""
    return before is not None and any("watched" not in entry for entry in before)


def _random(data: DataSection, purpose: int) -> Any:
    return numpy.random.default_rng([data.split_seed, purpose])


def _choose(part: MixPart, data: DataSection, before: dict[str, Any] | None) -> Chosen:
    dataset = store.by_name(part.dataset)
    total = dataset["rows"]
    if data.order == "by column":
        row_labels.refuse_no_column(dataset, data.order_column)
    if dataset["held_out_rows"]:
        train, held_out, where = numpy.arange(total), numpy.arange(dataset["held_out_rows"]), "held_out"
    elif before is not None and before["sha256"] == dataset["sha256"] and before["held_out_part"] == "train":
        train, held_out = _without(total, before["held_out"])
        where = "train"
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


def split(dataset: DatasetRow, data: DataSection) -> tuple[Any, Any]:
    """Numbers of training and held-out rows, both in file order.

    :raises StudioError: when a column is missing, or one side would be empty
    """
    total = dataset["rows"]
    held_out_count = max(1, round(total * data.held_out_share))
    if total < 2 or held_out_count >= total:
        raise StudioError(
            "data.held_out_share", f"would take all {total} rows", "Add rows or a held-out file."
        )
    if data.split == "random":
        # Python's own sample: runs of earlier versions were split with it, and stay as they were.
        held_out = random.Random(data.split_seed).sample(range(total), held_out_count)
    else:
        column = split_column(data)
        draw = _stratified if data.split == "stratified" else _grouped
        held_out = draw(row_labels.values(dataset, column), held_out_count, _random(data, 1))
        if len(held_out) in (0, total):
            raise StudioError(
                "data.split",
                f"by {column} leaves one side empty",
                "Choose another column, or a random split.",
            )
    return _without(total, held_out)


def _without(total: int, held_out: Any) -> tuple[Any, Any]:
    mask = numpy.zeros(total, bool)
    mask[held_out] = True
    return numpy.flatnonzero(~mask), numpy.flatnonzero(mask)


def split_column(data: DataSection) -> str:
    """The column that rows are stratified or grouped by."""
    return data.split_column or ("label" if data.split == "stratified" else "group")


def _by_class(names: list[str]) -> dict[str, Any]:
    numbers_by_name: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers_by_name.setdefault(name, []).append(number)
    return {name: numpy.array(places) for name, places in sorted(numbers_by_name.items())}


def _stratified(names: list[str], held_out_count: int, generator: Any) -> Any:
    """The same share of every class; a class of one row stays in training."""
    share = held_out_count / len(names)
    drawn = []
    for numbers in _by_class(names).values():
        count = min(round(share * len(numbers)) or int(len(numbers) > 1), len(numbers) - 1)
        drawn.append(generator.permutation(numbers)[:count])
    return numpy.concatenate(drawn)


def _grouped(names: list[str], held_out_count: int, generator: Any) -> Any:
    """Whole groups, in random order, until there are about enough rows.

    A blank is no group: each row that has one stands alone.
    """
    by_name = _by_class(names)
    groups = [numbers for name, numbers in by_name.items() if name.strip()]
    alone = [numbers for name, numbers in by_name.items() if not name.strip()]
    groups += [numpy.array([number]) for number in numpy.sort(numpy.concatenate([[], *alone]).astype(int))]
    held_out: list[int] = []
    for number in generator.permutation(len(groups)):
        more = groups[number]
        if len(held_out) + len(more) / 2 > held_out_count and held_out:
            continue
        if len(held_out) + len(more) < len(names):
            held_out += more.tolist()
    return numpy.array(held_out, int)


def train_rows(data: DataSection, chosen: list[Chosen]) -> Iterator[tuple[str, Row]]:
    """Training rows with their dataset's name, task prefix applied, in the recipe's order.

    "Shuffled" leaves them in the order of the files: the trainer shuffles each epoch.
    """
    order = _order(data, chosen)
    if order is None:
        for choice in chosen:
            for row in rows.at(choice.dataset["id"], "train", choice.train):
                yield choice.name, prefixed(row, choice.part.prefix)
        return
    for which, number in order:
        choice = chosen[which]
        row = next(rows.at(choice.dataset["id"], "train", [number]))
        yield choice.name, prefixed(row, choice.part.prefix)


def _order(data: DataSection, chosen: list[Chosen]) -> list[tuple[int, int]] | None:
    """Dataset and row numbers as a curriculum shows them; None for none."""
    if data.order == "shuffled":
        return None
    entries: list[tuple[Any, int, int]] = []
    for which, choice in enumerate(chosen):
        if data.order == "by column":
            keys: Any = [_sortable(value) for value in row_labels.values(choice.dataset, data.order_column)]
        else:
            sizes = rows.index(choice.dataset["id"], "train")["size"].astype(int)
            keys = sizes if data.order == "short to long" else -sizes
        entries += [(keys[number], which, int(number)) for number in choice.train]
    return [(which, number) for _, which, number in sorted(entries, key=lambda entry: entry[0])]


def _sortable(value: str) -> tuple[int, float, str]:
    """Numbers by value, and before texts."""
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def held_out_rows(
    chosen: list[Chosen], limit: int | None = None, use: Use = "score"
) -> Iterator[tuple[str, Row]]:
    """Held-out rows that stand for all of them, with their dataset's name; see `sample` and `held_out_at`."""
    return held_out_at(chosen, sample(chosen, limit, use))


def held_out_at(chosen: list[Chosen], numbers: list[Any]) -> Iterator[tuple[str, Row]]:
    """Held-out rows with their dataset's name, task prefix applied.

    :param numbers: for each dataset the numbers of its rows
    """
    for choice, some in zip(chosen, numbers, strict=True):
        for row in rows.at(choice.dataset["id"], choice.held_out_part, some):
            yield choice.name, prefixed(row, choice.part.prefix)


def watched(chosen: list[Chosen], limit: int, before: list[dict[str, Any]] | None) -> list[Any]:
    """The held-out rows that a run measures while it trains, for each dataset.

    :param before: as for `choose`: what a run has measured so far it goes on to measure
    """
    if before is None:
        return sample(chosen, limit, "watch")
    known = {(each["dataset"], each["sha256"]): each.get("watched") for each in before}
    numbers_of_each = [known.get((each.name, each.dataset["sha256"])) for each in chosen]
    if any(row_numbers is None for row_numbers in numbers_of_each):
        return sample(chosen, limit, "first" if is_earlier(before) else "watch")
    return [numpy.array(row_numbers, int) for row_numbers in numbers_of_each]


def sample(chosen: list[Chosen], limit: int | None = None, use: Use = "score") -> list[Any]:
    """For each dataset the numbers of held-out rows that stand for all of them, in file order.

    :param limit: most rows altogether, shared evenly by the datasets as far as they have them; None for all
    """
    if use == "first":
        each = None if limit is None else max(1, limit // len(chosen))
        return [choice.held_out[:each] for choice in chosen]
    samples = []
    for choice, count in zip(
        chosen, _shared([len(choice.held_out) for choice in chosen], limit), strict=True
    ):
        if count == len(choice.held_out):
            samples.append(choice.held_out)
            continue
        order = representative_order.ordered(choice.dataset, choice.held_out_part, choice.held_out)
        samples.append(numpy.sort(order[:count] if use == "score" else order[len(order) - count :]))
    return samples


def _shared(sizes: list[int], limit: int | None) -> list[int]:
    """How many of each, together at most ``limit`` but for one each; what one has not, the others give."""
    if limit is None:
        return sizes
    shares, left = [0] * len(sizes), limit
    for turn, which in enumerate(sorted(range(len(sizes)), key=lambda number: sizes[number])):
        shares[which] = min(sizes[which], max(1, left // (len(sizes) - turn)))
        left -= shares[which]
    return shares


def classes_of(chosen: list[Chosen], numbers: list[Any]) -> dict[str, tuple[int, int]]:
    """``labels`` and ``groups``, where rows have them: how many are among some held-out rows, and among all.

    :param numbers: for each dataset the numbers of its rows
    """
    counts = {}
    for column in ("label", "group"):
        some: set[str] = set()
        whole: set[str] = set()
        for choice, picked in zip(chosen, numbers, strict=True):
            known = row_labels.of(choice.dataset, choice.held_out_part, column)
            if known is not None:
                some |= set(known.counted(picked))
                whole |= set(known.counted(choice.held_out))
        if whole:
            counts[f"{column}s"] = (len(some), len(whole))
    return counts


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


def leaks(chosen: list[Chosen]) -> list[quality.Finding]:
    """Held-out rows that are trained on too, across all datasets of the mix."""
    train = [rows.index(choice.dataset["id"], "train")[numpy.unique(choice.train)] for choice in chosen]
    held_out = [rows.index(choice.dataset["id"], choice.held_out_part)[choice.held_out] for choice in chosen]
    return quality.leaks(numpy.concatenate(train), numpy.concatenate(held_out))


def record(chosen: list[Chosen], measured: list[Any] | None) -> str:
    """The choice as JSON, for the run's folder: what was trained on and held out, row by row.

    :param measured: for each dataset the held-out rows that are measured while training; None where a run
        goes on with the first rows, as it began (see `is_earlier`)
    """
    entries: list[dict[str, Any]] = [
        {
            "dataset": each.name,
            "sha256": each.dataset["sha256"],
            "weight": each.part.weight,
            "prefix": each.part.prefix,
            "train_rows": len(each.train),
            "held_out_part": each.held_out_part,
            "held_out": each.held_out.tolist() if each.held_out_part == "train" else len(each.held_out),
        }
        for each in chosen
    ]
    for each, numbers in zip(entries, measured or [], strict=measured is not None):
        each["watched"] = numbers.tolist()
    return json.dumps(entries, indent=1)
