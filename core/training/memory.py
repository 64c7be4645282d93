"""Memory that ran out: less at once where that is enough, else told with numbers and smaller settings."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from core.config import RunConfig
from core.errors import StudioError
from core.models import hardware
from core.models.hardware import GIB
from core.training import cost, plan, shape
from core.training.plan import Outcome, Workload
from core.training.world import current

T = TypeVar("T")
# CUDA, cuBLAS, the CPU's allocator and bitsandbytes each have words of their own.
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "status_alloc_failed",
    "cudaerrormemoryallocation",
)
_UNITS = {"bytes": 1, "KiB": 1024, "MiB": 1024**2, "GiB": GIB}
_WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_FREE = re.compile(r"of which ([\d.]+) (bytes|KiB|MiB|GiB) is free")
NOTABLY = 0.95  # of what the rows took: less of a difference would help nobody


class OutOfMemory(StudioError):
    """:param settings: what to start again with, by key of the recipe; empty when nothing smaller is known"""

    def __init__(self, what: str, settings: dict[str, Any]) -> None:
        self.settings = settings
        listed = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in settings.items())
        fix = f"Start again with {listed}." if settings else "Lower lora.r, or take a smaller base."
        super().__init__("", what, fix)


def ran_out(error: BaseException) -> bool:
    """True for every way in which the host's or the GPU's memory is said to be exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@dataclass
class Halving:
    """How much is computed at once: half as much from when memory ran out on.

    :param limit: so many at once
    :param of: what is counted, as in ``tokens``
    :param event: is told when there is less at once, with a level
    :param any_of: from whether it ran out here to whether it ran out in any process that has to compute in
        the same way
    """

    limit: int
    of: str
    event: Callable[[str, str], None]
    any_of: Callable[[bool], bool] = lambda ran: ran

    def run(self, doing: str, attempt: Callable[[int], T], least: int, most: int) -> T:
        """What ``attempt`` gives with at most so many at once.

        :param doing: as in ``the evaluation at step 4``
        :param least: less than this at once changes nothing any more
        :param most: there are no more than these
        """
        while True:
            limit, ran = min(self.limit, most), False
            try:
                found = attempt(self.limit)
            except Exception as error:
                if not ran_out(error):
                    raise
                if limit <= least:
                    self.any_of(True)
                    raise
                ran = True
            if not self.any_of(ran):
                return found
            if limit <= least:
                raise MemoryError("another process ran out of memory")
            # Here the exception is gone, and with it what its frames held.
            _free_unused()
            self.limit = limit // 2
            self.event(
                f"{doing} ran out of memory with {limit:,} {self.of} at once and goes on with {self.limit:,}",
                "warning",
            )


def _free_unused() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def anywhere(ran: bool) -> bool:
    """Whether memory ran out in any of the processes that compute a run: all of them ask at once."""
    import torch

    return bool(current().sum(torch.tensor(float(ran))))


def explained(error: BaseException, where: str, expected: Outcome, settings: dict[str, Any]) -> OutOfMemory:
    """:param where: as in ``at step 6``
    :param expected: the plan that was followed
    :param settings: see `smaller`
    """
    kind = "GPU memory" if hardware.device().value == "cuda" else "memory"
    wanted, free = _WANTED.search(str(error)), _FREE.search(str(error))
    needs = _bytes(wanted) if wanted else float(expected.peak_bytes)
    left = _bytes(free) if free else plan.free_bytes()
    about = "" if wanted else "about "
    return OutOfMemory(
        f"out of {kind} {where}: {about}{_gib(needs)} were needed, {_gib(left)} free", settings
    )


def smaller(config: RunConfig, work: Workload, failed: Outcome) -> dict[str, Any]:
    """The next smaller settings: the planner's choice halfway down to the least that it can do with.

    Shorter rows only when no way of computing these needs notably less.

    :returns: those that change, by key; empty when none is small enough
    """
    rates = cost.rates(hardware.device().value, hardware.compute_dtype(config).value)
    sizes = shape.shape(config)
    floor = cost.peak_bytes(sizes, failed.plan.way, 1, 1)  # what no rows take
    length = work.longest
    while length >= 16:
        cut = work.cut(length)
        least = [
            (one, plan.smallest(one, sizes, cut, rates).peak_bytes) for one in _frugal(config, failed.plan)
        ]
        smallest = min(peak for _, peak in least)
        if smallest - floor < NOTABLY * (failed.peak_bytes - floor):
            half = (smallest + failed.peak_bytes) / 2
            some = [one for one, peak in least if peak <= half]
            found = [plan.choose(one, sizes, cut, rates, half / plan.USED_SHARE) for one in some]
            best = min(found, key=lambda one: one.step_seconds)
            change = {} if length == work.longest else {"training.max_length": length}
            return change | _changes(best.plan, failed.plan)
        length //= 2
    return {}


def _frugal(config: RunConfig, failed: plan.Plan) -> list[RunConfig]:
    """The recipe with packs of the same tokens and of fewer, its layers kept as they fit or not at all."""
    sizes = {max(16, failed.micro_batch_tokens >> halvings) for halvings in range(4)}
    pins = [
        {"micro_batch_tokens": size, "gradient_checkpointing": way, "optimizer": "auto"}
        for size in sorted(sizes, reverse=True)
        for way in ("auto", "full")
    ]
    return [
        config.model_copy(update={"training": config.training.model_copy(update=pinned)}) for pinned in pins
    ]


def _changes(found: plan.Plan, failed: plan.Plan) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if found.micro_batch_tokens != failed.micro_batch_tokens:
        changes["training.micro_batch_tokens"] = found.micro_batch_tokens
    if (found.kept_layers, found.offload) != (failed.kept_layers, failed.offload):
        changes["training.gradient_checkpointing"] = found.choices["checkpointing"].value
    if found.optimizer != failed.optimizer:
        changes["training.optimizer"] = found.optimizer
    return changes


def _bytes(found: re.Match[str]) -> float:
    return float(found[1]) * _UNITS[found[2]]


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
