"""Several processes that compute one run, each on a device of its own.

Every process prepares the same steps and computes its share of each step's rows; gradients are summed
once a step, so the result is that of one process but for the order of sums. transformers and accelerate
are not told: to them each process is alone. ``accelerate launch`` or torchrun starts the processes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

# What launchers tell a process, and what transformers would read it from.
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
PATIENCE = timedelta(hours=2)  # the others wait while the first one writes a checkpoint


@dataclass(frozen=True)
class World:
    """:param rank: of this process, from 0; the first one alone writes"""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Any) -> Any:
        """A tensor becomes its sum over all processes, in place."""
        if self.size > 1:
            import torch

            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_all(self, tensors: Sequence[Any]) -> None:
        """`sum` for many tensors, sent as one."""
        if self.size == 1 or not tensors:
            return
        import torch

        if len(tensors) == 1:
            self.sum(tensors[0])
            return
        flat = self.sum(torch.cat([tensor.flatten() for tensor in tensors]))
        place = 0
        for tensor in tensors:
            tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
            place += tensor.numel()

    def from_first(self, value: Any) -> Any:
        """What the first process has, for all of them. :param value: anything that can be pickled"""
        if self.size == 1:
            return value
        import torch

        held = [value]
        torch.distributed.broadcast_object_list(held)
        return held[0]

    def shares(self, lengths: Sequence[int]) -> list[list[int]]:
        """Row numbers for each process, so that all have about as many tokens."""
        shares: list[list[int]] = [[] for _ in range(self.size)]
        filled = [0] * self.size
        order = range(len(lengths))
        for number in sorted(order, key=lambda number: -lengths[number]) if self.size > 1 else order:
            least = filled.index(min(filled))
            shares[least].append(number)
            filled[least] += lengths[number]
        return [sorted(share) for share in shares]


_current = World()


def current() -> World:
    """The world of this process; alone unless it has joined one."""
    return _current


def join() -> World:
    """Enter the world that a launcher has started this process in. Call it before torch sees a GPU."""
    global _current
    told = {name: os.environ.pop(name) for name in TOLD if name in os.environ}
    size = int(told.get("WORLD_SIZE", "1"))
    if size == 1 or _current.size > 1:
        return _current
    rank, local = int(told["RANK"]), int(told["LOCAL_RANK"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local] if visible else str(local)
    import torch

    cuda = torch.cuda.is_available()
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        else "env://",
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    _current = World(rank, size)
    return _current


def leave() -> None:
    """Leave it again."""
    global _current
    if _current.size > 1:
        import torch

        torch.distributed.destroy_process_group()
        _current = World()
