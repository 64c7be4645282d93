"""F18: what is suggested when memory ran out leaves the planner no way that needs as much."""

import math
from typing import Any

import pytest

from plumbline.config import schema
from plumbline.models import hardware
from plumbline.models.hardware import Choice
from plumbline.planner import cost, model_size, plan, smaller
from plumbline.planner.cost import DeviceSpeed
from tests.runs import recipe

GPU = DeviceSpeed(matmul_flops=7e14, bandwidth=4e12, launch_overhead=3e-6, cuda=True)
PINNED: dict[str, dict[str, Any]] = {
    "nothing pinned": {"gradient_checkpointing": "auto", "optimizer": "auto"},
    "all kept": {"gradient_checkpointing": "none"},
    "some kept": {"gradient_checkpointing": "selective"},
    "large packs": {"gradient_checkpointing": "none", "micro_batch_tokens": 131072},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device", lambda: Choice("cuda", "a GPU"))
    monkeypatch.setattr(hardware, "compute_dtype", lambda config: Choice("bfloat16", "it has it"))
    monkeypatch.setattr(cost, "device_speed", lambda device, dtype: GPU)


@pytest.mark.parametrize("pinned", PINNED)
def test_every_suggestion_needs_less_whatever_memory_the_planner_believes_in(gpu: None, pinned: str) -> None:
    config = recipe(training={"max_length": 1024, "effective_batch": 128, **PINNED[pinned]})
    peaks = []
    for _ in range(12):
        work = plan.workload(config, [1024] * 256, 256 * 1000)
        found = plan.choose(config, model_size.model_size_of(config), work, GPU, math.inf)
        peaks.append(found.peak_bytes)
        settings = smaller.smaller(config, work, found)
        if "training.max_length" in settings:
            break  # no way of computing these rows needs less
        config = schema.changed(config, settings)
    print([round(peak / hardware.GIB, 2) for peak in peaks])
    assert all(after < before for before, after in zip(peaks, peaks[1:], strict=False))
    assert peaks[3] < peaks[0] / 4 and "training.max_length" in settings
