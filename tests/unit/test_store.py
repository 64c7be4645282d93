"""SQLite: NaN stays NaN, threads have their own connection, states change in one place."""

import math
import threading
from pathlib import Path

import pytest

from core.errors import StudioError
from core.jobs import queue
from core.jobs.worker import Worker
from core.store import runs
from core.store.database import database, insert, migrations
from tests.runs import add, recipe


@pytest.fixture
def run_id(samples: Path) -> int:
    return add(recipe())


def test_nan_and_infinity_are_kept(run_id: int) -> None:
    runs.record(run_id, 1, {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.5, "entropy": 1.0})
    (point,) = runs.metrics(run_id)
    assert math.isnan(point["loss"]) and point["grad_norm"] == math.inf and point["learning_rate"] == 0.5
    assert point["eval_loss"] is None


def test_a_step_has_one_row_whatever_is_measured_at_it(run_id: int) -> None:
    runs.record(run_id, 5, {"loss": 2.0})
    runs.record(run_id, 5, {"eval_loss": 3.0})
    assert [(p["step"], p["loss"], p["eval_loss"]) for p in runs.metrics(run_id)] == [(5, 2.0, 3.0)]


def test_points_past_a_checkpoint_are_forgotten(run_id: int) -> None:
    for step in (1, 2, 3):
        runs.record(run_id, step, {"loss": float(step)})
    runs.forget_after(run_id, 2)
    assert [p["step"] for p in runs.metrics(run_id)] == [1, 2]


def test_threads_write_while_others_read(run_id: int) -> None:
    def write(first: int) -> None:
        for step in range(first, first + 50):
            runs.record(run_id, step, {"loss": 1.0})

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        runs.metrics(run_id)
    assert len(runs.metrics(run_id)) == 150


def test_the_database_is_migrated_and_in_wal_mode(samples: Path) -> None:
    assert not migrations.pending(database())
    assert database().journal_mode == "wal"


def test_a_second_click_with_the_same_token_is_the_same_job(run_id: int) -> None:
    first = queue.enqueue("train", run_id, token="click")
    assert queue.enqueue("train", run_id, token="click") == first
    assert queue.enqueue("train", run_id, token="other") != first


def test_a_queued_job_that_is_stopped_never_starts(run_id: int) -> None:
    queue.enqueue("train", run_id)
    queue.stop_run(run_id)
    assert runs.get(run_id)["state"] == "stopped"
    assert queue.next_queued() is None
    with pytest.raises(StudioError, match="nothing to stop"):
        queue.stop_run(run_id)


def test_stop_of_a_running_job_is_seen_by_its_worker(run_id: int) -> None:
    job_id = queue.enqueue("train", run_id)
    queue.set_state(job_id, "running")
    queue.stop_run(run_id)
    assert runs.get(run_id)["state"] == "stopping" and queue.stop_requested(job_id)


def test_jobs_left_running_by_a_dead_process_are_interrupted_when_a_worker_starts(run_id: int) -> None:
    job_id = queue.enqueue("train", run_id)
    queue.set_state(job_id, "running")
    worker = Worker(poll_seconds=0.01)
    worker.start()
    for _ in range(200):
        if runs.get(run_id)["state"] == "interrupted":
            break
        threading.Event().wait(0.02)
    worker.close()
    worker.join()
    assert queue.get(job_id)["state"] == runs.get(run_id)["state"] == "interrupted"
    assert "interrupted" in runs.events(run_id)[-1]["text"]


def test_a_second_worker_leaves_the_first_ones_jobs_alone(run_id: int) -> None:
    first, second = Worker(poll_seconds=0.01), Worker(poll_seconds=0.01)
    first.start()
    while not first.lock.is_locked:
        threading.Event().wait(0.01)
    second.start()
    # Never queued, so that the first worker does not take it up.
    job_id = insert("jobs", {"kind": "train", "run_id": run_id, "state": "running"})
    threading.Event().wait(0.3)
    assert queue.get(job_id)["state"] == "running"
    for worker in (first, second):
        worker.close()
        worker.join()


def test_a_completed_run_does_not_resume(run_id: int) -> None:
    queue.set_state(queue.enqueue("train", run_id), "completed")
    with pytest.raises(StudioError, match="is completed"):
        queue.resume_run(run_id)
