"""Rows that say nearly the same: MinHash finds candidates, their real shingles decide.

Memory is some 600 bytes a row however long the rows are: their text waits on the disk until a
candidate has to be compared.
"""

import re
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from plumbline.data.rows import Row
from plumbline.errors import StudioError
from plumbline.home import folder

SHINGLE = 5
BANDS, BAND = 16, 8  # a pair that is 0.85 alike shares a band in 99 of 100 cases, one at 0.5 in 6
BLOCK = 1_000_000  # characters that are signed at once
LONGEST = 50_000  # characters; a longer row is compared by its beginning
COMPARED = 1000  # groups that a row is compared with; only rows of boilerplate share bands with more
DOUBT = 0.12  # four standard deviations of what a signature says about the similarity
SEED = 1
READ, PAIRED = 0.7, 0.75  # of all the work, once rows are read and once candidates are known
# Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)

Report = Callable[[str, float | None], None]
CheckStop = Callable[[], None]


@dataclass(frozen=True)
class Near:
    """How many rows were looked at, and groups of row numbers, the largest group first.

    A group is in row order, and each of its rows is at least as similar to the first as was asked.
    """

    rows: int
    groups: list[list[int]]


def near_duplicates(
    texts: Iterable[tuple[int, str]],
    threshold: float = 0.85,
    report: Report | None = None,
    check_stop: CheckStop | None = None,
    total: int = 0,
) -> Near:
    """Groups of rows that are near-duplicates, exact duplicates included. The same rows, the same groups.

    Similarity is the Jaccard index of shingles: five words, or five characters where a script has
    no spaces, without regard to case and white space. Rows without text are not compared.

    :param texts: row numbers and texts, read once
    :param threshold: at least 0.7; pairs below that are rarely candidates
    :param report: called with a phase and the share of all the work that is done, at most twice a second
    :param check_stop: called as often; raises to end the work
    :param total: how many rows there are, where it is known: then reading has a share too
    """
    progress = _Progress(report, check_stop, total)
    with tempfile.TemporaryFile(dir=folder("staging")) as file:
        stored_texts = _StoredTexts(file)
        hashes, marks = _signed(texts, stored_texts, progress)
        groups = _grouped(_buckets(hashes, progress), marks, stored_texts, threshold, progress)
    numbered = [[stored_texts.numbers[position] for position in group] for group in groups]
    return Near(stored_texts.seen, sorted(numbered, key=lambda group: (-len(group), group[0])))


def text_of(row: Row) -> str:
    """What a stored row is compared by: everything that is said in it but by the system.

    One long system message in all rows would make every two of them alike.
    """
    if "text" in row:
        return row["text"]
    turns = [*row["messages"], *row.get("rejected", [])]
    return "\n".join(turn["content"] for turn in turns if turn["role"] != "system" and turn["content"])


def shingles(text: str) -> list[str]:
    """What a row is compared by, repeats included; empty for a row without text."""
    words = text[:LONGEST].casefold().split()
    joined = " ".join(words)
    if len(_UNSPACED.findall(joined)) * 3 > len(joined) or len(joined) > 40 * len(words):
        return [joined[i : i + SHINGLE] for i in range(max(1, len(joined) - SHINGLE + 1))] if words else []
    if len(words) < SHINGLE:
        return [joined] if words else []
    return list(map(" ".join, zip(words, words[1:], words[2:], words[3:], words[4:], strict=False)))


class _Progress:
    """Where progress goes and Stop comes from, at most twice a second."""

    def __init__(self, report: Report | None, check_stop: CheckStop | None, total: int) -> None:
        self.report, self.check_stop, self.total, self.last = report, check_stop, total, 0.0

    def __call__(self, phase: str, share: float | None = None) -> None:
        if time.monotonic() - self.last < 0.5:
            return
        self.last = time.monotonic()
        if self.check_stop:
            self.check_stop()
        if self.report:
            self.report(phase, share)


