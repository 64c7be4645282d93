"""Rows with two answers as lengths: what `core.training.prepare` makes of them, counted for a forecast."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy

from core.data import mix, pairs, rows, stats
from core.data.mix import Chosen
from core.data.stats import UNCUT, Measured
from core.data.xray import encode_all, end_tokens
from core.models import load


@dataclass(frozen=True)
class Both:
    """Figures of a dataset's sample at one cut, both answers of a row taken together.

    :param lengths: tokens of the rows that are trained on and have something to learn in both answers
    :param tokens: of the whole sample, ``supervised`` of them in the loss
    :param empty: whether a row of the sample has nothing to learn, (rows,)
    """

    lengths: Any
    tokens: int
    supervised: int
    empty: Any


def both(one: Chosen, measured: Measured, max_length: int, method: str, model: Any) -> Both | None:
    """None when its rows have not what the method learns from.

    :param measured: its sample
    :param model: the recipe's section
    """
    dataset, part = one.dataset, one.part
    kept = dataset["id"], dataset["sha256"], method, model.base, model.revision, part.prefix
    sides = _sides(*kept) if len(measured.lengths) else None
    if sides is None:
        return None
    learned = [side.learned(max_length) for side in sides]
    cut = sum(numpy.minimum(side.lengths, max_length) for side in sides)
    empty = (learned[0] == 0) | (learned[1] == 0)
    at = measured.places(one.train)
    return Both(cut[at[~empty[at]]], int(cut.sum()), int(sum(learned).sum()), empty)


@lru_cache(maxsize=16)
def _sides(
    dataset_id: int, sha256: str, method: str, base: str, revision: str | None, prefix: str
) -> tuple[Measured, Measured] | None:
    """``sha256`` only tells one content from another."""
    numbers = stats.sample(len(rows.index(dataset_id, "train")))
    some = [mix.prefixed(row, prefix) for row in rows.at(dataset_id, "train", numbers)]
    if any(pairs.WANTED[method][0] not in row for row in some):
        return None
    if method == "kto":
        # In a run it is the answer of the row before there: any other is as long on average.
        made = [pairs.judged(row, some[number - 1])[:2] for number, row in enumerate(some)]
    else:
        made = [pairs.both(row) for row in some]
    tokenizer = load.tokenizer(base, revision)
    ends = end_tokens(tokenizer)
    own, other = (
        stats.measured(encode_all([pair[side] for pair in made], tokenizer, UNCUT), ends) for side in (0, 1)
    )
    return own, other
