"""Rows of an optimizer step laid end to end: micro-batches without padding.

How rows are packed changes the memory and the speed of a step, never its result: attention stays
within a row, and the loss is over the whole step's supervised tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy

from plumbline.data.tokens.encode import IGNORED
from plumbline.distributed.process_group import current

TILE = 64  # tokens
NOTHING = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED]}  # a row that nothing is learned from


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
    """The rows of one optimizer step as packs; where several processes share it, this one's.

    :param tokens: of all its rows, without what packs are filled up with
    :param supervised: tokens of all its rows in the loss
    :param rows: for each pack the numbers of its rows, where something is known of each
    """

    packs: tuple[Pack, ...]
    tokens: int
    supervised: int
    rows: tuple[tuple[int, ...], ...] = ()

    def to(self, device: Any, non_blocking: bool = False) -> "Step":
        return replace(self, packs=tuple(pack.to(device, non_blocking) for pack in self.packs))

    def pin_memory(self) -> "Step":
        return replace(self, packs=tuple(pack.pin_memory() for pack in self.packs))


class Packer:
    """Collates rows (``input_ids`` and ``labels``) into a Step of packs of at most ``limit`` tokens.

    :param multiple: above 1, packs come in few sizes: as full as can be, and filled up to a multiple of this
    :param even: every process that shares the step gets as many packs, be it one of nothing to learn
    """

    def __init__(self, limit: int, multiple: int = 1, even: bool = False) -> None:
        self.limit, self.multiple, self.even = limit, multiple, even

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Step]:
        lengths = [len(row["input_ids"]) for row in rows]
        shares = current().shares(lengths)
        cut = [self._bins([lengths[number] for number in share]) for share in shares]
        mine = [rows[number] for number in shares[current().rank]]
        packs = tuple(
            pack([mine[number] for number in bin_], self.multiple, self.limit) for bin_ in cut[current().rank]
        )
        if self.even:
            packs += (pack([NOTHING]),) * (max(map(len, cut)) - len(packs))
        supervised = sum(int((numpy.asarray(row["labels"][1:]) != IGNORED).sum()) for row in rows)
        return {"step": Step(packs, sum(lengths), supervised)}

    def _bins(self, lengths: Sequence[int]) -> list[list[int]]:
        return split(lengths, self.limit, full=self.multiple > 1)


def pack(rows: Sequence[dict[str, Any]], multiple: int = 1, limit: int | None = None) -> Pack:
    """Rows laid end to end. A row's first token is predicted by nothing, so it is never a target.

    :param rows: each with ``input_ids`` and ``labels``, lists or arrays of one length
    :param multiple: the pack is filled up to a multiple of this, with a row that nothing is learned from
    :param limit: but to no more than this
    """
    import torch

    ids = [numpy.asarray(row["input_ids"], dtype=numpy.int64) for row in rows]
    labels = [numpy.asarray(row["labels"], dtype=numpy.int64) for row in rows]
    lengths = [len(each) for each in ids]
    if fill := fill_of(sum(lengths), multiple, limit):
        lengths.append(fill)
        ids.append(numpy.zeros(fill, numpy.int64))
        labels.append(numpy.full(fill, IGNORED))
    ends = numpy.cumsum(lengths)
    following = numpy.append(numpy.concatenate(labels)[1:], IGNORED)
    following[ends - 1] = IGNORED
    learned = (following != IGNORED).nonzero()[0]
    return Pack(
        ids=torch.from_numpy(numpy.concatenate(ids)),
        positions=torch.from_numpy(numpy.concatenate([numpy.arange(length) for length in lengths])),
        boundaries=torch.from_numpy(numpy.append(0, ends).astype(numpy.int32)),
        lengths=tuple(lengths),
        learned=torch.from_numpy(learned),
        targets=torch.from_numpy(following[learned]),
        tiles=torch.from_numpy(_tiles(lengths)),
    )


def fill_of(tokens: int, multiple: int, limit: int | None = None) -> int:
    """Tokens that a pack of so many is filled up with; see `pack`."""
    fill = -tokens % multiple
    return fill if limit is None else max(0, min(fill, limit - tokens))


def _tiles(lengths: Sequence[int]) -> Any:
    starts = [numpy.arange(0, length, TILE) for length in lengths]
    rows = numpy.repeat(numpy.arange(len(lengths)), [len(each) for each in starts])
    tiles = numpy.stack([rows, numpy.concatenate(starts)], axis=1).astype(numpy.int32)
    # The last tiles of long rows have most to do: they begin first.
    return tiles[numpy.argsort(-tiles[:, 1], kind="stable")]


def split(lengths: Sequence[int], limit: int, full: bool = False) -> list[list[int]]:
    """Row numbers in as few bins of at most ``limit`` tokens as this finds.

    A row longer than ``limit`` gets a bin of its own.

    :param full: fill bins up, so that the last has what is left; else all get about as much
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    if full:
        return _full(lengths, limit, order)
    count = min(len(lengths), max(1, math.ceil(sum(lengths) / limit)))
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


def _full(lengths: Sequence[int], limit: int, order: list[int]) -> list[list[int]]:
    """Longest first, each into the fullest bin that has room (best fit, decreasing)."""
    bins: list[list[int]] = []
    filled: list[int] = []
    for number in order:
        fits = [number_of_bin for number_of_bin, size in enumerate(filled) if size + lengths[number] <= limit]
        if fits:
            number_of_bin = max(fits, key=filled.__getitem__)
            bins[number_of_bin].append(number)
            filled[number_of_bin] += lengths[number]
        else:
            bins.append([number])
            filled.append(lengths[number])
    return [sorted(bin_) for bin_ in bins]
