"""Figures of a dataset: lengths in tokens, the effect of a cut, turns, roles and scripts.

Measured on up to SAMPLE rows, drawn with a fixed seed from larger sets; ``exact`` says which.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy

from plumbline.config.schema import MixPart
from plumbline.data import rows
from plumbline.data.selection import mix, row_labels
from plumbline.data.tokens.encode import IGNORED, Encoded, EncodeError, encode_all, end_tokens
from plumbline.errors import StudioError
from plumbline.models import load
from plumbline.store import datasets as store
from plumbline.store.records import DatasetRow

SAMPLE = 10_000
UNCUT = 1 << 30
SHOWN = 20  # rows that a summary names


@dataclass(frozen=True)
class LeftOut:
    """What a template leaves out of learned turns: of how many turns, and in which rows.

    :param numbers: the first of the ``rows``, from 1
    """

    what: str
    turns: int
    rows: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """What a set of rows comes to at one ``max_length``; ``empty`` rows would train on nothing.

    :param empty_numbers: the first of the rows with nothing to learn, from 1
    """

    rows: int
    tokens: int
    supervised: int
    cut_rows: int
    cut_tokens: int
    empty_rows: int
    end_learned_rows: int
    longest: int
    empty_numbers: tuple[int, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Rows as lengths and learned stretches, so that any cut is arithmetic.

    ``lengths`` and ``ends`` have one entry a row: its tokens, and the position of the first end of
    turn that is learned. ``row``, ``start`` and ``stop`` are the learned stretches of all rows.
    ``numbers`` are the rows' numbers in their dataset, from 0; ``total`` is how many it has.
    """

    lengths: Any
    ends: Any
    row: Any
    start: Any
    stop: Any
    numbers: Any
    total: int
    left_out: tuple[LeftOut, ...] = ()

    @property
    def exact(self) -> bool:
        return len(self.lengths) == self.total

    def learned(self, max_length: int) -> Any:
        """Tokens in the loss, one entry a row. A row's first token is never predicted, so never counts."""
        learned_tokens = (numpy.minimum(self.stop, max_length) - numpy.maximum(self.start, 1)).clip(0)
        return numpy.bincount(self.row, learned_tokens, len(self.lengths))

    def trained(self, numbers: Any, max_length: int) -> Any:
        """Tokens, cut, of those of some rows that were measured and have something to learn; see `places`."""
        at = self.places(numbers)
        return numpy.minimum(self.lengths[at[self.learned(max_length)[at] > 0]], max_length)

    def places(self, numbers: Any) -> Any:
        """Where those of some rows that were measured stand here.

        :param numbers: row numbers from 0; one that stands twice is found twice
        """
        if not len(self.lengths):
            return numpy.zeros(0, int)
        at = numpy.minimum(numpy.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return at[self.numbers[at] == numbers]

    def at(self, max_length: int) -> Summary:
        """Counts at a cut."""
        lengths_after_cut = numpy.minimum(self.lengths, max_length)
        by_row = self.learned(max_length)
        empty, cut = by_row == 0, self.lengths > max_length
        return Summary(
            rows=len(self.lengths),
            tokens=int(lengths_after_cut.sum()),
            supervised=int(by_row.sum()),
            cut_rows=int(cut.sum()),
            cut_tokens=int((self.lengths - lengths_after_cut).sum()),
            empty_rows=int(empty.sum()),
            end_learned_rows=int((self.ends < max_length).sum()),
            longest=int(self.lengths.max(initial=0)),
            empty_numbers=tuple((self.numbers[empty][:SHOWN] + 1).tolist()),
            left_out=self.left_out,
        )


def measured(
    encoded: Iterable[Encoded], ends: Iterable[int], numbers: Any = None, total: int = 0
) -> Measured:
    """Measure rows that are encoded uncut (or cut, to count what is left of them)."""
    ending = numpy.array(sorted(ends))
    lengths: list[int] = []
    first_end: list[int] = []
    row: list[Any] = []
    start: list[Any] = []
    stop: list[Any] = []
    losses: dict[str, list[int]] = {}
    for number, encoded_row in enumerate(encoded):
        labels = numpy.array(encoded_row.labels, numpy.int64)
        for what in encoded_row.left_out:
            losses.setdefault(what, []).append(number)
        lengths.append(len(labels) + len(encoded_row.cut))
        edges = numpy.flatnonzero(
            numpy.diff(numpy.concatenate([[0], labels != IGNORED, [0]]).astype(numpy.int8))
        )
        start.append(edges[::2])
        stop.append(edges[1::2])
        row.append(numpy.full(len(edges) // 2, number))
        at = numpy.flatnonzero(numpy.isin(labels, ending))
        first_end.append(int(at[0]) if len(at) else UNCUT)
    numbers = numpy.arange(len(lengths)) if numbers is None else numbers
    return Measured(
        lengths=numpy.array(lengths, int),
        ends=numpy.array(first_end, int),
        row=_joined(row),
        start=_joined(start),
        stop=_joined(stop),
        numbers=numbers,
        total=total or len(lengths),
        left_out=tuple(_left_out(what, turn_rows, numbers) for what, turn_rows in losses.items()),
    )


def _left_out(what: str, turn_rows: list[int], numbers: Any) -> LeftOut:
    """:param turn_rows: the place of each turn's row"""
    at = list(dict.fromkeys(turn_rows))
    return LeftOut(what, len(turn_rows), len(at), tuple((numbers[at[:SHOWN]] + 1).tolist()))


def _joined(arrays: list[Any]) -> Any:
    return numpy.concatenate(arrays) if arrays else numpy.zeros(0, int)


def refuse_nothing_to_learn(summary: Summary, max_length: int) -> None:
    """:raises StudioError: when no row has a token to learn within ``max_length``"""
    if summary.supervised == 0:
        raise StudioError(
            "training.max_length",
            f"all {summary.rows:,} rows have no answer tokens within {max_length} tokens",
            f"The longest row has {summary.longest:,} tokens: raise max_length.",
        )


def sample(total: int) -> Any:
    """Row numbers, from 0, that stand for all."""
    if total <= SAMPLE:
        return numpy.arange(total)
    return numpy.sort(numpy.random.default_rng(0).choice(total, SAMPLE, replace=False))


def of_dataset(
    dataset: DatasetRow, part: str, base: str, revision: str | None, prefix: str = "", day: str = ""
) -> Measured:
    """:param dataset: a row of the store

    :param day: of a recipe, for templates that write one
    """
    return _of_dataset(dataset["id"], dataset["sha256"], part, base, revision, prefix, day)


@lru_cache(maxsize=32)
def _of_dataset(
    dataset_id: int, sha256: str, part: str, base: str, revision: str | None, prefix: str, day: str
) -> Measured:
    """``sha256`` only tells one content from another."""
    tokenizer = load.tokenizer(base, revision)
    total = len(rows.index(dataset_id, part))
    numbers = sample(total)
    prefixed_rows = (mix.prefixed(row, prefix) for row in rows.at(dataset_id, part, numbers))
    try:
        return measured(
            encode_all(prefixed_rows, tokenizer, UNCUT, day), end_tokens(tokenizer), numbers, total
        )
    except EncodeError as error:
        raise in_row(error, dataset_id, part, int(numbers[error.row])) from error


def in_row(error: EncodeError, dataset_id: int, part: str, number: int) -> StudioError:
    """What is wrong with a row of a dataset, with its place. :param number: from 0"""
    line = int(rows.index(dataset_id, part)[number]["line"])
    held_out = "held-out " if part == "held_out" else ""
    where = f"dataset {store.get(dataset_id)['name']!r} {held_out}row {number + 1} (line {line} of its file)"
    plain = error.without_place
    return StudioError(where, f"{plain.where} {plain.what}", plain.fix)


def of_part(part: MixPart, dataset: DatasetRow, base: str, revision: str | None, day: str = "") -> Measured:
    return of_dataset(dataset, "train", base, revision, part.prefix, day)


def together(parts: list[tuple[Any, int]]) -> Any:
    """Lengths that stand for the rows of several datasets, each by its share of all rows.

    :param parts: lengths of some rows of a dataset, and how many rows they stand for; where they are
        thinned out, the longest stays
    """
    parts = [(lengths, rows) for lengths, rows in parts if len(lengths)]
    if not parts:
        return numpy.zeros(0, int)
    share = min(1.0, min(len(lengths) / rows for lengths, rows in parts))
    return numpy.concatenate([_thinned(lengths, max(1, round(rows * share))) for lengths, rows in parts])


def _thinned(lengths: Any, count: int) -> Any:
    if count >= len(lengths):
        return lengths
    last = len(lengths) - 1
    return numpy.sort(lengths)[numpy.linspace(last, 0, count).round().astype(int)]


def percentiles(lengths: Any) -> list[float]:
    """Mean, p50, p90, p99 and the longest, in tokens."""
    return [float(lengths.mean()), *numpy.percentile(lengths, [50, 90, 99]).tolist(), float(lengths.max())]


@dataclass(frozen=True)
class Profile:
    """What rows look like before any tokenizer: shares are of rows, but for scripts of letters.

    :param labels: of all rows; all else is of a sample where there are many
    """

    rows: int
    turns: Counter[int]
    roles: Counter[str]
    labels: Counter[str]
    scripts: list[tuple[str, float]]


def profile(dataset: DatasetRow, part: str) -> Profile:
    """:param dataset: a row of the store"""
    text_profile = _profile(dataset["id"], dataset["sha256"], part)
    known = row_labels.of(dataset, part, "label")
    if known is None:
        return text_profile
    return replace(text_profile, labels=known.counted(numpy.arange(len(known.codes))))


@lru_cache(maxsize=32)
def _profile(dataset_id: int, sha256: str, part: str) -> Profile:
    turns: Counter[int] = Counter()
    roles: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    numbers = sample(len(rows.index(dataset_id, part)))
    for row in rows.at(dataset_id, part, numbers):
        messages = row.get("messages", [])
        turns[len(messages) if messages else 1] += 1
        roles.update({message["role"] for message in messages} or {"text"})
        for message in messages:
            letters.update(message["content"])
        letters.update(row.get("text", ""))
    return Profile(len(numbers), turns, roles, Counter(), _scripts(letters))


def _scripts(letters: Counter[str]) -> list[tuple[str, float]]:
    """Writing systems by their share of all letters, the larger first."""
    letters_by_script: Counter[str] = Counter()
    for letter, count in letters.items():
        if letter.isalpha():
            letters_by_script[_script(letter)] += count
    total = sum(letters_by_script.values()) or 1
    return [
        (name, count / total) for name, count in letters_by_script.most_common(6) if count / total >= 0.001
    ]


_JOINED = {"cjk": "Chinese characters", "hiragana": "Japanese kana", "katakana": "Japanese kana"}


def _script(letter: str) -> str:
    """A letter's writing system, by the first word of its Unicode name."""
    word = unicodedata.name(letter, "other").split(" ")[0].lower()
    return _JOINED.get(word.split("-")[0], word.capitalize())
