"""The same recipe again on the GPU: bit for bit when it is deterministic, and through a stop or a kill."""

import itertools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.training.loop import record
from plumbline.training.loop.trainer import Trainer
from tests.gpu import child
from tests.runs import add, do, recipe

pytestmark = pytest.mark.gpu
STEPS, SAVES, CUT = 24, 8, 14
FLOOR = 1e-6  # nats; the spread may be nothing
PATHS: dict[str, dict[str, Any]] = {"decoder": {}, "autograd": {"dropout": 0.05}}


def _curve(run_id: int) -> dict[tuple[int, str], float]:
    """Losses in nats, by step and name."""
    return {
        (point["step"], name): point[name]
        for point in runs.metrics(run_id)
        for name in ("loss", "eval_loss")
        if point[name] is not None
    }


def _apart(one: dict[Any, float], other: dict[Any, float]) -> float:
    assert one.keys() == other.keys()
    return max(abs(one[key] - other[key]) for key in one)


@pytest.mark.parametrize("path", PATHS)
def test_deterministic_runs_agree_bit_for_bit(samples: Path, path: str) -> None:
    curves = {}
    for deterministic in (True, False):
        training = {"max_steps": 16, "eval_steps": 8, "save_steps": 16, "deterministic": deterministic}
        made = [add(recipe(training=training, lora=PATHS[path])) for _ in range(2)]
        for run_id in made:
            assert do("train", run_id)["error"] is None
            assert runs.decisions(run_id)["training path"]["value"].endswith(path)
        curves[deterministic] = [_curve(run_id) for run_id in made]
    apart = {key: _apart(*both) for key, both in curves.items()}
    without = "agree bit for bit" if curves[False][0] == curves[False][1] else f"are {apart[False]:.1e} apart"
    print(f"\n{path}: deterministic runs {apart[True]:.1e} apart; without it they {without}")
    assert len(curves[True][0]) == 16 + 3
    assert curves[True][0] == curves[True][1]


def _stopped(run_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop is pressed while a step is computed."""
    honest = Trainer.training_step

    def step(trainer: Trainer, *given: Any, **named: Any) -> Any:
        if trainer.state.global_step + 1 == CUT:
            queue.stop(trainer.job.id)
        return honest(trainer, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(record, "WRITE_SECONDS", 0.0)  # Stop is heard at once
        patch.setattr(Trainer, "training_step", step)
        assert do("train", run_id)["state"] == "stopped"
    assert runs.get(run_id)["step"] == CUT


def _killed(run_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is killed, and the steps after its last save are lost."""
    job_id = queue.enqueue("train", run_id)
    process = multiprocessing.get_context("spawn").Process(target=child.killed, args=(job_id, CUT))
    process.start()
    process.join()
    assert process.exitcode == -9 and queue.mark_orphans() == [job_id]


@pytest.mark.parametrize(("path", "cut"), [("decoder", _killed), ("autograd", _stopped)])
def test_b3_a_resumed_run_is_no_further_away_than_runs_are_from_each_other(
    samples: Path, monkeypatch: pytest.MonkeyPatch, path: str, cut: Callable[..., None]
) -> None:
    whole = recipe(training={"max_steps": STEPS, "save_steps": SAVES, "eval_steps": SAVES}, lora=PATHS[path])
    curves = []
    for _ in range(3):
        run_id = add(whole)
        assert do("train", run_id)["error"] is None
        curves.append(_curve(run_id))
    resumed = add(whole)
    cut(resumed, monkeypatch)
    assert do("train", resumed, resume=True)["error"] is None
    found = _curve(resumed)
    spread = max(_apart(*two) for two in itertools.combinations(curves, 2))
    distance = max(_apart(found, one) for one in curves)
    how = cut.__name__.removeprefix("_")
    print(f"\n{path}, {how} at step {CUT}: spread of 3 runs {spread:.1e}, resumed {distance:.1e} away")
    assert len(found) == STEPS + 1 + STEPS // SAVES
    assert distance <= max(2 * spread, FLOOR)
