"""How many GPUs a run is given, how the base is held there, and why."""

from dataclasses import replace
from typing import Any

import pytest

from core import config as schema
from core.errors import StudioError
from core.jobs import mode
from core.models import gpus, hardware
from core.models.hardware import Choice
from core.training import arrange, world
from core.training.plan import Outcome, Workload
from tests.unit.test_plan import AMPLE, GPU, LAYERS, LENGTHS, LINEAR, SHAPE, config, load

MANY = 1000  # steps
HELD = replace(SHAPE, packed_bytes=(LINEAR // 2 // LAYERS,) * LAYERS)
TIGHT = HELD.base_bytes + 0.7 * arrange.BETWEEN_BYTES  # a GPU holds the base, and has no room to train


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs, six of them idle, in a process that may have others beside it."""
    monkeypatch.setattr(hardware, "device", lambda: Choice("cuda", "a GPU"))
    monkeypatch.setattr(gpus, "visible", lambda: [str(number) for number in range(8)])
    monkeypatch.setattr(gpus, "idle", lambda: ["0", "1", "2", "3", "6", "7"])
    monkeypatch.setattr(mode, "_used", "process")
    monkeypatch.setattr(world, "_place", {})


def chosen(free: float = AMPLE, steps: int = MANY, batch: int = 64, **machines: Any) -> Outcome:
    asked = config(effective_batch=batch).model_copy(update={"machines": schema.MachinesSection(**machines)})
    return arrange.choose(asked, HELD, load(asked, LENGTHS), GPU, free, steps)


def test_a_long_run_takes_all_idle_gpus_and_a_short_one_takes_one() -> None:
    long, short = chosen(), chosen(steps=3)
    assert (long.plan.processes, short.plan.processes) == (6, 1) and not long.plan.sharded
    assert long.plan.choices["GPUs"] == Choice("6", "6 idle, 2 in use by others")
    assert "short" in short.plan.choices["GPUs"].why
    assert long.step_seconds < short.step_seconds / 4


def test_steps_of_few_rows_take_no_more_gpus_than_they_have_work_for() -> None:
    assert chosen(batch=1).plan.processes == 1
    assert chosen(batch=2).plan.processes <= 2


@pytest.mark.parametrize("wanted", [1, 2, 8])
def test_a_recipe_s_number_of_gpus_is_taken_as_it_is(wanted: int) -> None:
    plan = chosen(gpus=wanted).plan
    assert plan.processes == wanted and plan.choices["GPUs"] == Choice(str(wanted), "set in the recipe")


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(StudioError, match=r"machines\.gpus: asks for 9, there are 8 here"):
        chosen(gpus=9)


def test_a_thread_of_the_studio_has_no_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "_used", "thread")
    plan = chosen().plan
    assert plan.processes == 1 and "thread" in plan.choices["GPUs"].why
    with pytest.raises(StudioError, match="PLUMBLINE_WORKER=process"):
        chosen(gpus=4)


def test_launched_processes_all_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "_place", {"WORLD_SIZE": "3", "RANK": "0"})
    assert chosen(steps=1).plan.processes == 3
    monkeypatch.setattr(world, "_place", {})
    assert chosen(hosts=2, gpus=4, address="first", steps=1).plan.processes == 8


def test_a_base_is_spread_only_when_no_gpu_holds_it_or_when_the_recipe_says_so() -> None:
    found = chosen(TIGHT, steps=1)
    assert found.plan.sharded and found.plan.processes == 6 and not found.plan.graphs
    assert found.peak_bytes < HELD.base_bytes
    assert "no GPU here holds all of it" in found.plan.choices["base"].why
    assert not chosen(HELD.base_bytes * 3, steps=1).plan.sharded
    asked = chosen(sharding="full")
    assert asked.plan.sharded and "set in the recipe" in asked.plan.choices["base"].why


def test_a_base_that_may_not_be_spread_says_what_it_needs_as_ever() -> None:
    with pytest.raises(StudioError, match="^memory: .* is the least for these settings"):
        chosen(TIGHT, sharding="none")
    with pytest.raises(StudioError, match="^memory: .* is the least"):
        chosen(TIGHT, gpus=1)


@pytest.mark.parametrize(
    ("change", "shape", "said"),
    [
        ({"machines": {"gpus": 1}}, SHAPE, "one GPU"),
        ({"quantisation": {"method": "int8"}}, SHAPE, "only a 4-bit base"),
        ({}, replace(HELD, refusal="its norms are odd"), "its norms are odd"),
    ],
)
def test_sharding_that_cannot_be_names_the_reason(change: Any, shape: Any, said: str) -> None:
    raw = {**change, "machines": {"sharding": "full", **change.get("machines", {})}}
    asked = schema.validated(raw)
    with pytest.raises(StudioError, match=f"machines.sharding: cannot be full: .*{said}"):
        arrange.choose(asked, shape, load(asked, LENGTHS), GPU, AMPLE, MANY)


def test_a_share_of_every_step_is_planned_for() -> None:
    whole: Workload = load(config(effective_batch=64), LENGTHS)
    part = whole.shared(4)
    assert len(part.steps) == len(whole.steps) and part.longest == whole.longest
    for step, share in ((whole.largest_step, part.largest_step),):
        assert step / 4 <= share < step / 4 + whole.longest
    assert whole.shared(1) is whole


def test_memory_of_a_gpu_in_use_is_read_from_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    printed = "GPU-a, 10, 81559\nGPU-b, 40000, 81559\nMIG-c, [N/A], [N/A]\n"

    def run(*given: Any, **named: Any) -> Any:
        return type("Done", (), {"stdout": printed})

    monkeypatch.setattr(gpus.subprocess, "run", run)
    shares = gpus._used_shares()
    assert shares["a"] < gpus.IDLE_SHARE < shares["b"] and gpus.count_without_torch() == 2
