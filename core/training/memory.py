"""Memory that ran out: told with numbers, and with the next smaller settings of the planner."""

import re
from typing import Any

from core.config import RunConfig
from core.errors import StudioError
from core.models import hardware
from core.models.hardware import GIB
from core.training import cost, plan, shape
from core.training.plan import Outcome, Workload

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
