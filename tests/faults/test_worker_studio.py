"""The studio is told to end, or killed, while it trains: what was saved goes on, nothing is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from plumbline.checkpoints import folders
from plumbline.config import schema
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.store.database import database
from plumbline.worker.worker import recover
from tests import ROOT
from tests.faults.waiting import until
from tests.runs import add, recipe
from tests.server import Studio

# More steps than are done before a test ends them.
LONG: dict[str, Any] = {"max_steps": 400, "eval_steps": 400, "save_steps": 3}


slow = pytest.mark.slow


@pytest.fixture(params=["process", pytest.param("thread", marks=slow)])
def studio(samples: Path, request: pytest.FixtureRequest) -> Iterator[Studio]:
    made = Studio(samples, "--worker", request.param)
    yield made
    made.kill()


def training(steps: int = 4) -> int:
    """A run that has done a few steps. :returns: its id"""
    run_id = add(recipe(training=LONG))
    job_id = queue.enqueue("train", run_id)
    until(lambda: (runs.get(run_id)["step"] or 0) >= steps or queue.get(job_id)["state"] in queue.ENDED)
    assert runs.get(run_id)["state"] == "running", runs.get(run_id)["error"]
    return run_id


def saved(home: Path, run_id: int) -> int:
    """The step of a run's newest good checkpoint."""
    checkpoint, bad = folders.newest_good(home / "runs" / str(run_id) / "checkpoints")
    assert checkpoint is not None and not bad
    return folders.step_of(checkpoint)


def intact() -> bool:
    return database().execute("pragma integrity_check").fetchone()[0] == "ok"


@pytest.mark.parametrize(
    "name", ["SIGTERM", pytest.param("SIGINT", marks=slow), pytest.param("SIGHUP", marks=slow)]
)
def test_f10_one_signal_saves_the_run_and_ends_well(samples: Path, studio: Studio, name: str) -> None:
    run_id = training()
    waiting = queue.enqueue("merge", run_id)
    below = psutil.Process(studio.process.pid).children(recursive=True)
    studio.process.send_signal(getattr(signal, name))
    assert studio.process.wait(25) == 0, studio.printed
    run = runs.get(run_id)
    assert run["state"] == "interrupted", (run, studio.printed)
    assert saved(samples, run_id) == run["step"] >= 4
    assert queue.get(waiting)["state"] == "queued"
    assert not any(one.is_running() for one in below)
    assert queue.resume_run(run_id)


def test_f10_a_second_signal_ends_at_once_and_leaves_what_was_saved(samples: Path, studio: Studio) -> None:
    run_id = training()
    below = psutil.Process(studio.process.pid).children(recursive=True)
    for _ in range(2):
        studio.process.send_signal(signal.SIGINT)
        # Two that come at once are one signal; the second must find the first one heard.
        until(lambda: runs.get(run_id)["state"] != "running" or studio.process.poll() is not None)
    assert studio.process.wait(5) in (0, 128 + signal.SIGINT)
    psutil.wait_procs(below, 10)
    recover()
    assert runs.get(run_id)["state"] == "interrupted" and saved(samples, run_id) >= 3 and intact()


def test_f08_a_killed_studio_leaves_no_run_that_nobody_does(samples: Path) -> None:
    studio = Studio(samples, "--worker", "process")
    run_id = training()
    short = add(recipe())
    waiting = queue.enqueue("train", short)
    below = psutil.Process(studio.process.pid).children(recursive=True)
    assert below
    studio.kill()
    gone, alive = psutil.wait_procs(below, 10)
    assert not alive
    assert runs.get(run_id)["state"] == "running"  # as the dead process left it
    # The number of a process that lives says nothing: the lock counts.
    (samples / "worker.lock").write_text(str(os.getpid()))

    studio = Studio(samples, "--worker", "process")
    try:
        until(lambda: runs.get(run_id)["state"] == "interrupted", 10)
        with pytest.raises(StudioError, match="is interrupted, there is nothing to stop"):
            queue.stop_run(run_id)
        until(lambda: queue.get(waiting)["state"] in queue.ENDED)
        assert runs.get(short)["state"] == "completed", runs.get(short)["error"]
        before = saved(samples, run_id)
        queue.resume_run(run_id)
        until(lambda: any(f"resumed from step {before}" in one["text"] for one in runs.events(run_id)))
        until(lambda: runs.get(run_id)["step"] > before)
        queue.stop_run(run_id)
        until(lambda: runs.get(run_id)["state"] == "stopped")
        assert saved(samples, run_id) > before
    finally:
        studio.close()
    assert intact()


def test_f08_a_job_that_was_stopping_when_its_process_died_is_interrupted(samples: Path) -> None:
    run_id = add(recipe())
    queue.set_state(queue.enqueue("train", run_id), "running")
    queue.stop_run(run_id)
    other = queue.enqueue("merge", run_id)
    (samples / "worker.lock").write_text(str(os.getpid()))
    recover()
    assert runs.get(run_id)["state"] == "interrupted" and queue.get(other)["state"] == "queued"
    assert queue.stop_requested(queue.resume_run(run_id)) is False


@pytest.mark.parametrize(
    "name, state", [("SIGTERM", "interrupted"), pytest.param("SIGINT", "stopped", marks=slow)]
)
def test_f10_training_in_the_foreground_ends_in_a_checkpoint(
    samples: Path, tmp_path: Path, name: str, state: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(schema.dumps(recipe(training=LONG)))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "train", str(file)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    until(lambda: process.poll() is not None or any((run["step"] or 0) >= 4 for run in runs.listed()))
    process.send_signal(getattr(signal, name))
    assert process.wait(60) == 1
    assert runs.get(1)["state"] == state and saved(samples, 1) == runs.get(1)["step"]


def test_b7_a_run_leaves_the_studio_as_it_was(samples: Path) -> None:
    studio = Studio(samples, "--worker", "process")
    try:
        own = psutil.Process(studio.process.pid)
        before = own.memory_info().rss
        run_id = add(recipe())
        queue.enqueue("train", run_id)
        until(lambda: runs.get(run_id)["state"] in queue.ENDED)
        assert runs.get(run_id)["state"] == "completed", runs.get(run_id)["error"]
        assert own.memory_info().rss - before <= 32 * 1024**2
        assert sys.platform != "linux" or not any("libtorch" in part.path for part in own.memory_maps())
    finally:
        studio.close()
