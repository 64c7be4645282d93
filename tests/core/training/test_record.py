"""What a run writes down: every point, at its own step, and before anything depends on it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plumbline.batches.packing import Pack
from plumbline.checkpoints import folders, resume
from plumbline.engine.decoder import DecoderEngine
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.store import runs
from plumbline.training.loop import pace, record
from plumbline.training.loop.record import Record
from plumbline.training.loop.trainer import Trainer
from tests.runs import add, do, recipe

NEVER = 1e12  # seconds
ARGUMENTS = SimpleNamespace(eval_steps=100, save_steps=100)
QUICK = {"effective_batch": 2, "eval_steps": 100, "save_steps": 100}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Run:
    """A record on a real store, driven as transformers drives it."""

    def __init__(self, folder: Path, steps: int = 10) -> None:
        self.id = add(recipe())
        self.job = Job(queue.get(queue.enqueue("train", self.id)))
        queue.claim(self.job.id)
        self.history = folder / "history.jsonl"
        self.record = Record(self.job, self.history)
        self.record.clock = pace.StepClock(cuda=False)
        self.state = SimpleNamespace(global_step=0, max_steps=steps, epoch=0.0)
        self.control = SimpleNamespace(should_save=False, should_training_stop=False)

    def begin(self) -> None:
        self.record.on_train_begin(None, self.state, self.control)

    def step(self, **values: float) -> None:
        """:param values: measured at once; see `measured` for a step that is looked at later"""
        self.state.global_step += 1
        seconds = self.record.clock.mark()()
        self.record.on_step_end(ARGUMENTS, self.state, self.control)
        if "num_tokens" in values:
            self.record.step_done(self.state.global_step, int(values["num_tokens"]), seconds)
        self.log(**values)

    def log(self, **values: float) -> None:
        if values:
            self.record.on_log(None, self.state, self.control, logs=values)

    def stored(self, name: str = "loss") -> list[tuple[int, Any]]:
        return [(p["step"], p[name]) for p in runs.metrics(self.id) if p[name] is not None]

    def lines(self) -> list[dict[str, Any]]:
        if not self.history.exists():
            return []
        return [json.loads(line) for line in self.history.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(record, "time", found)
    monkeypatch.setattr(pace, "time", found)
    return found


@pytest.fixture
def run(samples: Path, tmp_path: Path, clock: Clock) -> Run:
    return Run(tmp_path)


def test_points_wait_and_are_then_all_there_in_their_order(run: Run, clock: Clock) -> None:
    run.begin()
    run.record.write(run.state)
    for number in range(1, 6):
        clock.now += record.WRITE_SECONDS / 20
        run.step(loss=1.0 / number, grad_norm=float(number), num_tokens=100.0 * number)
    assert run.stored() == [] and run.lines() == [] and runs.get(run.id)["step"] == 0
    run.record.write(run.state)
    wanted = [(number, 1.0 / number) for number in range(1, 6)]
    assert run.stored() == wanted
    assert [(line["step"], line["loss"]) for line in run.lines()] == wanted
    assert run.stored("grad_norm") == [(number, float(number)) for number in range(1, 6)]
    row = runs.get(run.id)
    assert (row["step"], row["loss"], row["total_steps"]) == (5, 0.2, 10)
    job = queue.get(run.job.id)
    assert job["progress"] == 0.5 and job["phase"] == "training, step 5 of 10"
    run.record.write(run.state)
    assert run.stored() == wanted and len(run.lines()) == 5


def test_points_are_written_when_some_time_has_passed(run: Run, clock: Clock) -> None:
    run.begin()
    run.record.write(run.state)
    clock.now += 0.9 * record.WRITE_SECONDS
    run.step(loss=3.0)
    assert run.stored() == []
    clock.now += 0.2 * record.WRITE_SECONDS
    run.step(loss=2.0)
    # The second is logged after its step's end: it goes with the next.
    assert run.stored() == [(1, 3.0)] and runs.get(run.id)["step"] == 2
    clock.now += 0.9 * record.WRITE_SECONDS
    run.step(loss=1.0)
    assert run.stored() == [(1, 3.0)]
    clock.now += 0.2 * record.WRITE_SECONDS
    run.step()
    assert run.stored() == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_an_evaluation_is_written_at_once_with_all_before_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "WRITE_SECONDS", NEVER)
    run.begin()
    run.log(eval_loss=4.0)
    assert run.stored("eval_loss") == [(0, 4.0)] and runs.get(run.id)["base_eval_loss"] == 4.0
    run.step(loss=3.0)
    run.step(loss=2.0)
    assert run.stored() == []
    run.log(eval_loss=2.5, **{"eval_loss/one": 2.0})
    assert run.stored() == [(1, 3.0), (2, 2.0)] and run.stored("eval_loss") == [(0, 4.0), (2, 2.5)]
    run.step(loss=1.0)
    run.log(eval_loss=2.75)
    row = runs.get(run.id)
    assert (row["eval_loss"], row["best_eval_loss"], row["best_step"]) == (2.75, 2.5, 2)
    assert row["base_eval_loss"] == 4.0
    assert [line["step"] for line in run.lines()] == [0, 1, 2, 2, 3, 3]


def test_what_was_best_before_training_stays_the_best(run: Run) -> None:
    run.begin()
    run.log(eval_loss=0.69)
    run.step(loss=0.5)
    run.log(eval_loss=0.8)
    row = runs.get(run.id)
    assert (row["eval_loss"], row["best_eval_loss"], row["best_step"]) == (0.8, 0.69, 0)


def test_the_loss_of_the_base_is_not_that_of_an_adapter_that_begins_as_more(run: Run) -> None:
    run.begin()
    run.log(base_loss=4.0)
    run.log(eval_loss=3.0)
    row = runs.get(run.id)
    assert (row["base_eval_loss"], row["eval_loss"]) == (4.0, 3.0)


def test_a_resumed_run_remembers_its_best(run: Run, tmp_path: Path) -> None:
    runs.update(run.id, best_eval_loss=1.5, best_step=4)
    run.state.global_step = 5
    run.begin()
    run.log(eval_loss=2.0)
    row = runs.get(run.id)
    assert (row["best_eval_loss"], row["best_step"], row["eval_loss"]) == (1.5, 4, 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_written_at_once_at_its_own_step(
    run: Run, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "WRITE_SECONDS", NEVER)
    run.begin()
    run.step(loss=2.0)
    run.step(loss=1.0)
    run.state.global_step = 4
    run.record.on_step_end(ARGUMENTS, run.state, run.control)
    # The trainer logs step 3 while step 4 is on the device.
    run.state.global_step = 3
    run.log(loss=bad)
    assert run.stored()[:2] == [(1, 2.0), (2, 1.0)]
    (step, value) = run.stored()[-1]
    assert step == 3 and not math.isfinite(value)
    row = runs.get(run.id)
    assert row["step"] == 3 and row["loss"] is None


def test_the_last_step_is_written_and_stop_is_heard_before_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.begin()
    monkeypatch.setattr(Job, "stop_requested", lambda job: True)
    monkeypatch.setattr(record, "WRITE_SECONDS", 0.0)
    run.step(loss=2.0)
    assert run.control.should_save and run.control.should_training_stop
    run.control.should_save = run.control.should_training_stop = False
    monkeypatch.setattr(record, "WRITE_SECONDS", NEVER)
    run.step(loss=1.5)
    assert not run.control.should_training_stop
    run.state.global_step = run.state.max_steps - 1
    run.step()
    # Nothing is left to stop, and everything is written all the same.
    assert run.stored() == [(1, 2.0), (2, 1.5)] and runs.get(run.id)["step"] == run.state.max_steps
    assert not run.control.should_save and not run.control.should_training_stop


def test_what_is_left_is_told_from_what_a_step_has_taken(run: Run, clock: Clock) -> None:
    run.begin()
    tokens = 0.0
    for number in range(1, 5):
        clock.now += 8.0 if number == 1 else 2.0  # the first warms up
        tokens += 500.0
        run.step(loss=1.0, num_tokens=tokens)
    clock.now += 2.0
    run.step()
    assert runs.get(run.id)["seconds_left"] == pytest.approx(5 * 2.0)
    assert run.stored("tokens_per_second") == [(2, 250.0), (3, 250.0), (4, 250.0)]
    assert run.record.median_step_seconds() == 2.0


def test_an_evaluation_is_no_part_of_a_steps_time(run: Run, clock: Clock) -> None:
    run.begin()
    for number in range(1, 5):
        clock.now += 2.0
        run.step(loss=1.0, num_tokens=500.0 * number)
        with run.record.clock.pause(pace.EVALUATION):
            clock.now += 60.0
        run.log(eval_loss=1.0)
    assert [seconds for _, seconds in run.record.timed] == [2.0] * 4
    assert run.record.step_seconds == 2.0


def test_a_step_that_is_looked_at_with_the_next_has_its_own_time(run: Run, clock: Clock) -> None:
    """Before an evaluation two steps are looked at within an instant."""
    run.begin()
    done = []
    for number in (1, 2, 3):
        clock.now += 2.0
        done.append((number, 500 * number, run.record.clock.mark()))
    for number, tokens, seconds in done:
        run.state.global_step = number
        run.record.step_done(number, tokens, seconds())
        run.log(loss=1.0, num_tokens=float(tokens))
    run.record.write(run.state)
    assert run.stored("tokens_per_second") == [(2, 250.0), (3, 250.0)]


def test_steps_before_an_evaluation_are_no_quicker_than_others(samples: Path) -> None:
    training = {"max_steps": 9, "eval_steps": 3, "save_steps": 3, "effective_batch": 2}
    run_id = add(recipe(training=training))
    assert do("train", run_id)["error"] is None
    speeds = sorted(p["tokens_per_second"] for p in runs.metrics(run_id) if p["tokens_per_second"])
    assert len(speeds) == 8 and speeds[-1] < 30 * speeds[len(speeds) // 2]
    outcome = json.loads(runs.get(run_id)["outcome"])
    assert outcome["total_seconds"] == pytest.approx(sum(outcome["parts"].values()))
    assert all(seconds > 0 for seconds in outcome["parts"].values()) and outcome["steps"] == 9


def test_steps_between_logged_ones_count_in_time_and_tokens(run: Run, clock: Clock) -> None:
    run.begin()
    for number in range(1, 10):
        clock.now += 2.0
        run.step(**({"loss": 1.0, "num_tokens": 500.0 * number} if number % 3 == 0 else {}))
    run.record.write(run.state)
    assert run.record.step_seconds == pytest.approx(2.0)
    assert run.stored("tokens_per_second") == [(6, 250.0), (9, 250.0)]


def test_history_is_cut_to_a_checkpoint_and_loses_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    resume.cut_history(path, 3)
    assert not path.exists()
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 3, 4, 5)]
    path.write_text("\n".join(lines) + '\n{"step": 2, "lo', encoding="utf-8")
    resume.cut_history(path, 3)
    assert path.read_text(encoding="utf-8").splitlines() == lines[:4]


class Seen:
    """What the engine really did in every optimizer step of a run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.norms: list[float] = []
        whole, trained = DecoderEngine.step, Trainer.training_step

        def step(engine: DecoderEngine, pack: Pack, weight: float) -> Any:
            # Computed by the way that evaluation goes, not by the one that is tried.
            self.losses[-1] += float(engine.losses(pack).double().sum()) * weight
            self.tokens[-1] += pack.tokens
            found = whole(engine, pack, weight)
            self.norms[-1] = float(engine.adapters.gradients.norm())
            return found

        def training_step(trainer: Trainer, *given: Any, **named: Any) -> Any:
            self.losses.append(0.0)
            self.tokens.append(0)
            self.norms.append(0.0)
            return trained(trainer, *given, **named)

        monkeypatch.setattr(DecoderEngine, "step", step)
        monkeypatch.setattr(Trainer, "training_step", training_step)


