"""What a run will take: sizes from a config alone, figures that survive JSON, and the measurement."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.batches.prepare import prepare
from plumbline.config import schema
from plumbline.config.steps import total_steps
from plumbline.engine.plan import StepConfig
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.models import adapters, hardware, load
from plumbline.models.hardware import GIB
from plumbline.planner import cost, figures, forecast, measurements, model_size, plan
from plumbline.planner import probe as probing
from plumbline.planner.cost import DeviceSpeed
from plumbline.planner.forecast import CHECKPOINT_BYTES, DISK_STATES, Forecast
from plumbline.training import assembly
from plumbline.worker import measure as jobs
from plumbline.worker.worker import work_on
from tests import tiny
from tests.core.planner.test_plan import SHAPE
from tests.runs import recipe

LENGTHS = list(range(20, 120))
SUPERVISED = sum(LENGTHS) // 2
CPU, GPU = DeviceSpeed(1e11, 1e10, 1e-6, False), DeviceSpeed(7e14, 4e12, 6e-6, True)


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is always as fast, with 8 GiB free."""
    monkeypatch.setattr(cost, "device_speed", lambda device, dtype: CPU)
    monkeypatch.setattr(plan, "free_bytes", lambda: 8.0 * GIB)


def quick(config: Any = None, rows: int = len(LENGTHS)) -> Forecast:
    return forecast.forecast(config or recipe(), rows, LENGTHS, SUPERVISED, 8)


def test_a_forecast_is_the_same_after_json(known_rates: None) -> None:
    for config in (recipe(), recipe(training={"price_per_hour": 2.5, "micro_batch_tokens": 256})):
        one = quick(config)
        assert Forecast.from_json(one.to_json()) == one
        assert {type(choice) for choice in one.plan.choices.values()} == {hardware.Choice}
    other = replace(one, problem="memory: short", probed=True)
    assert Forecast.from_json(other.to_json()) == other != one


def test_time_is_that_of_all_that_one_waits_for(known_rates: None) -> None:
    one = quick(recipe(training={"max_steps": 40}))
    assert one.parts["steps"] == pytest.approx(40 * one.seconds_per_step) and one.seconds_per_step > 0
    config = recipe(training={"max_steps": None, "epochs": 3})
    # The lengths may be a sample of the rows.
    whole = quick(config, rows=1000)
    assert total_steps(config, 1000) == 375
    assert whole.parts["steps"] == pytest.approx(375 * whole.seconds_per_step)
    assert set(whole.parts) == set(figures.PARTS) and all(seconds > 0 for seconds in whole.parts.values())
    assert whole.total_seconds == pytest.approx(sum(whole.parts.values()))
    # Two evaluations take twice as long as one, of twice the rows likewise.
    often = quick(recipe(training={"max_steps": 40, "eval_steps": 1}))
    assert often.parts["evaluations"] == pytest.approx(40 * often.parts["base"])
    config = recipe(training={"max_steps": 40})
    more = forecast.forecast(config, len(LENGTHS), LENGTHS, SUPERVISED, 16)
    assert more.parts["base"] == pytest.approx(2 * one.parts["base"], rel=0.2)
    assert whole.free_gib == 8.0 and not whole.probed and not whole.problem


def test_cost_is_time_at_the_price_rounded_up_to_a_hundredth(known_rates: None) -> None:
    assert quick().cost is None
    free = quick(recipe(training={"price_per_hour": 0.0}))
    assert free.cost == 0.0
    for price in (0.7, 3.0, 99_999.0):
        one = quick(recipe(training={"price_per_hour": price, "max_steps": 1000}))
        exact = one.total_seconds / 3600 * price
        assert one.cost is not None and exact <= one.cost < exact + 0.01
        assert one.cost * 100 == pytest.approx(round(one.cost * 100))


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
def test_disk_is_that_of_checkpoints_and_artifact(known_rates: None, optimizer: str) -> None:
    count = model_size.model_size_of(recipe()).adapter_parameters
    for kept in (1, 5):
        one = quick(recipe(training={"keep_checkpoints": kept, "optimizer": optimizer}))
        bytes_each = CHECKPOINT_BYTES * (kept + 1) + DISK_STATES[optimizer] * kept
        assert one.disk_gib * GIB == pytest.approx(count * bytes_each)


