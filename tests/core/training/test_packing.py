"""Rows laid end to end: which rows share a pack, and what a pack says of every token."""

import math
import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy
import pytest
import torch

from plumbline.batches.packing import TILE, Pack, Packer, Step, pack, split
from plumbline.data.tokens.encode import IGNORED, Encoded
from tests import tiny


def cases(count: int = 300) -> Iterator[tuple[list[int], int]]:
    """Row lengths as they come, and a limit that some of them may be longer than."""
    draw = random.Random(7)
    for _ in range(count):
        longest = draw.choice((8, 100, 2000))
        lengths = [draw.randint(1, longest) for _ in range(draw.randint(1, 40))]
        yield lengths, draw.randint(1, 3 * longest)


def sizes(lengths: list[int], bins: list[list[int]]) -> list[int]:
    return [sum(lengths[row] for row in one) for one in bins]


@pytest.mark.parametrize("full", [False, True])
def test_every_row_is_in_one_bin_and_only_a_long_row_is_over_the_limit(full: bool) -> None:
    over = 0
    for lengths, limit in cases():
        bins = split(lengths, limit, full)
        assert sorted(row for one in bins for row in one) == list(range(len(lengths)))
        assert all(one == sorted(one) and one for one in bins)
        for one, size in zip(bins, sizes(lengths, bins), strict=True):
            assert size <= limit or len(one) == 1
            over += size > limit
        # A bin more than needed in two would be a pack more than needed in two.
        assert len(bins) <= 2 * math.ceil(sum(lengths) / limit) + sum(length > limit for length in lengths)
    assert over > 100


@pytest.mark.parametrize("full", [False, True])
def test_a_row_longer_than_the_limit_is_alone(full: bool) -> None:
    bins = split([5, 50, 5, 60], 20, full)
    assert [1] in bins and [3] in bins and len(bins) == (3 if full else 4)
    assert split([50], 20, full) == [[0]]
    assert split([], 20, full) == []
    assert split([20, 20], 20, full) == [[0], [1]]
    assert split([10, 10], 20, full) == [[0, 1]]


def test_balanced_bins_get_about_as_much_each() -> None:
    for lengths, limit in cases():
        if max(lengths) > limit:
            continue
        found = sizes(lengths, split(lengths, limit))
        # The longest row goes first, so the least filled bin is never behind by more than one row.
        assert max(found) - min(found) <= max(lengths)


def test_full_bins_are_at_least_as_full() -> None:
    fewer = more = 0
    for lengths, limit in cases():
        balanced, full = split(lengths, limit), split(lengths, limit, full=True)
        fewer, more = fewer + (len(full) < len(balanced)), more + (len(full) > len(balanced))
        found = sorted(sizes(lengths, full))
        if len(found) > 1:
            # No two would have fitted into one.
            assert found[0] + found[1] > limit
        if len(full) == len(balanced) > 1:
            assert max(found) >= max(sizes(lengths, balanced)) - 0.05 * limit
    assert fewer > 20 and more < 0.2 * fewer


def test_a_pack_says_where_every_row_is_and_what_it_teaches() -> None:
    rows = [
        {"input_ids": [11, 12, 13], "labels": [11, 12, 13]},  # its first token is predicted by nothing
        {"input_ids": [21], "labels": [21]},
        {"input_ids": [31, 32, 33, 34], "labels": [IGNORED, IGNORED, 33, 34]},
        {"input_ids": [41, 42], "labels": [IGNORED, IGNORED]},
    ]
    one = pack(rows)
    assert one.lengths == (3, 1, 4, 2) and one.tokens == 10 and one.longest == 4
    assert one.ids.tolist() == [11, 12, 13, 21, 31, 32, 33, 34, 41, 42]
    assert one.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 1]
    assert one.boundaries.tolist() == [0, 3, 4, 8, 10]
    assert one.learned.tolist() == [0, 1, 5, 6]
    assert one.targets.tolist() == [12, 13, 33, 34]
    kinds = {"ids": torch.int64, "positions": torch.int64, "learned": torch.int64, "targets": torch.int64}
    kinds |= {"boundaries": torch.int32, "tiles": torch.int32}
    assert {name: getattr(one, name).dtype for name in kinds} == kinds


def test_learned_and_targets_are_the_next_tokens_of_each_row() -> None:
    draw = random.Random(3)
    for _ in range(60):
        rows = tiny.rows(tuple(draw.randint(1, 30) for _ in range(draw.randint(1, 6))), draw.randint(0, 99))
        for row in rows:
            row["labels"] = [IGNORED if draw.random() < 0.4 else token for token in row["input_ids"]]
        wanted, start = [], 0
        for row in rows:
            length = len(row["labels"])
            wanted += [(start + i - 1, row["labels"][i]) for i in range(1, length) if row["labels"][i] >= 0]
            start += length
        one = pack(rows)
        assert list(zip(one.learned.tolist(), one.targets.tolist(), strict=True)) == wanted
        encoded = [Encoded(row["input_ids"], row["labels"], [], 0) for row in rows]
        assert len(one.targets) == sum(row.supervised for row in encoded)