@pytest.mark.parametrize("every", [1, 3])
def test_what_is_logged_is_what_the_engine_computed_at_that_step(
    samples: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(record, "WRITE_SECONDS", NEVER)
    seen = Seen(monkeypatch)
    training = {"max_steps": 9, "eval_steps": 4, "save_steps": 5, "logging_steps": every}
    training |= {"warmup_ratio": 0.3, "lr_scheduler_type": "linear", "learning_rate": 0.003}
    training |= {"effective_batch": 2, "micro_batch_tokens": 100}
    run_id = add(recipe(training=training))
    assert do("train", run_id)["error"] is None
    assert len(seen.losses) == 9
    points = {p["step"]: p for p in runs.metrics(run_id)}
    steps = [step for step, point in points.items() if point["loss"] is not None]
    assert steps == list(range(every, 10, every))
    for step in steps:
        mean = sum(seen.losses[step - every : step]) / every
        assert points[step]["loss"] == pytest.approx(mean, rel=1e-3)
        assert points[step]["grad_norm"] == pytest.approx(seen.norms[step - 1], rel=1e-3)
        # The rate that the step was taken with: three of warmup, then down to nothing.
        rate = step / 3 if step <= 3 else (10 - step) / 6
        assert points[step]["learning_rate"] == pytest.approx(0.003 * rate)
    assert [step for step, point in points.items() if point["eval_loss"] is not None] == [0, 4, 8, 9]
    history = (samples / "runs" / str(run_id) / "metrics_history.jsonl").read_text().splitlines()
    tokens = {line["step"]: line["num_tokens"] for line in map(json.loads, history) if "loss" in line}
    assert tokens == {step: sum(seen.tokens[:step]) for step in steps}
    results = json.loads((samples / "runs" / str(run_id) / "training_results.json").read_text())
    logged = [(entry["step"], entry["loss"]) for entry in results["log_history"] if "loss" in entry]
    assert logged == [(step, points[step]["loss"]) for step in steps]
    epochs = [entry["epoch"] for entry in results["log_history"] if "loss" in entry]
    assert epochs == [pytest.approx(step / 16, abs=1e-3) for step in steps]  # 32 rows, 2 a step
    assert results["log_history"][-1]["train_loss"] == pytest.approx(sum(seen.losses) / 9, rel=1e-3)


def test_a_checkpoint_is_never_ahead_of_the_store(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "WRITE_SECONDS", NEVER)
    run_id = add(recipe(training=QUICK | {"max_steps": 7, "save_steps": 3}))
    publish, found = folders.publish, []

    def published(staging: Path, folder: Path, identity: dict[str, Any]) -> None:
        found.append((folder.name, [p["step"] for p in runs.metrics(run_id) if p["loss"] is not None]))
        publish(staging, folder, identity)

    monkeypatch.setattr(folders, "publish", published)
    assert do("train", run_id)["error"] is None
    assert ("checkpoint-3", [1, 2, 3]) in found and ("checkpoint-6", [1, 2, 3, 4, 5, 6]) in found
    assert [p["step"] for p in runs.metrics(run_id)] == list(range(8))


def test_a_stopped_run_has_every_step_that_it_made(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "WRITE_SECONDS", 0.0)
    seen = Seen(monkeypatch)
    monkeypatch.setattr(Job, "stop_requested", lambda job: len(seen.losses) >= 3)
    run_id = add(recipe(training=QUICK | {"max_steps": 9}))
    assert do("train", run_id)["state"] == "stopped"
    points = [p for p in runs.metrics(run_id) if p["loss"] is not None]
    assert [p["step"] for p in points] == [1, 2, 3] == list(range(1, len(seen.losses) + 1))
    assert [p["loss"] for p in points] == [pytest.approx(loss, rel=1e-3) for loss in seen.losses]


def test_the_step_whose_loss_was_no_number_is_named_though_it_is_logged_later(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, bad = Trainer.training_step, 2

    def broken(self: Trainer, *given: Any, **named: Any) -> torch.Tensor:
        loss = honest(self, *given, **named)
        return loss * math.nan if self.state.global_step == bad - 1 else loss

    monkeypatch.setattr(Trainer, "training_step", broken)
    monkeypatch.setattr(record, "WRITE_SECONDS", NEVER)
    run_id = add(recipe(training=QUICK | {"max_steps": 5}))
    job = do("train", run_id)
    assert job["state"] == "failed" and f"loss became NaN at step {bad}." in job["error"]
    losses = [(p["step"], p["loss"]) for p in runs.metrics(run_id) if p["loss"] is not None]
    assert [step for step, _ in losses] == list(range(1, bad + 1))
    assert math.isnan(losses[-1][1]) and not any(math.isnan(loss) for _, loss in losses[:-1])
    assert runs.get(run_id)["step"] == bad
    folder = samples / "runs" / str(run_id) / "checkpoints"
    assert not list(folder.glob(f"checkpoint-{bad}"))


def test_tokens_are_counted_on_when_a_run_goes_on(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add(recipe(training=QUICK | {"max_steps": 2, "save_steps": 1}))
    assert do("train", run_id)["error"] is None
    history = samples / "runs" / str(run_id) / "metrics_history.jsonl"

    def tokens() -> list[float]:
        return [
            line["num_tokens"] for line in map(json.loads, history.read_text().splitlines()) if "loss" in line
        ]

    before = tokens()
    newest = history.parent / "checkpoints" / "checkpoint-2"
    newest.rename(newest.with_name("gone"))
    assert do("train", run_id, resume=True)["error"] is None
    assert tokens() == before
