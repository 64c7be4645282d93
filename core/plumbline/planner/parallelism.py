"""How many processes compute a run, each on a GPU of its own, and whether they share the base."""

import os
from dataclasses import dataclass, replace
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.distributed import gpus, process_group
from plumbline.engine.plan import Plan
from plumbline.errors import StudioError
from plumbline.jobs import mode
from plumbline.models import hardware
from plumbline.models.hardware import GIB, Choice
from plumbline.planner import cost, model_size, plan
from plumbline.planner.cost import DeviceSpeed
from plumbline.planner.model_size import ModelSize
from plumbline.planner.plan import Outcome, Workload

STARTING_SECONDS = 40.0  # until other processes have loaded the base: a short run is quicker without
WORTH = 1.1  # how much quicker more GPUs must be
BETWEEN_BYTES = 0.9 * GIB  # that NCCL takes on each GPU, as seen on four of them
BYTES_A_SECOND = 10e9  # that gradients travel with between GPUs; NVLink is far quicker


@dataclass(frozen=True)
class Processes:
    """:param most: that there may be
    :param fixed: there are as many, whatever is quicker
    """

    most: int
    why: str
    fixed: bool = True


def possible(config: RunConfig) -> Processes:
    """How many processes a run may have here.

    :raises StudioError: when the recipe asks for more GPUs than there are
    """
    machines = config.machines
    _, started = process_group.rank_and_size()
    if started > 1:
        return Processes(started, "as many as were launched")
    if machines.num_machines > 1:
        assert machines.gpus is not None
        return Processes(
            machines.num_machines * machines.gpus,
            f"{machines.gpus} on each of {machines.num_machines} machines",
        )
    if machines.gpus == 1:
        return Processes(1, "set in the recipe")
    cuda = hardware.device().value == "cuda"
    if not mode.in_processes():
        if machines.gpus is not None:
            what = f"asks for {machines.gpus} processes, but jobs are done in a thread here"
            raise StudioError("machines.gpus", what, "Set PLUMBLINE_WORKER=process.")
        return Processes(1, "jobs are done in a thread here; PLUMBLINE_WORKER=process takes more")
    if machines.gpus is not None:
        there = len(gpus.visible())
        if cuda and machines.gpus > there:
            raise StudioError(
                "machines.gpus", f"asks for {machines.gpus}, there are {there} here", "Lower it."
            )
        if not cuda and machines.gpus > (cores := os.cpu_count() or 1):
            what = f"asks for {machines.gpus} processes, but there is no GPU and {cores} cores"
            raise StudioError("machines.gpus", what, "Leave it empty.")
        if cuda and not _can_talk():
            raise StudioError("machines.gpus", "must be 1 where torch has no NCCL", "Leave it empty.")
        return Processes(machines.gpus, "set in the recipe")
    if not cuda:
        return Processes(1, "there is no GPU")
    there, idle = len(gpus.visible()), len(gpus.idle())
    if there > 1 and not _can_talk():
        return Processes(1, "torch has no NCCL here, through which several would talk")
    others = f", {there - idle} in use or of another kind" if idle < there else ""
    return Processes(idle, f"{idle} idle{others}" if there > 1 else "there is one", fixed=False)


def _can_talk() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_nccl_available()


def choose(
    config: RunConfig, sizes: ModelSize, load: Workload, rates: DeviceSpeed, free_bytes: float, steps: int
) -> Outcome:
    """The quickest plan that fits in the free memory of a GPU, on as many of them as are worth it.

    :param load: whole steps
    :param steps: of the whole run
    :raises StudioError: when none fits; it names the nearest that would
    """
    there = possible(config)
    counts = [there.most] if there.fixed else _counts(there.most)
    outcomes: dict[int, Outcome] = {}
    failure: StudioError | None = None
    if config.machines.sharding != "full":
        for count in counts:
            try:
                free = free_bytes - between_bytes(count, rates)
                alone = plan.choose(config, sizes, load.shared(count), rates, free)
            except StudioError as error:
                failure = failure or error
            else:
                outcomes[count] = _on(alone, count, config, sizes, rates)
    if outcomes:
        tried = {count: answering(config, sizes, rates, count) for count in outcomes}
        best = _worth_it(
            {count: outcome.step_seconds + tried[count] for count, outcome in outcomes.items()}, steps
        )
        why = there.why
        if best < there.most and not there.fixed:
            why = f"{there.most} would not be notably quicker"
        return _told(outcomes[best], why, "each holds all of it")
    return _sharded(config, sizes, load, rates, free_bytes, there, failure)