def test_what_a_run_leaves_on_the_disk_is_about_what_was_forecast(finished: Any) -> None:
    from plumbline.store import runs

    expected, outcome = runs.forecast_and_outcome(finished.run_id) or ({}, {})
    # Beside the weights there are the log, the data's record, the tokenizer and JSON files.
    assert expected["disk_gib"] < outcome["disk_gib"] < 1.6 * expected["disk_gib"]


def test_what_cannot_fit_is_said_with_the_least_that_it_needs(
    known_rates: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "free_bytes", lambda: 0.01 * GIB)
    one = quick()
    assert one.problem.startswith("memory: ") and "0.0 GiB can be used" in one.problem
    assert one.peak_gib > one.free_gib == 0.01
    assert Forecast.from_json(one.to_json()) == one


HELD = [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False), ("none", False), ("int8", False)]


@pytest.mark.parametrize(("method", "double"), HELD)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_takes_what_was_counted_from_its_config(method: str, double: bool, dtype: str) -> None:
    config = recipe(quantisation={"method": method, "double_quant": double, "compute_dtype": dtype})
    model = load.base_model(config)
    found = model_size.model_size_of(config)
    assert found.base_bytes == pytest.approx(sum(held(model)), rel=0.01)
    trainable, _ = adapters.trainable_share(adapters.attach(model, config))
    assert found.adapter_parameters == trainable


def held(model: Any) -> Iterator[int]:
    """Bytes of every tensor that a loaded base consists of, each counted once."""
    seen: set[int] = set()
    tensors: list[torch.Tensor] = list(model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            tensors += [value for value in vars(each or Empty()).values() if isinstance(value, torch.Tensor)]
        if parameter.dtype == torch.int8:
            tensors.append(parameter.SCB)
    for tensor in tensors:
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor.numel() * tensor.element_size()


class Empty:
    pass


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        {"r": 64, "target_modules": ["down_proj"]},
        {"r": 1, "target_modules": list(schema.PROJECTIONS)},
    ],
    ids=str,
)
def test_adapter_parameters_are_counted_exactly(lora: dict[str, Any]) -> None:
    config = recipe(lora=lora)
    model = adapters.attach(load.base_model(config), config)
    assert model_size.model_size_of(config).adapter_parameters == adapters.trainable_share(model)[0]


