"""Near-duplicates: what is planted is found, what is not alike is not, and Stop is heard."""

import os
import random
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.data.importing import near_duplicates
from plumbline.errors import StopRequested, StudioError


@pytest.fixture(autouse=True)
def _home(workspace: Path) -> None:
    """The texts wait in the workspace's own folder."""


def words(seed: int, count: int = 80) -> list[str]:
    chance = random.Random(seed)
    return [
        "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(count)
    ]


def planted(rows: int = 600) -> list[tuple[int, str]]:
    """Unlike rows, of which every tenth from the fifth on repeats the one before it but for a word."""
    texts = []
    for number in range(rows):
        text = words(number)
        if number % 10 == 5:
            text = words(number - 1)
            text[40] = "changed"
        texts.append((number, " ".join(text)))
    return texts


def alike(first: str, second: str) -> float:
    a, b = set(near_duplicates.shingles(first)), set(near_duplicates.shingles(second))
    return len(a & b) / len(a | b)


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    found = near_duplicates.near_duplicates(planted())
    assert found.rows == 600
    assert found.groups == [[number - 1, number] for number in range(5, 600, 10)]


def test_every_row_of_a_group_is_really_alike() -> None:
    base = words(1, 120)
    texts = [" ".join(base)]
    chance = random.Random(3)
    for _ in range(300):
        text = list(base)
        for _ in range(chance.randint(0, 8)):
            text[chance.randrange(len(text))] = f"other{chance.random()}"
        texts.append(" ".join(text))
    for threshold in (0.85, 0.95):
        found = near_duplicates.near_duplicates(enumerate(texts), threshold)
        assert found.groups and found.groups == sorted(found.groups, key=len, reverse=True)
        for first, *others in found.groups:
            assert all(alike(texts[first], texts[other]) >= threshold for other in others)
            assert [first, *others] == sorted([first, *others])
        # Nearly every row that resembles the first row was found to.
        expected = sum(alike(texts[0], text) >= threshold for text in texts)
        group = next(group for group in found.groups if group[0] == 0)
        assert len(group) >= 0.97 * expected


def test_exact_duplicates_count_whatever_their_case_and_white_space() -> None:
    texts = ["Yes.", "no", "  yes. ", "No\n", "YES.", "perhaps not", ""]
    assert near_duplicates.near_duplicates(enumerate(texts)).groups == [[0, 2, 4], [1, 3]]


def test_exact_duplicates_are_found_among_boilerplate() -> None:
    boilerplate = words(0, 60)
    texts = [" ".join(boilerplate + words(number, 14)) for number in range(1, 1500)]
    assert near_duplicates.near_duplicates(enumerate([*texts, texts[0]])).groups == [[0, len(texts)]]


def test_the_numbers_are_the_callers() -> None:
    text = " ".join(words(1))
    found = near_duplicates.near_duplicates([(70, text), (12, "something else"), (3_000_000_000, text)])
    assert found == near_duplicates.Near(3, [[70, 3_000_000_000]])


def test_rows_without_text_are_not_compared() -> None:
    assert near_duplicates.near_duplicates(
        [(0, ""), (1, " \n\t"), (2, ""), (3, "\u3000")]
    ) == near_duplicates.Near(4, [])
    assert near_duplicates.near_duplicates([]) == near_duplicates.Near(0, [])


@pytest.mark.parametrize(("first", "last"), [(0x4E00, 0x9F00), (0x0E01, 0x0E2E), (0x3041, 0x3096)])
def test_scripts_without_spaces_are_compared_by_characters(first: int, last: int) -> None:
    chance = random.Random(1)
    texts = ["".join(chr(chance.randint(first, last)) for _ in range(200)) for _ in range(100)]
    texts.append(texts[17][:100] + "。" + texts[17][101:])
    assert near_duplicates.near_duplicates(enumerate(texts)).groups == [[17, 100]]


def test_a_text_without_any_space_is_compared_by_characters() -> None:
    chance = random.Random(1)
    texts = ["".join(chance.choices(string.ascii_letters, k=3000)) for _ in range(20)]
    texts.append(texts[4][:1500] + "A" + texts[4][1500:])
    assert near_duplicates.near_duplicates(enumerate(texts)).groups == [[4, 20]]


def test_odd_characters_are_no_trouble() -> None:
    texts = ["half \ud800 surrogate", "half \ud800 surrogate", "zero \0 byte", "e\u0301 \U0001f600" * 9]
    assert near_duplicates.near_duplicates(enumerate(texts)).groups == [[0, 1]]


def test_shingles_are_five_words() -> None:
    assert near_duplicates.shingles("A b  C\nd e F") == ["a b c d e", "b c d e f"]
    assert near_duplicates.shingles("one two") == ["one two"] and near_duplicates.shingles(" ") == []
    assert near_duplicates.shingles("中文没有空格") == ["中文没有空", "文没有空格"]


def test_the_same_rows_give_the_same_groups_in_any_process(workspace: Path) -> None:
    script = (
        "from tests.core.data.importing.test_near import planted\n"
        "from plumbline.data.importing.near_duplicates import near_duplicates\n"
        "print(near_duplicates(planted(), 0.8))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                "PLUMBLINE_HOME": str(workspace),
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.environ["PYTHONPATH"],
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{near_duplicates.near_duplicates(planted(), 0.8)}\n"}


def test_stop_ends_the_work_and_leaves_nothing_behind(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def endless() -> Iterator[tuple[int, str]]:
        for number in range(10**9):
            read.append(number)
            yield number, f"row {number} of very many that are all the same but for it"

    def stop() -> None:
        if len(read) > 5000:
            raise StopRequested

    clock = iter(range(10**9))
    monkeypatch.setattr(near_duplicates.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(StopRequested):
        near_duplicates.near_duplicates(endless(), check_stop=stop)
    assert len(read) < 6000
    assert not list((workspace / "staging").iterdir())


@pytest.mark.parametrize("phase", ["reading rows", "finding candidates", "comparing candidates"])
def test_every_phase_is_told_and_can_be_stopped(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr(near_duplicates.time, "monotonic", lambda: float(next(clock)))
    told: list[str] = []

    def report(words: str, share: float | None) -> None:
        told.append(words)
        assert share is None or 0 <= share <= 1

    def stop() -> None:
        if told and told[-1].startswith(phase):
            raise StopRequested

    with pytest.raises(StopRequested):
        near_duplicates.near_duplicates(planted(60), report=report, check_stop=stop)


def test_a_missing_library_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(StudioError, match="rensa is missing"):
        near_duplicates.near_duplicates(planted(10))
