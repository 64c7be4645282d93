"""The held-out loss of a run, through the engine that trains it: in smaller packs when memory runs out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from plumbline.batches.packing import Packer, pack, split
from plumbline.data.tokens.encode import Encoded
from plumbline.distributed.process_group import current
from plumbline.engine.select import Engine
from plumbline.evaluation.loss import HeldOutLoss, weighted
from plumbline.jobs.job import Job
from plumbline.models import out_of_memory


@dataclass
class HeldOut:
    """:param sources: the dataset of each row
    :param packer: of the steps: a pack here takes no more memory than one of theirs
    """

    rows: list[Encoded]
    sources: list[str]
    engine: Engine
    packer: Packer
    check_stop: Callable[[], None]
    job: Job
    device: Any

    def __post_init__(self) -> None:
        limit = min(self.packer.limit, sum(len(row.input_ids) for row in self.rows))
        any_of, retries = current().any, not self.packer.even
        self.at_once = out_of_memory.OomBackoff(limit, "tokens", self.job.event, any_of, retries)

    def loss(self, step: int) -> HeldOutLoss:
        """:param step: that the weights are of
        :raises StopRequested: when the user pressed Stop
        """
        lengths = [len(row.input_ids) for row in self.rows]
        doing = f"the evaluation at step {step}"
        sums = self.at_once.run(doing, self.sums_within, max(lengths), sum(lengths))
        if current().size > 1:
            total = torch.tensor([sums[name] for name in sorted(sums)], dtype=torch.float64)
            sums = dict(zip(sorted(sums), current().sum(total).tolist(), strict=True))
        return weighted(sums)

    def sums_within(self, limit: int) -> dict[str, list[float]]:
        """In packs of at most so many tokens: this process's summed losses and their tokens, by source."""
        rows = [(row, source) for row, source in zip(self.rows, self.sources, strict=True) if row.supervised]
        sums = {source: [0.0, 0.0] for _, source in rows}
        lengths = [len(row.input_ids) for row, _ in rows]
        bins = split(lengths, limit)
        # A sharded base is gathered by all processes at once: each computes as many packs.
        rounds = -(-len(bins) // current().size) * current().size
        for number in range(current().rank, rounds, current().size):
            self.check_stop()
            some = [rows[place] for place in bins[min(number, len(bins) - 1)]]
            held = pack([{"input_ids": row.input_ids, "labels": row.labels} for row, _ in some])
            held = held.to(self.device)
            losses = self.engine.losses(held).double()
            if number >= len(bins):
                continue
            place = torch.bucketize(held.learned, held.boundaries[1:].long(), right=True)
            of_rows = losses.new_zeros(len(some)).index_add_(0, place, losses).tolist()
            for (row, source), loss in zip(some, of_rows, strict=True):
                sums[source][0] += loss
                sums[source][1] += row.supervised
        return sums
