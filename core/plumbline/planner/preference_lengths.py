"""Rows with two answers as lengths: what a run makes of them, counted for a forecast."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy

from plumbline.config.schema import RunConfig
from plumbline.data import rows
from plumbline.data.selection import mix, preference_rows, stats
from plumbline.data.selection.mix import Chosen
from plumbline.data.selection.stats import UNCUT, Measured, Summary
from plumbline.data.tokens.encode import encode_all, end_tokens
from plumbline.models import load


def both(choice: Chosen, measured: Measured, config: RunConfig) -> tuple[Summary, Any] | None:
    """What a dataset's sample comes to when both answers of a row are learned from.

    :param measured: the sample
    :returns: its summary, and the tokens of both answers together, of those of its rows that are trained on;
        None when rows have not what the method learns from
    """
    dataset, model, length = choice.dataset, config.model, config.training.max_length
    key = dataset["id"], dataset["sha256"], config.method.name, model.base, model.revision, choice.part.prefix
    if (sides := _sides(*key)) is None:
        return None
    learned = [side.learned(length) for side in sides]
    tokens = sum(numpy.minimum(side.lengths, length) for side in sides)
    empty = (learned[0] == 0) | (learned[1] == 0)
    summary = replace(
        measured.at(length),
        tokens=int(tokens.sum()),
        supervised=int(sum(learned).sum()),
        empty_rows=int(empty.sum()),
        empty_numbers=tuple((measured.numbers[empty][: stats.SHOWN] + 1).tolist()),
    )
    at = measured.places(choice.train)
    return summary, tokens[at[~empty[at]]]


@lru_cache(maxsize=16)
def _sides(
    dataset_id: int, sha256: str, method: str, base: str, revision: str | None, prefix: str
) -> tuple[Measured, Measured] | None:
    """``sha256`` only tells one content from another."""
    numbers = stats.sample(len(rows.index(dataset_id, "train")))
    some = [mix.prefixed(row, prefix) for row in rows.at(dataset_id, "train", numbers)]
    if any(preference_rows.WANTED[method][0] not in row for row in some):
        return None
    if method == "kto":
        # In a run it is the answer of the row before there: any other is as long on average.
        made = [preference_rows.preference_of(row, some[number - 1])[:2] for number, row in enumerate(some)]
    else:
        made = [preference_rows.both(row) for row in some]
    tokenizer = load.tokenizer(base, revision)
    ends = end_tokens(tokenizer)
    own, other = (
        stats.measured(encode_all([pair[side] for pair in made], tokenizer, UNCUT), ends) for side in (0, 1)
    )
    return own, other
