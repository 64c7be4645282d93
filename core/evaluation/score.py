"""Scores of an answer against its reference, and intervals for differences of means."""

import re
from collections import Counter
from typing import NamedTuple


def exact_match(answer: str, reference: str) -> float:
    """1.0 when the texts are equal, surrounding whitespace aside."""
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of word precision and recall, case and punctuation aside (SQuAD, 2016)."""
    said, wanted = Counter(_words(answer)), Counter(_words(reference))
    if not said or not wanted:
        return float(said == wanted)
    common = sum((said & wanted).values())
    return 2 * common / (sum(said.values()) + sum(wanted.values()))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class Interval(NamedTuple):
    """A mean difference and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(base: list[float], adapter: list[float], seed: int = 0) -> Interval:
    """Mean of adapter minus base on the same rows, with a percentile bootstrap interval.

    2,000 resamples of rows (Efron and Tibshirani, 1993, chapter 13).
    """
    import numpy

    differences = numpy.asarray(adapter) - numpy.asarray(base)
    random = numpy.random.default_rng(seed)
    picks = random.integers(0, len(differences), (2000, len(differences)))
    low, high = numpy.percentile(differences[picks].mean(axis=1), [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))