def test_the_starters_shape_is_its_configs() -> None:
    found = model_size.model_size_of(recipe())
    assert (found.layers, found.hidden, found.query_heads, found.key_heads) == (8, 320, 5, 1)
    assert (found.intermediate, found.head_dim, found.vocabulary) == (896, 64, 4096)
    assert found.heads_width == 7 * 64 and not found.refusal and not found.head_norms
    model = load.base_model(recipe(quantisation={"method": "none"}))
    linear = [m for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    assert found.linear_weights == sum(layer.weight.numel() for layer in linear)
    # The rank is part of the question, the batch is not.
    assert model_size.model_size_of(recipe(lora={"r": 8})).adapter_parameters * 2 == found.adapter_parameters
    assert model_size.model_size_of(recipe(training={"effective_batch": 3})) is found


def test_what_leaves_the_fast_path_is_said_in_the_shape() -> None:
    assert "dropout" in model_size.model_size_of(recipe(lora={"dropout": 0.05})).refusal
    assert "float16" in model_size.model_size_of(recipe(quantisation={"compute_dtype": "float16"})).refusal


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_a_forecast(family: str, tmp_path: Path, known_rates: None) -> None:
    base = tiny.base(family)
    base.save_pretrained(tmp_path)
    config = recipe(model={"base": str(tmp_path)}, training={"max_length": tiny.WINDOW * 4})
    one = quick(config)
    assert one.peak_gib > 0 and one.total_seconds > 0 and not one.problem
    fast = family in ("llama", "qwen2", "qwen3")
    assert (one.plan.choices["training path"].value == "autograd") != fast
    counted = model_size.model_size_of(config)
    held = sum(p.numel() for p in base.parameters()) - counted.linear_weights
    assert held >= 0
    whole = model_size.model_size_of(recipe(model={"base": str(tmp_path)}, quantisation={"method": "none"}))
    assert whole.base_bytes == sum(p.numel() for p in base.parameters()) * whole.number_bytes


def test_more_tokens_and_more_kept_layers_take_more() -> None:
    def peak(tokens: int, kept: int, offload: bool = False, optimizer: str = "adamw_torch") -> int:
        return cost.peak_bytes(SHAPE, StepConfig(tokens, kept, offload, optimizer), tokens, tokens // 2)

    sizes = [2048, 4096, 8192, 16384]
    for kept in (0, 7, 14, 28):
        found = [peak(tokens, kept) for tokens in sizes]
        assert found == sorted(set(found))
    for tokens in sizes:
        found = [peak(tokens, kept) for kept in range(0, 29, 7)]
        assert found == sorted(set(found))
        assert peak(tokens, 0, offload=True) < peak(tokens, 0)
        assert peak(tokens, 0, optimizer="adamw_8bit") < peak(tokens, 0)
        # Twice the tokens are twice the activations of layers that are kept.
        assert peak(2 * tokens, 28) - peak(tokens, 28) > tokens * 28 * model_size.kept_bytes(SHAPE)
    assert peak(2048, 0) > SHAPE.base_bytes + 16 * SHAPE.adapter_parameters


def test_more_of_everything_takes_longer() -> None:
    def seconds(
        packs: list[list[int]], kept: int = 28, rates: DeviceSpeed = CPU, learned: float = 0.5
    ) -> float:
        return cost.step_seconds(SHAPE, StepConfig(4096, kept, False, "adamw_torch"), rates, packs, learned)

    once = seconds([[500] * 4])
    assert seconds([[500] * 8]) > 1.5 * once and seconds([[500] * 4] * 2) > 1.9 * once
    assert seconds([[2000]]) > once  # attention is quadratic in a row
    assert seconds([[500] * 4], kept=0) > 1.2 * once and seconds([[500] * 4], learned=1.0) > once
    assert seconds([[500] * 4], rates=GPU) < once / 100


def test_launches_count_where_no_graph_makes_them() -> None:
    slow = replace(GPU, launch_overhead=1e-3)
    way = StepConfig(2048, 28, False, "adamw_torch")

    def seconds(one: model_size.ModelSize, rates: DeviceSpeed) -> float:
        return cost.step_seconds(one, way, rates, [[500] * 4] * 3, 0.5)

    odd = [{"head_dim": 80}, {"number_bytes": 4}, {"refusal": "its activation is gelu"}]
    for change in odd:
        other = replace(SHAPE, **change)
        assert not cost.graphed(other, way, slow)
        assert seconds(other, slow) == pytest.approx(3 * 28 * cost.LAUNCHES * 1e-3, rel=0.01)
    assert cost.graphed(SHAPE, way, slow) and seconds(SHAPE, slow) == seconds(SHAPE, GPU)
    assert not cost.graphed(SHAPE, way, replace(slow, cuda=False))
    # A processor that is slower than its launches needs no graph.
    assert not cost.graphed(SHAPE, way, replace(GPU, matmul_flops=1e13))


def test_rates_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cost.device_speed("cpu", "float32")
    assert (
        first.matmul_flops > 1e8
        and first.bandwidth > 1e8
        and 0 < first.launch_overhead < 1e-2
        and not first.cuda
    )
    assert cost.device_speed("cpu", "float32") is first


def test_the_starter_is_measured_as_a_job(samples: Path) -> None:
    config = recipe(training={"effective_batch": 4}, data={"max_rows": 8})
    job_id = jobs.start(config)
    work_on(Job(queue.get(job_id)))
    job = queue.get(job_id)
    assert job["state"] == "completed", job["error"]
    found = Forecast.from_json(measurements.known(config) or "")
    assert found.probed and not found.problem
    assert found.peak_gib > 0 and found.parts["steps"] == pytest.approx(4 * found.seconds_per_step)
    assert found.total_seconds == pytest.approx(sum(found.parts.values()))
    prepared = prepare(config)
    lengths = [len(row.input_ids) for row in prepared.train]
    supervised = sum(row.supervised for row in prepared.train)
    before = forecast.forecast(config, len(lengths), lengths, supervised, len(prepared.held_out))
    assert found.plan == before.plan and found.disk_gib == before.disk_gib


@pytest.mark.parametrize(
    ("pins", "dropout"), [({}, 0.1), ({"optimizer": "adamw_8bit", "gradient_checkpointing": "full"}, 0.0)]
)
def test_a_measurement_leaves_the_weights_as_they_were(
    pins: dict[str, Any], dropout: float, known_rates: None
) -> None:
    config = recipe(training={"effective_batch": 4, **pins}, lora={"dropout": dropout})
    model = adapters.attach(load.base_model(config), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, asked = forecast.forecast(config, 8, LENGTHS[:8], 100, 8), []
    found = probing.sharpened(config, model, first, LENGTHS[:8], 100, 7.0, lambda: asked.append(1))
    assert found.probed and found.peak_gib > 0 and len(asked) > probing.STEPS
    assert (found.plan, found.disk_gib, found.free_gib) == (first.plan, first.disk_gib, first.free_gib)
    assert found.seconds_per_step > 0
    factor = found.seconds_per_step / first.seconds_per_step
    assert found.parts["evaluations"] == pytest.approx(first.parts["evaluations"] * factor)
    assert found.parts["loading"] == 7.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_what_was_measured_takes_the_place_of_what_was_counted(known_rates: None) -> None:
    config = recipe(training={"price_per_hour": 36.0, "max_steps": 100})
    before = quick(config)
    found = forecast.sharpened(before, config, 3 * GIB, 2.0, 7.0)
    # Without a GPU the process counts, and a run imports more than the probe does.
    more = 0 if torch.cuda.is_available() else cost.ON_CPU_LIBRARIES / GIB
    assert found.probed and found.peak_gib == 3.0 + more
    assert found.seconds_per_step == 2 * before.seconds_per_step
    assert found.parts["steps"] == pytest.approx(100 * found.seconds_per_step)
    assert found.total_seconds == pytest.approx(sum(found.parts.values()))
    assert found.cost == pytest.approx(math.ceil(found.total_seconds) / 100, abs=0.011)
    assert (found.plan, found.disk_gib, found.free_gib) == (before.plan, before.disk_gib, before.free_gib)


def test_what_cannot_fit_is_not_measured(samples: Path, known_rates: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(plan, "free_bytes", lambda: 0.01 * GIB)
    config = recipe(data={"max_rows": 8})
    job_id = jobs.start(config)
    work_on(Job(queue.get(job_id)))
    job = queue.get(job_id)
    assert job["state"] == "failed" and "0.0 GiB can be used" in job["error"]
    assert "Internal error" not in job["error"] and measurements.known(config) is None


def test_why_it_is_not_measured_is_said_once(samples: Path, known_rates: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(plan, "free_bytes", lambda: 0.01 * GIB)
    job_id = jobs.start(recipe(data={"max_rows": 8}))
    with pytest.raises(StudioError) as told:
        probing.measure(recipe(data={"max_rows": 8}), Job(queue.get(job_id)))
    assert told.value.text.count("memory: ") == 1 and ".." not in told.value.text


def test_a_base_that_is_loaded_is_not_counted_twice(
    samples: Path, known_rates: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said to fit before Start fits when the base has taken its memory."""
    config = recipe(data={"max_rows": 8}, quantisation={"method": "none", "compute_dtype": "float32"})
    prepared = prepare(config)
    lengths = prepared.lengths
    supervised = sum(row.supervised for row in prepared.train)
    sizes = model_size.model_size_of(config)
    least = plan.smallest(config, sizes, plan.workload(config, lengths, supervised), CPU).peak_bytes
    free = 1.001 * least / plan.USED_SHARE
    monkeypatch.setattr(plan, "free_bytes", lambda: free)
    assert not forecast.forecast(config, len(lengths), lengths, supervised, 8).problem
    before = assembly.arranged(config, prepared)
    monkeypatch.setattr(plan, "free_bytes", lambda: free - sizes.base_bytes)
    assembly.planned(config, prepared, before)
