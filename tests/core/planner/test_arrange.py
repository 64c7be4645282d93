"""How many GPUs a run is given, how the base is held there, and why."""

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plumbline.config import schema
from plumbline.distributed import gpus, process_group
from plumbline.errors import StudioError
from plumbline.jobs import mode
from plumbline.models import hardware
from plumbline.models.hardware import Choice
from plumbline.planner import parallelism
from plumbline.planner.plan import Outcome, Workload
from tests.core.planner.test_plan import AMPLE, GPU, LAYERS, LENGTHS, LINEAR, SHAPE, config, load

MANY = 1000  # steps
HELD = replace(SHAPE, packed_bytes=(LINEAR // 2 // LAYERS,) * LAYERS)
TIGHT = HELD.base_bytes + 0.7 * parallelism.BETWEEN_BYTES  # a GPU holds the base, and has no room to train


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs, six of them idle, in a process that may have others beside it."""
    monkeypatch.setattr(hardware, "device", lambda: Choice("cuda", "a GPU"))
    monkeypatch.setattr(gpus, "visible", lambda: [str(number) for number in range(8)])
    monkeypatch.setattr(gpus, "idle", lambda: ["0", "1", "2", "3", "6", "7"])
    monkeypatch.setattr(mode, "_used", "process")
    monkeypatch.setattr(process_group, "_place", {})
    monkeypatch.setattr(parallelism, "_can_talk", lambda: True)


def chosen(free: float = AMPLE, steps: int = MANY, batch: int = 64, **machines: Any) -> Outcome:
    asked = config(effective_batch=batch).model_copy(update={"machines": schema.MachinesSection(**machines)})
    return parallelism.choose(asked, HELD, load(asked, LENGTHS), GPU, free, steps)


def test_a_long_run_takes_all_idle_gpus_and_a_short_one_takes_one() -> None:
    long, short = chosen(), chosen(steps=3)
    assert (long.plan.processes, short.plan.processes) == (6, 1) and not long.plan.sharded
    assert long.plan.choices["GPUs"] == Choice("6", "6 idle, 2 in use or of another kind")
    assert short.plan.choices["GPUs"].why == "6 would not be notably quicker"
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


def test_without_a_gpu_there_are_no_more_processes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device", lambda: Choice("cpu", "no CUDA device was found"))
    monkeypatch.setattr(parallelism.os, "cpu_count", lambda: 2)
    assert chosen(gpus=2).plan.processes == 2
    with pytest.raises(StudioError, match="asks for 3 processes, but there is no GPU and 2 cores"):
        chosen(gpus=3)


def test_a_thread_of_the_studio_has_no_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "_used", "thread")
    plan = chosen().plan
    assert plan.processes == 1 and "thread" in plan.choices["GPUs"].why
    with pytest.raises(StudioError, match="PLUMBLINE_WORKER=process"):
        chosen(gpus=4)


def test_launched_processes_all_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "_place", {"WORLD_SIZE": "3", "RANK": "0"})
    assert chosen(steps=1).plan.processes == 3
    monkeypatch.setattr(process_group, "_place", {})
    assert chosen(num_machines=2, gpus=4, main_process_ip="first", steps=1).plan.processes == 8


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
        parallelism.choose(asked, shape, load(asked, LENGTHS), GPU, AMPLE, MANY)


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


def test_a_run_without_what_gpus_talk_through_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallelism, "_can_talk", lambda: False)
    plan = chosen().plan
    assert plan.processes == 1 and "NCCL" in plan.choices["GPUs"].why
    with pytest.raises(StudioError, match=r"machines\.gpus: must be 1 where torch has no NCCL"):
        chosen(gpus=2)


def test_only_idle_gpus_like_the_first_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    about = [("A", 80), ("A", 80), ("B", 8), ("A", 80)]
    kinds = [
        SimpleNamespace(name=name, total_memory=size, uuid=str(n)) for n, (name, size) in enumerate(about)
    ]
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1", "2", "3"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: kinds[number])
    monkeypatch.setattr(gpus, "_used_shares", lambda: {"0": 0.9, "1": 0.0, "2": 0.0, "3": 0.5})
    assert gpus.idle() == ["0", "1"] and gpus.chosen(4) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("visible", "local", "seen"),
    [
        (None, "1", "1"),
        ("4,5,6", "1", "5"),
        ("GPU-a,GPU-b", "0", "GPU-a"),
        ("", "1", ""),
        ("-1", "1", "-1"),
        ("3", "1", ""),
    ],
)
def test_a_launched_process_sees_the_gpu_that_is_its_own_and_no_hidden_one(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, local: str, seen: str
) -> None:
    monkeypatch.setattr(process_group, "_place", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in {"RANK": local, "LOCAL_RANK": local, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert process_group.rank_and_size() == (int(local), 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen and "WORLD_SIZE" not in os.environ
