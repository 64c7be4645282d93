"""Rows whose answers are judged, as packs: both answers of a row in one, shared by processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plumbline.batches.packing import NOTHING, Packer, Step, pack, split
from plumbline.data.tokens.encode import Encoded
from plumbline.distributed.process_group import current


@dataclass(frozen=True)
class JudgedStep(Step):
    """A Step that also says which rows all processes have together.

    :param numbers: of those rows, process by process and pack by pack
    :param first: the place there where this process's begin
    """

    numbers: tuple[int, ...] = ()
    first: int = 0

    def joined(self, row_values: Sequence[torch.Tensor], device: Any) -> torch.Tensor:
        """What all processes have found of their rows, in the order of ``numbers``.

        :param row_values: for each of this process's packs one number a row, float32
        """
        own = torch.cat([torch.zeros(0, device=device), *row_values])
        if current().size == 1:
            return own
        whole = own.new_zeros(len(self.numbers))
        whole[self.first : self.first + len(own)] = own
        return current().sum(whole)


class Judged(Packer):
    """Collates numbers of rows into packs in which the two answers of a pair stand side by side.

    :param others: for each row its worse answer, or for KTO its prompt with another row's answer
    :param paired: both answers of a row go into its pack, else only its own
    """

    def __init__(self, packer: Packer, rows: list[Encoded], others: list[Encoded], paired: bool) -> None:
        super().__init__(packer.limit, packer.multiple, packer.even)
        self.rows, self.others, self.paired = rows, others, paired

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Step]:
        numbers = [int(row["number"]) for row in rows]
        return {"step": self.shared(numbers, self.sides, self.limit, self.multiple)}

    @property
    def sides(self) -> list[list[Encoded]]:
        """What stands in a row's pack."""
        return [self.rows, self.others] if self.paired else [self.rows]

    def shared(
        self, numbers: Sequence[int], sides: list[list[Encoded]], limit: int, multiple: int = 1
    ) -> JudgedStep:
        """This process's share of some rows as packs, each with the numbers of its rows.

        :param sides: of each row
        :param limit: tokens of a pack, at most
        """
        lengths = lengths_of(numbers, sides)
        units: list[list[tuple[int, ...]]] = []  # of every process
        for share in current().shares(lengths):
            bins = split([lengths[position] for position in share], limit, full=multiple > 1)
            units.append([tuple(numbers[share[position]] for position in bin_) for bin_ in bins])
        mine = units[current().rank]
        packs = [
            pack([_line(side[number]) for number in unit for side in sides], multiple, limit) for unit in mine
        ]
        if self.even:
            missing = max(map(len, units)) - len(mine)
            packs, mine = packs + [pack([NOTHING])] * missing, mine + [()] * missing
        ordered = [[number for unit in some for number in unit] for some in units]
        return JudgedStep(
            tuple(packs),
            tokens=sum(lengths),
            supervised=sum(side[number].supervised for number in numbers for side in sides),
            rows=tuple(mine),
            numbers=tuple(number for some in ordered for number in some),
            first=sum(map(len, ordered[: current().rank])),
        )


def lengths_of(numbers: Sequence[int], sides: list[list[Encoded]]) -> list[int]:
    return [sum(len(side[number].input_ids) for side in sides) for number in numbers]


def _line(row: Encoded) -> dict[str, Any]:
    return {"input_ids": row.input_ids, "labels": row.labels}
