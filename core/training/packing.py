"""Rows of an optimizer step laid end to end: micro-batches without padding.

How rows are packed changes the memory and the speed of a step, never its result: attention stays
within a row, and the loss is over the whole step's supervised tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

from core.data.xray import IGNORED

TILE = 64  # tokens


@dataclass(frozen=True)
class Pack:
    """One micro-batch: ``tokens`` tokens of several rows, one after the other.

    :param ids: tokens, shape ``(tokens,)``, int64
    :param positions: place of each token in its own row, shape ``(tokens,)``, int64
    :param boundaries: where each row begins, and the end of the last, shape ``(rows + 1,)``, int32
    :param lengths: the same as the rows' lengths, on the host
    :param learned: places whose next token is in the loss, ascending, shape ``(supervised,)``, int64
    :param targets: those next tokens, shape ``(supervised,)``, int64
    :param tiles: pairs of a row's number and a token of it, one for each begun TILE tokens of each row,
        shape ``(tiles, 2)``, int32: the work list of the attention kernels
    """

    ids: Any
    positions: Any
    boundaries: Any
    lengths: tuple[int, ...]
    learned: Any
    targets: Any
    tiles: Any

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def to(self, device: Any, non_blocking: bool = False) -> "Pack":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Pack":
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> "Pack":
        tensors = {
            field.name: change(getattr(self, field.name)) for field in fields(self) if field.name != "lengths"
        }
        return Pack(lengths=self.lengths, **tensors)


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step as packs.

    :param tokens: of the rows, without what packs are filled up with
    :param supervised: tokens in the loss
    """

    packs: tuple[Pack, ...]
    tokens: int
    supervised: int

    def to(self, device: Any, non_blocking: bool = False) -> "Step":
        return replace(self, packs=tuple(pack.to(device, non_blocking) for pack in self.packs))

    def pin_memory(self) -> "Step":
        return replace(self, packs=tuple(pack.pin_memory() for pack in self.packs))


class Packer:
    """Collates rows (``input_ids`` and ``labels``) into a Step of packs of at most ``limit`` tokens.

    :param multiple: packs are filled up to a multiple of this many tokens, so that few sizes come
    """

    def __init__(self, limit: int, multiple: int = 1) -> None:
        self.limit, self.multiple = limit, multiple

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Step]:
        lengths = [len(row["input_ids"]) for row in rows]
        bins = split(lengths, self.limit)
        packs = tuple(pack([rows[number] for number in bin_], self.multiple) for bin_ in bins)
        return {"step": Step(packs, sum(lengths), sum(len(one.targets) for one in packs))}


def pack(rows: Sequence[dict[str, list[int]]], multiple: int = 1) -> Pack:
    """Rows laid end to end. A row's first token is predicted by nothing, so it is never a target.

    :param multiple: the pack is filled up to a multiple of this, with a row that nothing is learned from
    """
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    ids = [token for row in rows for token in row["input_ids"]]
    following = [label for row in rows for label in (*row["labels"][1:], IGNORED)]
    if len(ids) % multiple:
        lengths.append(multiple - len(ids) % multiple)
        ids += [0] * lengths[-1]
        following += [IGNORED] * lengths[-1]
    places = torch.tensor(following)
    learned = (places != IGNORED).nonzero().flatten()
    return Pack(
        ids=torch.tensor(ids),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        boundaries=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        lengths=tuple(lengths),
        learned=learned,
        targets=places[learned],
        tiles=torch.tensor(_tiles(lengths), dtype=torch.int32),
    )


def _tiles(lengths: Sequence[int]) -> list[tuple[int, int]]:
    # The last tiles of long rows have most to do: they begin first.
    tiles = [(row, start) for row, length in enumerate(lengths) for start in range(0, length, TILE)]
    return sorted(tiles, key=lambda tile: -tile[1])


def split(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Row numbers in as few bins of at most ``limit`` tokens as this finds, evenly filled.

    Longest first into the emptiest bin. A row longer than ``limit`` gets a bin of its own.
    """
    count = min(len(lengths), max(1, math.ceil(sum(lengths) / limit)))
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for number in order:
            least = filled.index(min(filled))
            bins[least].append(number)
            filled[least] += lengths[number]
        if count == len(lengths) or all(
            size <= limit or len(bin_) == 1 for size, bin_ in zip(filled, bins, strict=True)
        ):
            return [sorted(bin_) for bin_ in bins if bin_]
        count += 1
