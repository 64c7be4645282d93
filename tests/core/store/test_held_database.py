"""Another program holds the database: a run goes on, and what it measures is written when it is let go."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.store import runs
from plumbline.training.loop.record import Record
from plumbline.training.loop.trainer import Trainer
from tests.faults.forked import curve, tiny_base, tiny_recipe
from tests.runs import add, do, recipe


@pytest.fixture
def holder(samples: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection."""
    connection = sqlite3.connect(samples / "plumbline.db", isolation_level=None)
    yield connection
    connection.close()


def history(home: Path, run_id: int) -> list[int]:
    lines = (home / "runs" / str(run_id) / "metrics_history.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]


def test_f05_a_run_goes_on_while_the_database_is_held_and_misses_nothing(
    samples: Path, holder: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held from step 3 to step 9, over an evaluation, two saves and a line of the log."""
    config = tiny_recipe(tiny_base(tmp_path / "tiny"), {"dropout": 0.0})
    honest, reached = Trainer.training_step, []

    def step(trainer: Any, *given: Any, **named: Any) -> Any:
        number = trainer.state.global_step + 1
        if number == 3:
            holder.execute("begin immediate")
            trainer.record.written_at = 0.0  # it writes at this step
        if number == 6:
            trainer.job.event("said while nobody could write")
            trainer.record.written_at = 0.0
        if number == 9:
            reached.append(runs.metrics(run_id)[-1]["step"])
            holder.execute("rollback")
        return honest(trainer, *given, **named)

    monkeypatch.setattr(Trainer, "training_step", step)
    run_id = add(config)
    job = do("train", run_id)
    assert job["state"] == runs.get(run_id)["state"] == "completed", job["error"]
    assert reached and reached[0] < 9, "nothing was held up, so nothing was shown"
    assert [point[0] for point in curve(run_id)] == list(range(13))
    assert [point[0] for point in curve(run_id) if point[2] is not None] == [0, 4, 8, 12]
    assert history(samples, run_id) == list(range(1, 13))
    assert "said while nobody could write" in [event["text"] for event in runs.events(run_id)]


def test_f05_what_waited_when_a_process_died_is_in_the_history_and_comes_back(
    samples: Path, holder: sqlite3.Connection
) -> None:
    run_id = add(recipe())
    job_id = queue.enqueue("train", run_id)
    queue.set_state(job_id, "running")
    folder = samples / "runs" / str(run_id)
    folder.mkdir(exist_ok=True)
    record = Record(Job(queue.get(job_id)), folder / "metrics_history.jsonl")
    state = SimpleNamespace(global_step=1, max_steps=9)
    record.on_log(None, state, None, {"loss": 2.0, "grad_norm": 1.0})
    record.write(state)
    holder.execute("begin immediate")
    for state.global_step in (2, 3):
        record.on_log(None, state, None, {"loss": 1.0, "grad_norm": 1.0})
        record.write(state, sync=True)
    assert not record.job.stop_requested()
    holder.execute("rollback")
    assert [point[0] for point in curve(run_id)] == [1]
    assert history(samples, run_id) == [1, 2, 3]
    queue.mark_orphans()  # its process died
    assert [point[:2] for point in curve(run_id)] == [(1, 2.0), (2, 1.0), (3, 1.0)]


def test_f05_a_point_that_waits_is_written_once(samples: Path, holder: sqlite3.Connection) -> None:
    run_id = add(recipe())
    job_id = queue.enqueue("train", run_id)
    folder = samples / "runs" / str(run_id)
    folder.mkdir(exist_ok=True)
    record = Record(Job(queue.get(job_id)), folder / "metrics_history.jsonl")
    state = SimpleNamespace(global_step=1, max_steps=9)
    holder.execute("begin immediate")
    record.on_log(None, state, None, {"loss": 2.0, "eval_loss": 3.0})  # written at once
    record.write(state)
    holder.execute("rollback")
    record.write(state, wait=True)
    record.write(state, wait=True)
    assert history(samples, run_id) == [1] and [point[:3] for point in curve(run_id)] == [(1, 2.0, 3.0)]
    assert runs.get(run_id)["eval_loss"] == 3.0


def test_a_held_database_is_said_in_a_sentence(
    samples: Path, holder: sqlite3.Connection, capsys: pytest.CaptureFixture
) -> None:
    from plumbline.cli import main
    from plumbline.store.database import patience

    run_id = add(recipe())
    holder.execute("begin immediate")
    with patience(0.1):
        assert main.main(["delete", str(run_id), "--yes"], lambda *_: None) == 2
    assert "held by another program" in capsys.readouterr().err
