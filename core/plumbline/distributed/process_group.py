"""Several processes that compute one run, each on a device of its own.

Every process has the same steps and computes its share of each step's rows; gradients are summed once a
step, so the result is that of one process but for the order of sums. transformers and accelerate are not
told: to them each process is alone. The first process starts the others
(plumbline.training.ranks.launcher), or ``accelerate launch`` or torchrun has started all of them.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from plumbline.errors import StudioError

# What launchers tell a process, and what transformers would read it from.
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
MEETING = "PLUMBLINE_MEETING"  # a file in which processes of one machine find each other
PATIENCE = timedelta(hours=2)  # the others wait while the first one writes a checkpoint


@dataclass(frozen=True)
class ProcessGroup:
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
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def broadcast(self, value: Any) -> Any:
        """What the first process has, for all of them. :param value: anything that can be pickled"""
        if self.size == 1:
            return value
        import torch

        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def broadcast_flag(self, yes: bool) -> bool:
        """What the first process says; a safe point at which all do the same."""
        return bool(self._of_all(float(yes), "broadcast"))

    def any(self, yes: bool) -> bool:
        """Whether any process says yes."""
        return bool(self._of_all(float(yes), "max"))

    def all_reduce_min(self, value: float) -> float:
        """The smallest of the values that the processes have."""
        return self._of_all(value, "min")

    def _of_all(self, value: float, how: str) -> float:
        if self.size == 1:
            return value
        import torch

        number = torch.tensor(value, dtype=torch.float64)  # on the host: no GPU is waited for
        if how == "broadcast":
            torch.distributed.broadcast(number, 0)
        else:
            kind = torch.distributed.ReduceOp
            torch.distributed.all_reduce(number, kind.MAX if how == "max" else kind.MIN)
        return float(number)

    def all_gather(self, value: Any) -> list[Any]:
        """What each process has, by rank. :param value: anything that can be pickled"""
        if self.size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def match(self, tensors: Sequence[Any]) -> None:
        """Tensors become those of the first process, in place."""
        if self.size > 1:
            import torch

            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

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


_current = ProcessGroup()
_place: dict[str, str] | None = None  # what a launcher has told this process
_abandoned = False


def current() -> ProcessGroup:
    """The world of this process; alone unless it has joined one."""
    return _current


def rank_and_size() -> tuple[int, int]:
    """The rank that a launcher gave to this process, and how many it has started; (0, 1) without one.

    Call it before torch sees a GPU: from then on this process sees its own alone, and no library sees
    that there are others.
    """
    global _place
    if _place is None:
        _place = {name: os.environ.pop(name) for name in TOLD if name in os.environ}
        if (local := _place.get("LOCAL_RANK")) is not None and _size() > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else []
            if visible is None:
                os.environ["CUDA_VISIBLE_DEVICES"] = local
            elif len(names) > int(
                local
            ):  # else they are hidden, or too few: see plumbline.training.run.build
                os.environ["CUDA_VISIBLE_DEVICES"] = names[int(local)]
            elif names != ["-1"]:
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return int(_place.get("RANK", "0")), _size()


def _size() -> int:
    return int((_place or {}).get("WORLD_SIZE", "1"))


def init() -> ProcessGroup:
    """Enter the world that a launcher, or the first process, has started this process in.

    :raises StudioError: when it was abandoned
    """
    rank, size = rank_and_size()
    if size == 1 or _current.size > 1:
        return _current
    if _abandoned:
        raise StudioError("the launched processes", "ended with the run before", "Launch them again.")
    if meeting := os.environ.get(MEETING):
        return init_from_file(meeting, rank, size)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    return _enter("env://" if agent else f"tcp://{address}:{port}", rank, size)


def init_from_file(path: str, rank: int, size: int) -> ProcessGroup:
    """Enter a world of one machine, whose processes open no port to others.

    :param path: of a file that none of them has opened before
    """
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    return _enter(f"file://{path}", rank, size)


def _enter(method: str, rank: int, size: int) -> ProcessGroup:
    global _current
    import torch

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=method, rank=rank, world_size=size, timeout=PATIENCE
    )
    # It would say in every process that it does not spread anything itself.
    logging.getLogger("transformers.training_args").setLevel(logging.ERROR)
    _current = ProcessGroup(rank, size)
    return _current


def dismiss() -> None:
    """In the first process: the others are told that there is nothing more to do, and all leave."""
    _current.broadcast(None)
    destroy()


def destroy() -> None:
    """Leave it again."""
    global _current
    if _current.size > 1:
        import torch

        torch.distributed.destroy_process_group()
        _current = ProcessGroup()


def abort() -> None:
    """Forget a world whose other processes have gone, or may be anywhere in their work."""
    global _current, _abandoned
    _current, _abandoned = ProcessGroup(), True
