"""Memory that ran out: less at once where that is enough, else told with numbers and smaller settings."""

import itertools
import math
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
PINS = ("micro_batch_tokens", "gradient_checkpointing", "optimizer")
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
    :param retries: False where others wait in the middle of an attempt, so that it cannot begin again
    """

    limit: int
    of: str
    event: Callable[[str, str], None]
    any_of: Callable[[bool], bool] = lambda ran: ran
    retries: bool = True

    def run(self, doing: str, attempt: Callable[[int], T], least: int, most: int) -> T:
        """What ``attempt`` gives with at most so many at once.

        :param doing: as in ``the evaluation at step 4``
        :param least: less than this at once changes nothing any more
        :param most: there are no more than these
        """
        while self.retries:
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
        return attempt(self.limit)


def _free_unused() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
    """The next smaller settings: at most halfway from what ran out down to the least that there is.

    What ran out, the planner believed to fit. So these settings leave it no way that needs more, however
    much memory it believes in. Shorter rows only when no way of computing these needs notably less.

    :returns: those that change, by key; empty when none is small enough
    """
    rates = cost.rates(hardware.device().value, hardware.compute_dtype(config).value)
    sizes = shape.shape(config)
    floor = cost.peak_bytes(sizes, failed.plan.way, 1, 1)  # what no rows take
    length = work.longest
    while length >= 16:
        cut = work.cut(length)

        def planned(one: RunConfig, cut: Workload = cut) -> Outcome:
            return plan.choose(one, sizes, cut, rates, math.inf)

        tried = [(one, planned(one)) for one in _frugal(config, failed.plan, cut.longest)]
        smallest = min(outcome.peak_bytes for _, outcome in tried)
        if smallest - floor < NOTABLY * (failed.peak_bytes - floor):
            half = (smallest + failed.peak_bytes) / 2
            fitting = [(one, outcome) for one, outcome in tried if outcome.peak_bytes <= half]
            best, found = min(fitting, key=lambda one: one[1].step_seconds)
            change = {} if length == work.longest else {"training.max_length": length}
            return change | _needed(config, best, found.plan, lambda one: planned(one).plan)
        length //= 2
    return {}


def _frugal(config: RunConfig, failed: plan.Plan, longest: int) -> list[RunConfig]:
    """The recipe with packs of the same tokens and of fewer, computed in every way that it can pin."""
    tokens = {max(16, longest, failed.micro_batch_tokens >> halvings) for halvings in range(4)}
    ways, optimizers = ("none", "selective", "full", "offload"), {failed.optimizer, "adamw_8bit"}
    return [
        _with(config, dict(zip(PINS, pinned, strict=True)))
        for pinned in itertools.product(sorted(tokens, reverse=True), ways, sorted(optimizers))
    ]


def _needed(
    config: RunConfig, pinned: RunConfig, wanted: plan.Plan, planned: Callable[[RunConfig], plan.Plan]
) -> dict[str, Any]:
    """Of what is pinned, what the planner would do otherwise without."""
    for key in reversed(PINS):
        looser = _with(pinned, {key: getattr(config.training, key)})
        if planned(looser).way == wanted.way:
            pinned = looser
    values = {key: getattr(pinned.training, key) for key in PINS}
    return {
        f"training.{key}": value for key, value in values.items() if value != getattr(config.training, key)
    }


def _with(config: RunConfig, training: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _bytes(found: re.Match[str]) -> float:
    return float(found[1]) * _UNITS[found[2]]


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