def test_arrays_and_lists_make_the_same_pack() -> None:
    rows = tiny.rows((7, 3, 12))
    arrays: Any = [{name: numpy.asarray(value) for name, value in row.items()} for row in rows]
    for name, value in tensors(pack(rows)).items():
        assert torch.equal(value, getattr(pack(arrays), name))


@pytest.mark.parametrize("multiple", [2, 16, 100])
def test_what_fills_a_pack_up_is_a_row_that_teaches_nothing(multiple: int) -> None:
    for lengths in ((7,), (7, 9), (16,), (50, 50), (99, 2)):
        plain, filled = tiny.packed(lengths), pack(tiny.rows(lengths), multiple)
        fill = -sum(lengths) % multiple
        assert filled.tokens % multiple == 0 and filled.tokens - plain.tokens == fill < multiple
        assert filled.lengths == (*lengths, *([fill] if fill else []))
        assert torch.equal(filled.learned, plain.learned) and torch.equal(filled.targets, plain.targets)
        assert torch.equal(filled.ids[: plain.tokens], plain.ids)
        assert filled.positions[plain.tokens :].tolist() == list(range(fill))
        assert filled.boundaries.tolist() == numpy.cumsum([0, *filled.lengths]).tolist()


def test_tiles_cover_every_token_of_every_row_once() -> None:
    draw = random.Random(5)
    for multiple in (1, 128):
        for _ in range(40):
            lengths = tuple(draw.choice((1, 63, 64, 65, 128, 200, 517)) for _ in range(draw.randint(1, 7)))
            one = pack(tiny.rows(lengths), multiple)
            seen = torch.zeros(one.tokens, dtype=torch.int64)
            for row, start in one.tiles.tolist():
                assert start % TILE == 0 and start < one.lengths[row]
                begin, end = one.boundaries[row], one.boundaries[row + 1]
                seen[begin + start : min(begin + start + TILE, end)] += 1
            assert seen.eq(1).all()
            starts = one.tiles[:, 1].tolist()
            assert starts == sorted(starts, reverse=True)


@pytest.mark.parametrize("multiple", [1, 32])
def test_a_packer_counts_the_rows_tokens_and_not_what_packs_are_filled_with(multiple: int) -> None:
    lengths = (30, 5, 61, 17, 100, 2)
    rows = tiny.rows(lengths)
    step = Packer(128, multiple)(rows)["step"]
    assert step.tokens == sum(lengths)
    assert step.supervised == sum(len(pack([row]).targets) for row in rows)
    assert step.supervised == sum(len(one.targets) for one in step.packs)
    assert all(one.tokens <= 128 and one.tokens % multiple == 0 for one in step.packs)
    fills = sum(one.tokens for one in step.packs) - step.tokens
    assert (fills > 0) == (multiple > 1)
    got = []
    for one in step.packs:
        got += [part.tolist() for part in one.ids.split(one.lengths)]
    wanted = [row["input_ids"] for row in rows]
    assert sorted(part for part in got if part in wanted) == sorted(wanted)
    assert all(set(part) == {0} for part in got if part not in wanted)


def test_rows_keep_their_order_within_a_pack() -> None:
    rows = tiny.rows((9, 4, 20, 4))
    (one,) = Packer(64)(rows)["step"].packs
    assert one.lengths == (9, 4, 20, 4)


def test_moving_a_step_keeps_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Packer(20)(tiny.rows((9, 14, 4)))["step"]
    assert len(step.packs) > 1
    moved = step.to("meta")
    same = step.to("cpu")
    # Without CUDA there is no pinned memory: a copy stands for it.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    pinned = step.pin_memory()
    for other in (moved, same, pinned):
        assert isinstance(other, Step) and (other.tokens, other.supervised) == (step.tokens, step.supervised)
        for mine, true in zip(other.packs, step.packs, strict=True):
            assert isinstance(mine, Pack) and mine.lengths == true.lengths
            for name, value in tensors(true).items():
                got = getattr(mine, name)
                assert got.shape == value.shape and got.dtype == value.dtype
                assert got.device.type == "meta" if other is moved else torch.equal(got, value)
    assert pinned.packs[0].tiles.data_ptr() != step.packs[0].tiles.data_ptr()


def tensors(one: Pack) -> dict[str, torch.Tensor]:
    return {field.name: getattr(one, field.name) for field in fields(one) if field.name != "lengths"}
