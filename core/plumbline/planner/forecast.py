"""What a run will take: memory, time, disk and cost, before it starts."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.config.steps import intervals, total_steps
from plumbline.engine.plan import Plan
from plumbline.errors import StudioError
from plumbline.models import hardware
from plumbline.models.hardware import GIB, Choice
from plumbline.planner import cost, model_size, parallelism, plan

CHECKPOINT_BYTES = 4.0  # a parameter's, beside the optimizer's states
DISK_STATES = {"adamw_torch": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1}


@dataclass(frozen=True)
class Forecast:
    """:param peak_gib: most memory of torch tensors on the GPU; without one, of the whole process (in GiB, as
        everything named so)
    :param free_gib: what is free there now
    :param disk_gib: checkpoints and artifact
    :param cost: at the recipe's price per hour; None without one
    :param probed: a probe of this recipe on this device has sharpened it
    :param problem: why it cannot fit, and the nearest plan that does; empty when it fits
    :param total_seconds: from Start, at an idle studio, to the end
    :param parts: seconds of what makes it up, by the names of plumbline.planner.figures.PARTS
    :param steps: optimizer steps that it is the forecast of
    """

    peak_gib: float
    free_gib: float
    seconds_per_step: float
    total_seconds: float
    disk_gib: float
    cost: float | None
    probed: bool
    plan: Plan
    problem: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Forecast":
        raw = json.loads(text)
        choices = {name: Choice(*choice) for name, choice in raw["plan"].pop("choices").items()}
        return cls(**raw | {"plan": Plan(**raw["plan"], choices=choices)})


def forecast(config: RunConfig, chosen_rows: int, lengths: Any, supervised: int, held_out: int) -> Forecast:
    """Quick: counts what `plumbline.planner.cost` counts, with the device's measured rates.

    :param chosen_rows: training rows of the whole run's data
    :param lengths: tokens of the training rows, or of a sample of them, cut at max_length
    :param supervised: tokens in the loss of those
    :param held_out: rows that each evaluation measures
    :raises StudioError: when the model's config cannot be had
    """
    load = plan.workload(config, lengths, supervised)
    sizes = model_size.model_size_of(config)
    rates = cost.device_speed(hardware.device().value, hardware.compute_dtype(config).value)
    free, problem = plan.free_bytes(), ""
    try:
        steps = total_steps(config, chosen_rows)
        outcome = parallelism.choose(config, sizes, load, rates, free, steps)
    except StudioError as error:
        problem = error.text
        outcome = plan.smallest(config, sizes, load, rates)
    return of_outcome(config, chosen_rows, outcome, load, held_out, free, problem)


def of_outcome(
    config: RunConfig,
    rows: int,
    outcome: plan.Outcome,
    load: plan.Workload,
    held_out: int,
    free: float | None = None,
    problem: str = "",
) -> Forecast:
    """The forecast of a plan that was chosen.

    :param load: the run's steps, whole
    :param free: bytes; None means what is free now
    """
    sizes = model_size.model_size_of(config)
    free = plan.free_bytes() if free is None else free
    rates = cost.device_speed(hardware.device().value, hardware.compute_dtype(config).value)
    seconds = outcome.step_seconds + parallelism.answering(config, sizes, rates, outcome.plan.processes)
    steps = total_steps(config, rows)
    parts = _parts(config, sizes, rates, outcome.plan, load, held_out, steps) | {"steps": steps * seconds}
    total = sum(parts.values())
    saved = 1 + config.training.keep_checkpoints
    if config.training.load_best_model_at_end:
        saved += 1 + config.training.keep_checkpoints  # see plumbline.training.loop.stopping
    disk = sizes.adapter_parameters * (
        saved * CHECKPOINT_BYTES + config.training.keep_checkpoints * DISK_STATES[outcome.plan.optimizer]
    )
    return Forecast(
        peak_gib=(outcome.peak_bytes + _beside()) / GIB,
        free_gib=free / GIB,
        seconds_per_step=seconds,
        total_seconds=total,
        disk_gib=disk / GIB,
        cost=_cost(config, total),
        probed=False,
        plan=outcome.plan,
        problem=problem,
        parts=parts,
        steps=steps,
    )


def _parts(
    config: RunConfig,
    sizes: model_size.ModelSize,
    rates: cost.DeviceSpeed,
    chosen: Plan,
    load: plan.Workload,
    held_out: int,
    steps: int,
) -> dict[str, float]:
    """Seconds of what comes beside the steps: held-out rows are taken to be as long as those of training."""
    lengths = load.rows(held_out)
    evaluation = cost.evaluation_seconds(
        sizes, chosen.way, rates, plan.packed(chosen, lengths), load.supervised_share
    )
    if config.method.name == "grpo":
        at_once, longest = config.evaluation.batch, config.evaluation.max_new_tokens
        evaluation += cost.answering_seconds(sizes, rates, held_out, at_once, longest)
    every, saves = intervals(config, steps)
    return {
        "loading": cost.loading_seconds(sizes, rates),
        "base": evaluation / chosen.processes,
        # The last step is measured in any case.
        "evaluations": -(-steps // every) * evaluation / chosen.processes,
        "saving": (steps // saves + 1) * cost.saving_seconds(sizes),
    }


def _beside() -> int:
    """Bytes that count beside torch's tensors: on a CPU the process, and what it will import to train."""
    process_bytes = hardware.process_bytes()
    return process_bytes + cost.ON_CPU_LIBRARIES if process_bytes else 0


def sharpened(
    before: Forecast, config: RunConfig, peak_bytes: float, time_factor: float, loading: float
) -> Forecast:
    """A forecast with what a probe has measured.

    :param peak_bytes: of two steps at the worst length
    :param time_factor: measured time of the probe's steps over what was forecast for them
    :param loading: seconds that the base took to be loaded
    """
    rates = cost.device_speed(hardware.device().value, hardware.compute_dtype(config).value)
    # A probe tries no answers.
    answering = parallelism.answering(config, model_size.model_size_of(config), rates, before.plan.processes)
    seconds = (before.seconds_per_step - answering) * time_factor + answering
    parts = {name: before.parts[name] * time_factor for name in ("base", "evaluations")}
    parts |= {"loading": loading, "steps": before.steps * seconds, "saving": before.parts["saving"]}
    total = sum(parts.values())
    return replace(
        before,
        peak_gib=(peak_bytes + (cost.ON_CPU_LIBRARIES if hardware.process_bytes() else 0)) / GIB,
        seconds_per_step=seconds,
        total_seconds=total,
        cost=_cost(config, total),
        probed=True,
        parts=parts,
    )


def _cost(config: RunConfig, seconds: float) -> float | None:
    price = config.training.price_per_hour
    return None if price is None else math.ceil(seconds * price / 36) / 100
