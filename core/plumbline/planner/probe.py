"""The probe: a few steps on the real base, the worst among them, to sharpen a forecast."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from plumbline.batches.prepare import prepare
from plumbline.checkpoints import base_digest
from plumbline.config.schema import RunConfig
from plumbline.data.tokens.encode import IGNORED
from plumbline.engine.plan import Plan
from plumbline.errors import StudioError
from plumbline.jobs.job import Job
from plumbline.models import adapters, hardware, load
from plumbline.planner import cost, forecast, model_size, plan
from plumbline.planner.forecast import Forecast

STEPS = 3  # as they will come


def measure(config: RunConfig, job: Job) -> Forecast:
    """The forecast of a recipe, with memory and speed as they were measured.

    :raises StudioError: when the recipe cannot be measured, as when it needs more memory than there is
    :raises StopRequested: when the user pressed Stop
    """
    begun = time.perf_counter()
    prepared = prepare(config)
    job.check_stop()
    lengths, supervised = prepared.lengths, prepared.supervised
    before = forecast.forecast(config, len(lengths), lengths, supervised, len(prepared.held_out))
    if before.problem:
        raise StudioError("", before.problem.removesuffix("."))
    if before.plan.sharded:
        raise StudioError("", "a base that is spread over several GPUs is not measured in advance")
    job.report("loading the base model", 0.2)
    hardware.forget_peak()
    model = adapters.attach(load.base_model(config), config)
    digest = _seconds(lambda: base_digest.base_digest(model))  # a run takes it once more at its end
    loading = time.perf_counter() - begun + digest
    job.check_stop()
    job.report("measuring", 0.6)
    return sharpened(config, model, before, lengths, supervised, loading, job.check_stop)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def sharpened(
    config: RunConfig,
    model: Any,
    before: Forecast,
    lengths: Sequence[int],
    supervised: int,
    loading: float,
    check_stop: Callable[[], None] = lambda: None,
) -> Forecast:
    """``before`` with what steps of its plan take on a model with its adapter; the model's weights stay.

    :param loading: seconds that the base took to be loaded
    """
    work = plan.workload(config, lengths, supervised).shared(before.plan.processes)
    steps = [plan.packed(before.plan, step) for step in work.some[:: -(-len(work.some) // STEPS)]]
    seconds, peak = _run(config, model, before.plan, work, steps, check_stop)
    rates = cost.device_speed(hardware.device().value, hardware.compute_dtype(config).value)
    sizes, share = model_size.model_size_of(config), work.supervised_share
    expected = [cost.step_seconds(sizes, before.plan.way, rates, packs, share) for packs in steps]
    return forecast.sharpened(before, config, peak, seconds / sum(expected), loading)


def _run(
    config: RunConfig,
    model: Any,
    chosen: Plan,
    work: plan.Workload,
    steps: list[list[list[int]]],
    check_stop: Callable[[], None],
) -> tuple[float, float]:
    """Seconds of all the steps after a warm-up, and the peak memory in bytes, a worst step included."""
    import torch

    from plumbline.engine.select import engine

    made, _ = engine(model, config, chosen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(chosen.optimizer, trained)
    device = torch.device(hardware.device().value)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    worst = _step([plan.worst_pack(chosen, work)], chosen, 1.0, vocabulary).to(device)
    drawn = [_step(packs, chosen, work.supervised_share, vocabulary).to(device) for packs in steps]
    # Twice the steps themselves: the second time graphs are recorded.
    begun = 0.0
    for number, step in enumerate([worst, *drawn, *drawn, *drawn]):
        check_stop()
        if number == 1 + 2 * len(drawn):
            _wait(device)
            begun = time.perf_counter()
        for batch in step.packs:
            made.step(batch, 1 / step.supervised)
        optimizer.step()
        optimizer.zero_grad()
    _wait(device)
    return time.perf_counter() - begun, hardware.memory_used_gb() * hardware.GIB


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _step(packs: list[list[int]], chosen: Plan, learned: float, vocabulary: int) -> Any:
    """Random rows of these lengths; the last part of each is learned.

    Random, because products of numbers that repeat are quicker: the processor draws less power.
    """
    from plumbline.batches.packing import Step, pack

    random, made = numpy.random.default_rng(0), []
    for lengths in packs:
        learned_counts = [max(2, round(length * learned)) for length in lengths]
        rows = []
        for length, count in zip(lengths, learned_counts, strict=True):
            ids = random.integers(3, vocabulary, length)
            masked = numpy.arange(length) < length - count
            rows.append({"input_ids": ids, "labels": numpy.where(masked, IGNORED, ids)})
        made.append(pack(rows, chosen.multiple, chosen.micro_batch_tokens))
    return Step(tuple(made), sum(map(sum, packs)), sum(len(batch.targets) for batch in made))


def _optimizer(planned: str, parameters: list[Any]) -> Any:
    import bitsandbytes
    import torch

    # A learning rate of nothing: what is measured is time and memory.
    name = hardware.optimizer(planned)
    if name.startswith("adamw_torch"):
        return torch.optim.AdamW(parameters, lr=0.0, fused=name.endswith("fused"))
    kind = bitsandbytes.optim.PagedAdamW8bit if name.startswith("paged") else bitsandbytes.optim.AdamW8bit
    return kind(parameters, lr=0.0)