def between_bytes(count: int, rates: DeviceSpeed) -> float:
    """What so many processes take of each GPU to talk."""
    return BETWEEN_BYTES if count > 1 and rates.cuda else 0.0


def answering(config: RunConfig, sizes: ModelSize, rates: DeviceSpeed, processes: int) -> float:
    """Seconds of a step in which answers are tried, shared by so many processes; 0 where none are."""
    if config.method.name != "grpo":
        return 0.0
    answers = -(-config.training.effective_batch // processes) * config.method.answers
    at_once = config.evaluation.batch * config.method.answers
    return cost.answering_seconds(sizes, rates, answers, at_once, config.evaluation.max_new_tokens)


def _counts(most: int) -> list[int]:
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def _on(alone: Outcome, count: int, config: RunConfig, sizes: ModelSize, rates: DeviceSpeed) -> Outcome:
    """An outcome of one process's share as that of all: gradients travel once a step."""
    travel = 0.0 if count == 1 else 8 * sizes.adapter_parameters * (count - 1) / count / BYTES_A_SECOND
    # Processes of one machine share its processor.
    each = (
        alone.step_seconds
        if rates.cuda
        else alone.step_seconds * max(1, count // config.machines.num_machines)
    )
    return replace(alone, plan=replace(alone.plan, processes=count), step_seconds=each + travel)


def _worth_it(step_seconds: dict[int, float], steps: int) -> int:
    """The fewest processes that are about as quick as any number, their start counted.

    :param step_seconds: seconds of a step
    """
    seconds = {
        count: each * steps + (STARTING_SECONDS if count > 1 else 0.0) for count, each in step_seconds.items()
    }
    least = min(seconds.values())
    return min(count for count, taken in seconds.items() if taken <= WORTH * least)


def _told(outcome: Outcome, why: str, base: str) -> Outcome:
    count, cuda = outcome.plan.processes, hardware.device().value == "cuda"
    choices: dict[str, Any] = {}
    if cuda or count > 1:
        choices["GPUs" if cuda else "processes"] = Choice(str(count), why)
    if count > 1:
        choices["base"] = Choice("spread" if outcome.plan.sharded else "whole", base)
    return replace(outcome, plan=replace(outcome.plan, choices=choices | outcome.plan.choices))


def _sharded(
    config: RunConfig,
    sizes: ModelSize,
    load: Workload,
    rates: DeviceSpeed,
    free_bytes: float,
    there: Processes,
    failure: StudioError | None,
) -> Outcome:
    """A plan for a base that is spread over all GPUs, because it must be or the recipe says so."""
    if (why_not := _never_sharded(config, sizes, there)) or config.machines.sharding == "none":
        if failure is not None:
            raise failure
        raise StudioError("machines.sharding", f"cannot be full: {why_not}", "Take auto or none.")
    spread_sizes = replace(sizes, base_bytes=model_size.sharded_bytes(sizes, there.most))
    free = free_bytes - between_bytes(there.most, rates)
    alone = plan.choose(config, spread_sizes, load.shared(there.most), rates, free)
    alone = replace(alone, plan=spread(alone.plan))
    why = "set in the recipe" if config.machines.sharding == "full" else "no GPU here holds all of it"
    whole = _on(alone, there.most, config, sizes, rates)
    return _told(whole, there.why, f"each holds a part of every layer: {why}")


def spread(chosen: Plan) -> Plan:
    """A plan whose base is spread: what is gathered between layers is not recorded in graphs."""
    if not chosen.graphs:
        return replace(chosen, sharded=True)
    path = {
        "training path": Choice(chosen.choices["training path"].value, "layers are gathered as they come")
    }
    return replace(chosen, sharded=True, graphs=False, choices=chosen.choices | path)


def _never_sharded(config: RunConfig, sizes: ModelSize, there: Processes) -> str:
    """Why a base cannot be spread; empty when it can."""
    if there.most == 1:
        return "there is one GPU to hold the base" if there.fixed else f"there is one GPU ({there.why})"
    if sizes.refusal:
        return f"only the hand-written decoder does it, and {sizes.refusal}"
    if not sizes.packed_bytes:
        return f"only a 4-bit base is spread, and quantisation is {sizes.quantisation} here"
    if config.method.name == "grpo":
        return "grpo tries answers, each GPU on its own"
    return ""
