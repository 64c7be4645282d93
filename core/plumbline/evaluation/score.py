"""Scores of an answer against its reference, and intervals for differences of means."""

import unicodedata
from collections import Counter
from typing import NamedTuple

import regex

RULE = "words and signs"  # results are kept with the name of the rule that made them; earlier ones have none
# Written without spaces between words: MLQA (Lewis et al., 2020) compares Chinese by character.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_LETTER = r"[\p{L}\p{M}\p{N}\p{Pc}]"
_UNSIGNED = r"""(?<![\p{L}\p{M}\p{N}\p{Pe}'’"”])"""  # where a hyphen joins nothing
_TOKEN = regex.compile(
    rf"""
    {_UNSPACED}\p{{M}}*
    # A word or a number: -3.5, 1,000, 2024-01-02, it's, U.S.
    | (?: {_UNSIGNED}-(?=\d) )?
      (?: (?!{_UNSPACED}){_LETTER}
        | (?<=\d)[.,:/\u2010\u2011\u2013-](?=\d)
        | (?<={_LETTER})['’.](?={_LETTER})
      )+
    # A sign before what it belongs to: -x, !x.
    | {_UNSIGNED}[-!](?=[\p{{L}}\p{{N}}=(])
    # A difference or a product: x - 5, 2 * 3, 2*3, 2**3.
    | (?<=[\p{{L}}\p{{N}})]\s)[-*](?=\s[\p{{L}}\p{{N}}(]) (?<!\p{{L}}\s[-](?=\s\p{{L}}))
    | (?<=[\p{{L}}\p{{N}})])\*{{1,2}}(?=[\p{{L}}\p{{N}}(])
    | !(?==)
    # C#, #1, but not the mark of a heading.
    | (?<=\S)\# | \#(?=\S)
    | \p{{Regional_Indicator}}{{2}}
    # Symbols have a meaning: emoji, currencies, > and <; so have a few that Unicode counts as punctuation.
    | (?![`´¨]) [\p{{S}}%&@/\\§‰]
    """,
    regex.VERBOSE,
)
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0x2212: 0x2D}
_UNSEEN = regex.compile(r"[\p{Cf}\uFE00-\uFE0F]")


def exact_match(answer: str, reference: str) -> float:
    """1.0 when the texts are equal: around them whitespace does not count, in them nothing but how Unicode
    spells the same character."""
    return float(_spelled(answer) == _spelled(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of words.

    As SQuAD counts (Rajpurkar et al., 2016): neither case nor punctuation count. Unlike there, articles do,
    and so does what has a meaning: signs, decimal points, symbols, emoji. Scripts that are written without
    spaces are compared by character, as in MLQA.
    """
    said, wanted = Counter(words(answer)), Counter(words(reference))
    if not said or not wanted:
        return exact_match(answer, reference)
    common = sum((said & wanted).values())
    return 2 * common / (sum(said.values()) + sum(wanted.values()))


def words(text: str) -> list[str]:
    """What is compared."""
    plain = unicodedata.normalize("NFC", _UNSEEN.sub("", text).translate(_WIDE)).casefold()
    return [_plain(found) for found in _TOKEN.findall(plain)]


def _plain(word: str) -> str:
    return regex.sub(r"['’]|(?<!\d)\.|\.(?!\d)", "", word) or word


def _spelled(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


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
