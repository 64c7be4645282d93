"""The probe: two steps at the worst length, on the real base, to sharpen a forecast."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from core.config import RunConfig
from core.errors import StudioError
from core.jobs.worker import Job
from core.models import adapters, hardware, load
from core.training import cost, forecast, plan, shape
from core.training.forecast import Forecast
from core.training.plan import Plan
from core.training.prepare import prepare

WARM_UP, STEPS = 3, 3  # steps: kernels are compiled and graphs recorded in the first ones


def measure(config: RunConfig, job: Job) -> Forecast:
    """The forecast of a recipe, with memory and speed as they were measured.

    :raises StudioError: when the recipe cannot be measured, as when it needs more memory than there is
    :raises StopRequested: when the user pressed Stop
    """
    prepared = prepare(config)
    job.check_stop()
    lengths = [len(row.input_ids) for row in prepared.train]
    supervised = sum(row.supervised for row in prepared.train)
    before = forecast.forecast(config, len(lengths), lengths, supervised)
    if before.problem:
        raise StudioError("memory", before.problem)
    job.report("loading the base model", 0.2)
    hardware.forget_peak()
    model = adapters.attach(load.base_model(config), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    job.check_stop()
    job.report("measuring", 0.6)
    return sharpened(config, model, before, lengths, supervised, job.check_stop)


def sharpened(
    config: RunConfig,
    model: Any,
    before: Forecast,
    lengths: Sequence[int],
    supervised: int,
    check_stop: Callable[[], None] = lambda: None,
) -> Forecast:
    """``before`` with what steps of its plan take on a model with its adapter; the model's weights stay."""
    work = plan.workload(config, lengths, supervised)
    worst = forecast.worst_pack(work, before.plan)
    seconds, peak = _steps(config, model, before.plan, worst, check_stop)
    rates = cost.rates(hardware.device().value, hardware.compute_dtype(config).value)
    expected = cost.step_seconds(shape.shape(config), before.plan.way, rates, [worst], 1.0)
    return forecast.sharpened(before, config, peak, seconds / expected, len(lengths))


def _steps(
    config: RunConfig, model: Any, chosen: Plan, worst: Sequence[int], check_stop: Callable[[], None]
) -> tuple[float, float]:
    """Seconds of a step of one worst pack, and the peak memory in bytes."""
    import torch

    from core.training.engine import engine
    from core.training.packing import pack

    made, _ = engine(model, config, chosen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(chosen.optimizer, trained)
    device = torch.device(hardware.device().value)
    rows = [{"input_ids": [5] * length, "labels": [5] * length} for length in worst]
    whole = pack(rows, chosen.multiple).to(device)
    taken = []
    for number in range(WARM_UP + STEPS):
        check_stop()
        begun = time.perf_counter()
        made.step(whole, 1 / len(whole.targets))
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UP:
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2], hardware.memory_used_gb() * hardware.GIB


def _optimizer(planned: str, parameters: list[Any]) -> Any:
    import bitsandbytes
    import torch

    # A learning rate of nothing: what is measured is time and memory.
    name = hardware.optimizer(planned)
    if name.startswith("adamw_torch"):
        return torch.optim.AdamW(parameters, lr=0.0, fused=name.endswith("fused"))
    kind = bitsandbytes.optim.PagedAdamW8bit if name.startswith("paged") else bitsandbytes.optim.AdamW8bit
    return kind(parameters, lr=0.0)
