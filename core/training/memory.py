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
SHARE = 0.75  # of what the plan that failed was expected to need


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
    """The next smaller settings: the planner's choice for three quarters of what the failed plan needs.

    Shorter rows only when no way of computing these fits in that.

    :returns: those that change, by key; empty when none is small enough
    """
    rates = cost.rates(hardware.device().value, hardware.compute_dtype(config).value)
    sizes = shape.shape(config)
    pins = {"micro_batch_tokens": None, "gradient_checkpointing": "auto", "optimizer": "auto"}
    training = config.training.model_copy(update=pins)
    relaxed = config.model_copy(update={"training": training})
    room = SHARE * failed.peak_bytes / plan.USED_SHARE
    length = work.longest
    while length >= 16:
        try:
            found = plan.choose(relaxed, sizes, work.cut(length), rates, room).plan
        except StudioError:
            length //= 2
            continue
        change = {} if length == work.longest else {"training.max_length": length}
        return change | _changes(found, failed.plan)
    return {}


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
