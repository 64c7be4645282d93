"""The planner: how to compute a run's steps on this device, and why.

A plan changes memory and speed, never the result: the rows of a step stay the same, and so does
their loss.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy

from plumbline.batches.packing import fill_of, split
from plumbline.config.schema import RunConfig
from plumbline.config.steps import total_steps
from plumbline.distributed.process_group import ProcessGroup
from plumbline.engine.plan import Plan, StepConfig
from plumbline.errors import StudioError
from plumbline.models import hardware
from plumbline.models.hardware import GIB, Choice
from plumbline.planner import cost
from plumbline.planner.cost import DeviceSpeed
from plumbline.planner.model_size import ModelSize

USED_SHARE = 0.92  # of the free memory: the allocator and the driver need the rest
SIZES = (2048, 4096, 8192, 16384, 32768, 65536)  # tokens of a pack worth trying
CPU_TOKENS = 4096  # beyond this a pack brings a CPU nothing
DRAWN, EPOCHS = 48, 3  # steps looked at for the time; epochs whose steps are looked at for the memory
WHOLE_STATES = 1.05  # the time that float32 optimizer states may cost against 8-bit ones
NEAR = 1.01  # a plan this close to the fastest is as good, if it needs less memory


@dataclass(frozen=True)
class Workload:
    """Steps as they will come, each as the lengths of its rows, those with most tokens first.

    :param supervised_share: of the tokens, those in the loss
    """

    steps: tuple[Any, ...]
    longest: int
    supervised_share: float

    @property
    def largest_step(self) -> int:
        return int(self.steps[0].sum())

    @property
    def some(self) -> list[Any]:
        """A few steps of all sizes."""
        positions = numpy.linspace(0, len(self.steps) - 1, min(len(self.steps), DRAWN)).astype(int)
        return [self.steps[position] for position in positions]

    def rows(self, count: int) -> Any:
        """Lengths of so many rows like those of the steps."""
        return numpy.resize(numpy.concatenate(self.some), count)

    def shared(self, processes: int) -> "Workload":
        """The steps of one of so many processes, that with most to do."""
        if processes == 1:
            return self
        shares = (ProcessGroup(0, processes).shares(step.tolist()) for step in self.steps)
        steps = (
            max((step[share] for share in parts), key=lambda part: int(part.sum()))
            for step, parts in zip(self.steps, shares, strict=True)
        )
        ordered = tuple(sorted(steps, key=lambda step: -int(step.sum())))
        return Workload(ordered, self.longest, self.supervised_share)

    def cut(self, length: int) -> "Workload":
        """The same steps with rows of at most this length."""
        steps = (numpy.minimum(step, length) for step in self.steps)
        ordered = tuple(sorted(steps, key=lambda step: -int(step.sum())))
        return Workload(ordered, min(self.longest, length), self.supervised_share)


@dataclass(frozen=True)
class Outcome:
    """A plan with what it is expected to take."""

    plan: Plan
    peak_bytes: int
    step_seconds: float


def workload(config: RunConfig, lengths: Any, supervised: int) -> Workload:
    """:param lengths: tokens of the training rows in their order, cut at max_length
    :param supervised: tokens in the loss of all of them
    """
    rows = numpy.asarray(lengths)
    batch = config.training.effective_batch
    if config.method.name == "grpo":  # what is learned is tried answers, not those that rows bring
        supervised = config.evaluation.max_new_tokens * len(rows)
    share = min(1.0, supervised / max(1, int(rows.sum())))
    per_epoch = -(-len(rows) // batch)
    total = min(total_steps(config, len(rows)), EPOCHS * per_epoch)
    if config.method.name == "grpo":
        rows, batch = numpy.repeat(rows, config.method.answers), batch * config.method.answers
    steps: list[Any] = []
    for epoch in range(-(-total // per_epoch)):
        taken = rows[order(config, len(rows), epoch)]
        steps += [taken[start : start + batch] for start in range(0, len(rows), batch)]
    ordered = tuple(sorted(steps[:total], key=lambda step: -int(step.sum())))
    return Workload(ordered, int(rows.max()), share)


def order(config: RunConfig, rows: int, epoch: int) -> Any:
    """Row numbers in the order that the trainer takes them in an epoch (accelerate's seeded sampler)."""
    import torch

    if config.data.order != "shuffled":
        return numpy.arange(rows)
    generator = torch.Generator().manual_seed(config.training.seed + epoch)
    return torch.randperm(rows, generator=generator).numpy()


def choose(
    config: RunConfig, shape: ModelSize, load: Workload, rates: DeviceSpeed, free_bytes: float
) -> Outcome:
    """The fastest plan that fits in the free memory, with what the recipe pins.

    :raises StudioError: when none fits; it names the nearest that would
    """
    estimates = [estimate(plan, shape, load, rates) for plan in _plans(config, shape, load, rates)]
    usable = free_bytes * USED_SHARE
    fitting = [each for each in estimates if each.peak_bytes <= usable]
    if not fitting:
        least = min(each.peak_bytes for each in estimates)
        raise StudioError(
            "memory",
            f"{_gib(least)} is the least for these settings, {_gib(usable)} can be used",
            _nearest(config, shape, load, rates, usable),
        )
    fastest = min(each.step_seconds for each in fitting)
    # Rounded states change what is learned, if little: they are for when whole ones cost much time.
    whole = [each for each in fitting if each.plan.optimizer == "adamw_torch"]
    if whole and min(each.step_seconds for each in whole) <= WHOLE_STATES * fastest:
        fitting = whole
        fastest = min(each.step_seconds for each in fitting)
    near = [each for each in fitting if each.step_seconds <= NEAR * fastest]
    best = min(near, key=lambda each: each.peak_bytes)
    return Outcome(_explained(config, load, shape, best), best.peak_bytes, best.step_seconds)


def smallest(config: RunConfig, shape: ModelSize, load: Workload, rates: DeviceSpeed) -> Outcome:
    """Of the plans that the recipe allows, the one that needs least memory."""
    estimates = [estimate(plan, shape, load, rates) for plan in _plans(config, shape, load, rates)]
    least = min(estimates, key=lambda each: each.peak_bytes)
    return Outcome(_explained(config, load, shape, least), least.peak_bytes, least.step_seconds)


def estimate(plan: Plan, shape: ModelSize, load: Workload, rates: DeviceSpeed) -> Outcome:
    """What a plan takes: most memory of any drawn step, mean time of all."""
    seconds = []
    for step in load.some:
        packs = packed(plan, step)
        seconds.append(cost.step_seconds(shape, plan.way, rates, packs, load.supervised_share))
    largest = sum(worst_pack(plan, load))
    supervised = round(largest * min(1.0, load.supervised_share * 1.2))
    peak = cost.peak_bytes(shape, plan.way, largest, supervised)
    return Outcome(plan, peak, sum(seconds) / len(seconds))


def packed(plan: Plan, step: Any) -> list[list[int]]:
    """Row lengths of a step's packs, with what they are filled up with; see Packer."""
    step = step.tolist()
    bins = split(step, plan.micro_batch_tokens, full=plan.multiple > 1)
    packs = [[step[row] for row in bin_] for bin_ in bins]
    for pack in packs:
        if fill := fill_of(sum(pack), plan.multiple, plan.micro_batch_tokens):
            pack.append(fill)
    return packs


def worst_pack(plan: Plan, load: Workload) -> list[int]:
    """Row lengths as long as rows get, as many as no pack will have more of."""
    whole = load.largest_step + fill_of(load.largest_step, plan.multiple)
    size = max(load.longest, min(plan.micro_batch_tokens, whole))
    rows, rest = divmod(size, load.longest)
    return [load.longest] * rows + [rest] * (rest > 0)


def _plans(config: RunConfig, shape: ModelSize, load: Workload, rates: DeviceSpeed) -> list[Plan]:
    """Every plan worth a look that the recipe allows."""
    training = config.training
    pinned = training.micro_batch_tokens
    if pinned is not None:
        sizes = {max(pinned, load.longest)}
    else:
        most = load.largest_step if rates.cuda else CPU_TOKENS
        sizes = {max(load.longest, min(size, most)) for size in (*SIZES, most)}
    if training.optimizer != "auto":
        # Paged memory needs CUDA.
        optimizers = [training.optimizer if rates.cuda else training.optimizer.removeprefix("paged_")]
    else:
        optimizers = ["adamw_torch", "adamw_8bit"] if rates.cuda else ["adamw_torch"]
    plans = []
    for size in sizes:
        for layers_kept, offload in _checkpointing(training.gradient_checkpointing, shape, rates.cuda):
            for optimizer in optimizers:
                way = StepConfig(size, layers_kept, offload, optimizer)
                graphs = cost.graphed(shape, way, rates)
                plans.append(Plan(size, layers_kept, shape.layers, offload, optimizer, graphs))
    return plans


def _checkpointing(setting: str, shape: ModelSize, cuda: bool) -> list[tuple[int, bool]]:
    """Layers kept and offload, as the setting allows them."""
    layers = shape.layers
    if setting == "none":
        return [(layers, False)]
    if setting == "full":
        return [(0, False)]
    if setting == "offload":
        return [(0, cuda)]
    some = sorted({layers * eighth // 8 for eighth in range(1, 8)} - {0, layers})
    if shape.refusal:
        some = []  # transformers recomputes all layers or none
    if setting == "selective":
        return [(layers_kept, False) for layers_kept in some] or [(0, False)]
    if not cuda:
        return [(layers, False)]
    return [(layers, False), *((layers_kept, False) for layers_kept in some), (0, False), (0, True)]


def _explained(config: RunConfig, load: Workload, shape: ModelSize, best: Outcome) -> Plan:
    plan, training = best.plan, config.training
    packs = [len(packed(plan, step)) for step in load.some]
    mean = sum(packs) / len(packs)
    choices = {
        "micro-batch": Choice(
            f"{plan.micro_batch_tokens:,} tokens",
            f"about {mean:.1f} a step" + (", set in the recipe" if training.micro_batch_tokens else ""),
        ),
        "checkpointing": _checkpointing_choice(training.gradient_checkpointing, plan, shape),
        "optimizer": _optimizer_choice(training.optimizer, plan.optimizer),
        "training path": Choice("autograd", shape.refusal)
        if shape.refusal
        else Choice("hand-written decoder", "graphs replay its launches" if plan.graphs else "plain LoRA"),
    }
    return replace(plan, choices=choices)


def _optimizer_choice(setting: str, planned: str) -> Choice:
    device = hardware.optimizer(planned)
    if setting.startswith("paged") and not device.startswith("paged"):
        return Choice(device, "paged memory needs CUDA, so the 8-bit AdamW without paging")
    if setting != "auto":
        return Choice(device, "set in the recipe")
    fits = planned == "adamw_torch"
    return Choice(device, "its states fit" if fits else "8-bit states leave room for activations")


def _checkpointing_choice(setting: str, plan: Plan, shape: ModelSize) -> Choice:
    if setting == "selective" and plan.layers_without_recompute == 0:
        return Choice("full", "through autograd all layers are computed again, or none")
    if setting == "offload" and not plan.offload:
        return Choice("full", "without a GPU the layers' inputs are in host memory anyway")
    why = "set in the recipe" if setting != "auto" else ""
    if plan.layers_without_recompute == plan.layers:
        return Choice("none", why or "all activations fit")
    if plan.layers_without_recompute:
        return Choice(
            "selective", why or f"activations of {plan.layers_without_recompute} of {plan.layers} layers fit"
        )
    if plan.offload:
        return Choice("offload", why or "memory is short: layer inputs wait in host memory")
    return Choice("full", why or "memory is short: every layer is computed again")


def _nearest(config: RunConfig, shape: ModelSize, load: Workload, rates: DeviceSpeed, usable: float) -> str:
    """The nearest settings that fit: pins taken back first, then shorter rows."""
    free = config.training.model_copy(
        update={"micro_batch_tokens": None, "gradient_checkpointing": "auto", "optimizer": "auto"}
    )
    relaxed = config.model_copy(update={"training": free})
    estimates = [estimate(plan, shape, load, rates) for plan in _plans(relaxed, shape, load, rates)]
    least = min(estimates, key=lambda each: each.peak_bytes)
    if least.peak_bytes <= usable:
        way = _checkpointing_choice("auto", least.plan, shape).value
        return (
            f"{_gib(least.peak_bytes)} is enough with micro_batch_tokens "
            f"{least.plan.micro_batch_tokens}, gradient_checkpointing {way}, optimizer "
            f"{least.plan.optimizer}, or leave all three to the planner."
        )
    length = load.longest
    while length > 64:
        length //= 2
        shorter = load.cut(length)
        plans = [estimate(plan, shape, shorter, rates) for plan in _plans(relaxed, shape, shorter, rates)]
        needed = min(each.peak_bytes for each in plans)
        if needed <= usable:
            return f"With max_length {length} it needs {_gib(needed)}; leave the rest to the planner."
    if shape.base_bytes < usable / 2:
        return "Lower lora.r: the adapter with its gradients and optimizer states is what is large."
    return f"The base alone takes {_gib(shape.base_bytes)}: take a smaller one."


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


def free_bytes() -> float:
    """Memory that a run may use: the GPU's free and torch's unused, or the host's available."""
    import psutil
    import torch

    if hardware.device().value != "cuda":
        return float(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info()
    return float(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
