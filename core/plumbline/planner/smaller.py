"""Memory that ran out: less at once where that is enough, else told with numbers and smaller settings."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.engine.plan import Plan
from plumbline.errors import StudioError
from plumbline.models import hardware
from plumbline.models.hardware import GIB
from plumbline.planner import cost, model_size, plan
from plumbline.planner.plan import Outcome, Workload

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


def explained(error: BaseException, where: str, expected: Outcome, settings: dict[str, Any]) -> OutOfMemory:
    """:param where: as in ``at step 6``
    :param expected: the plan that was followed
    :param settings: see `smaller`
    """
    kind = "GPU memory" if hardware.device().value == "cuda" else "memory"
    requested, free = _WANTED.search(str(error)), _FREE.search(str(error))
    needs = _bytes(requested) if requested else float(expected.peak_bytes)
    left = _bytes(free) if free else plan.free_bytes()
    about = "" if requested else "about "
    return OutOfMemory(
        f"out of {kind} {where}: {about}{_gib(needs)} were needed, {_gib(left)} free", settings
    )


def smaller(config: RunConfig, work: Workload, failed: Outcome) -> dict[str, Any]:
    """The next smaller settings: at most halfway from what ran out down to the least that there is.

    What ran out, the planner believed to fit. So these settings leave it no way that needs more, however
    much memory it believes in. Shorter rows only when no way of computing these needs notably less.

    :returns: those that change, by key; empty when none is small enough
    """
    rates = cost.device_speed(hardware.device().value, hardware.compute_dtype(config).value)
    sizes = model_size.model_size_of(config)
    floor = cost.peak_bytes(sizes, failed.plan.way, 1, 1)  # what no rows take
    length = work.longest
    while length >= 16:
        cut = work.cut(length)

        def planned(candidate: RunConfig, cut: Workload = cut) -> Outcome:
            return plan.choose(candidate, sizes, cut, rates, math.inf)

        tried = [(candidate, planned(candidate)) for candidate in _frugal(config, failed.plan, cut.longest)]
        smallest = min(outcome.peak_bytes for _, outcome in tried)
        if smallest - floor < NOTABLY * (failed.peak_bytes - floor):
            half = (smallest + failed.peak_bytes) / 2
            fitting = [(candidate, outcome) for candidate, outcome in tried if outcome.peak_bytes <= half]
            best, planned_outcome = min(fitting, key=lambda candidate: candidate[1].step_seconds)
            change = {} if length == work.longest else {"training.max_length": length}
            return change | _needed(
                config, best, planned_outcome.plan, lambda candidate: planned(candidate).plan
            )
        length //= 2
    return {}


def _frugal(config: RunConfig, failed: Plan, longest: int) -> list[RunConfig]:
    """The recipe with packs of the same tokens and of fewer, computed in every way that it can pin."""
    tokens = {max(16, longest, failed.micro_batch_tokens >> halvings) for halvings in range(4)}
    ways, optimizers = ("none", "selective", "full", "offload"), {failed.optimizer, "adamw_8bit"}
    return [
        _with(config, dict(zip(PINS, pinned, strict=True)))
        for pinned in itertools.product(sorted(tokens, reverse=True), ways, sorted(optimizers))
    ]


def _needed(
    config: RunConfig, pinned: RunConfig, target: Plan, planned: Callable[[RunConfig], Plan]
) -> dict[str, Any]:
    """Of what is pinned, what the planner would do otherwise without."""
    for key in reversed(PINS):
        looser = _with(pinned, {key: getattr(config.training, key)})
        if planned(looser).way == target.way:
            pinned = looser
    values = {key: getattr(pinned.training, key) for key in PINS}
    return {
        f"training.{key}": value for key, value in values.items() if value != getattr(config.training, key)
    }


def _with(config: RunConfig, training: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _bytes(match: re.Match[str]) -> float:
    return float(match[1]) * _UNITS[match[2]]


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