class _StoredTexts:
    """Texts on the disk; a row's place is its turn among the rows that have text."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seen = file, 0
        self.numbers, self.ends = array("q"), array("q", [0])
        self.leader_shingles = lru_cache(maxsize=128)(self.shingles)

    def add(self, number: int, text: str) -> None:
        data = text[:LONGEST].encode()
        self.file.write(data)
        self.ends.append(self.ends[-1] + len(data))
        self.numbers.append(number)

    def shingles(self, position: int) -> frozenset[str]:
        self.file.seek(self.ends[position])
        return frozenset(shingles(self.file.read(self.ends[position + 1] - self.ends[position]).decode()))


def _signed(
    texts: Iterable[tuple[int, str]], stored_texts: _StoredTexts, progress: _Progress
) -> tuple[Any, Any]:
    """Hashes of every row's signature, and its marks: the lowest byte of each of its numbers.

    :returns: uint64, rows by one for the whole and one for each band; uint8, rows by BANDS * BAND
    """
    import numpy as np

    parts, block, size = [_sign([])], list[list[str]](), 0
    for number, text in texts:
        stored_texts.seen += 1
        text = text.encode("utf-8", "replace").decode()  # half surrogates cannot be hashed
        if row_shingles := shingles(text):
            stored_texts.add(number, text)
            block.append(row_shingles)
            size += len(text)
        if size >= BLOCK or len(block) >= BLOCK // 500:
            parts.append(_sign(block))
            block, size = [], 0
        progress(
            f"reading rows: {stored_texts.seen:,}",
            READ * min(1, stored_texts.seen / progress.total) if progress.total else None,
        )
    parts.append(_sign(block))
    return np.concatenate([hashes for hashes, _ in parts]), np.concatenate([marks for _, marks in parts])


def _sign(block: list[list[str]]) -> tuple[Any, Any]:
    import numpy as np

    try:
        from rensa import RMinHash
    except ImportError as error:
        raise StudioError("near-duplicates", "the package rensa is missing", "pip install rensa") from error
    rows = RMinHash.digest_matrix_from_token_sets(block, BANDS * BAND, SEED).to_rows()
    signed = np.array(rows, np.uint64).reshape(-1, BANDS, BAND)
    mixed = np.random.default_rng(SEED).integers(1, 2**63, BAND, np.uint64) * np.uint64(2) + np.uint64(1)
    bands = (signed * mixed).sum(axis=2, dtype=np.uint64)
    whole = bands.sum(axis=1, dtype=np.uint64, keepdims=True)
    marks = (signed & np.uint64(255)).astype(np.uint8).reshape(-1, BANDS * BAND)
    return np.concatenate([whole, bands], axis=1), marks


def _buckets(hashes: Any, progress: _Progress) -> Any:
    """Which rows share a hash: a number for each that several rows have, else -1. int32, as hashes."""
    import numpy as np

    buckets = np.full(hashes.shape, -1, np.int32)
    total = 0
    for column in range(hashes.shape[1]):
        progress("finding candidates", READ + (PAIRED - READ) * column / hashes.shape[1])
        _, hash_number, count = np.unique(hashes[:, column], return_inverse=True, return_counts=True)
        shared = count > 1
        number = np.where(shared, np.cumsum(shared) - 1 + total, -1).astype(np.int32)
        buckets[:, column] = number[hash_number]
        total += int(shared.sum())
    return buckets


def _grouped(
    buckets: Any, marks: Any, stored_texts: _StoredTexts, threshold: float, progress: _Progress
) -> list[list[int]]:
    """Each row joins the earliest group whose first row it resembles, or begins one."""
    import numpy as np

    # The firsts of groups in a bucket are a chain: the newest, and for each the one before it.
    newest = np.full(int(buckets.max(initial=-1)) + 1, -1, np.int32)
    before = np.full(buckets.shape, -1, np.int32)
    groups: dict[int, list[int]] = {}
    candidates = np.flatnonzero((buckets >= 0).any(axis=1)).tolist()
    for turn, position in enumerate(candidates):
        share = PAIRED + (1 - PAIRED) * turn / len(candidates)
        progress(f"comparing candidates: {turn:,} of {len(candidates):,}", share)
        shared = [(column, bucket) for column, bucket in enumerate(buckets[position].tolist()) if bucket >= 0]
        firsts = _firsts(shared, newest, before)
        if firsts:
            likely = (marks[firsts] == marks[position]).mean(axis=1) >= threshold - DOUBT
            firsts = [first for first, like in zip(firsts, likely.tolist(), strict=True) if like]
        joined = _resembled(position, firsts, stored_texts, threshold)
        if joined is not None:
            groups[joined].append(position)
            continue
        groups[position] = [position]
        for column, bucket in shared:
            before[position, column] = newest[bucket]
            newest[bucket] = position
    return [group for group in groups.values() if len(group) > 1]


def _firsts(shared: list[tuple[int, int]], newest: Any, before: Any) -> list[int]:
    """Firsts of groups that share a hash with a row; those that share all of it come before others."""
    firsts: set[int] = set()
    for column, bucket in shared:
        position = int(newest[bucket])
        while position >= 0 and len(firsts) < COMPARED:
            firsts.add(position)
            position = int(before[position, column])
    return sorted(firsts)


def _resembled(position: int, firsts: list[int], stored_texts: _StoredTexts, threshold: float) -> int | None:
    mine = stored_texts.shingles(position) if firsts else frozenset[str]()
    for first in firsts:
        theirs = stored_texts.leader_shingles(first)
        # The smaller set bounds what can be common, which is quicker than to count it.
        if min(len(mine), len(theirs)) < threshold * max(len(mine), len(theirs)):
            continue
        common = len(mine & theirs)
        if common >= threshold * (len(mine) + len(theirs) - common):
            return first
    return None
