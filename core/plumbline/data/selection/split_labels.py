"""Which labels and groups stand on which side of a split, as it is told before Start."""

import json
from collections import Counter
from typing import Literal

import numpy

from plumbline.config.schema import DataSection
from plumbline.data.formats import held_out_marks
from plumbline.data.selection import mix, row_labels
from plumbline.data.selection.mix import Chosen

NAMED = 6  # values that a line names
MOST_GROUPS = 100  # more are too small for every one to be on both sides
Line = tuple[Literal["good", "warning"], str]


def lines(chosen: list[Chosen], data: DataSection) -> list[Line]:
    """What is held out, by label and by group, and what is missing on a side; warnings first."""
    all_lines = [
        line for choice in chosen for line in _of(choice, data, f"{choice.name}: " if len(chosen) > 1 else "")
    ]
    return sorted(all_lines, key=lambda line: line[0] == "good")


def _of(choice: Chosen, data: DataSection, name: str) -> list[Line]:
    report: list[Line] = []
    if by := held_out_marks.held_out_by(json.loads(choice.dataset["origin"] or "{}")):
        report.append(("good", f"{name}held out {by}"))
    parted = mix.split_column(data) if data.split != "random" and choice.held_out_part == "train" else ""
    whole = parted if data.split == "grouped" else ""  # its values are on one side each, as was asked for
    for column in dict.fromkeys(["label", "group", parted]):
        train, held_out = (
            row_labels.of(choice.dataset, part, column) if column else None
            for part in ("train", choice.held_out_part)
        )
        if train is None or held_out is None:
            continue
        learned = train.counted(numpy.unique(choice.train))
        measured = held_out.counted(choice.held_out)
        word = column if column in ("label", "group") else f"value of {column}"
        if not learned and not measured:
            continue
        if column == whole:
            blank = held_out.blanks(choice.held_out)
            alone = f", and {blank:,} of the rows without one, each for itself" if blank else ""
            count = f"{len(measured):,} of {len(measured | learned):,} {_many(word)}"
            report.append(("good", f"{name}held out whole: {count} ({_counts(measured)}){alone}"))
            continue
        every = len(learned.keys() | measured.keys())
        if column == "group" and every > MOST_GROUPS:
            continue
        report += _missing(name, word, every, learned, measured)
        if column != "group":
            shares = f"{name}held out: {len(measured):,} of {every:,} {_many(word)} ({_counts(measured)})"
            report.append(("good", shares))
    return report


def _missing(name: str, word: str, every: int, learned: Counter[str], measured: Counter[str]) -> list[Line]:
    warnings: list[Line] = []
    if absent := [value for value in learned if value not in measured]:
        text = f"{name}no held-out row has {_values(word, absent, every)}: nothing is measured of it"
        warnings.append(("warning", text))
    if absent := [value for value in measured if value not in learned]:
        text = (
            f"{name}no training row has {_values(word, absent, every)}: it is measured without being learned"
        )
        warnings.append(("warning", text))
    return warnings


def _values(word: str, absent: list[str], every: int) -> str:
    named = ", ".join(f"“{value:.40}”" for value in absent[:NAMED])
    more = f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else ""
    return f"{len(absent):,} of the {every:,} {_many(word)} ({named}{more})"


def _counts(measured: Counter[str]) -> str:
    listed = ", ".join(f"{value:.40} {count:,}" for value, count in measured.most_common(NAMED))
    return (listed or "none") + (f" and {len(measured) - NAMED:,} more" if len(measured) > NAMED else "")


def _many(word: str) -> str:
    return f"values of {word.removeprefix('value of ')}" if word.startswith("value of ") else f"{word}s"
