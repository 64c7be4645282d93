"""The measurement of a recipe as a job: done, failed, stopped, interrupted; what the page says of it."""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from plumbline.errors import StopRequested, StudioError
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.planner import measurements
from plumbline.store import probes, runs
from plumbline.store.database import database, migrations
from plumbline.worker import measure as probe
from plumbline.worker import near_duplicates
from plumbline.worker.worker import Worker, work_on
from plumbline_studio import status
from plumbline_studio.tabs.train import measure as measuring
from tests.forecasts import Fake, Forecast, installed
from tests.runs import add, recipe


@pytest.fixture
def fake(samples: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return installed(monkeypatch)


def measured(config: Any = None) -> dict[str, Any]:
    """Queue a measurement, do it here and now, and return it as it ended."""
    job_id = probe.start(config or recipe())
    work_on(Job(queue.get(job_id)))
    return queue.get(job_id)


def test_what_is_measured_is_kept_for_the_recipe(fake: Fake) -> None:
    seen: list[str] = []

    def measure(config: Any, job: Job) -> Forecast:
        job.report("step 1 of 2", 0.5)
        seen.append(queue.get(job.id)["state"])
        assert config == recipe()
        return Forecast(probed=True, peak_gib=7.5)

    fake.measures = measure
    job = measured()
    assert (job["state"], job["error"], job["progress"]) == ("completed", None, 1.0) and seen == ["running"]
    assert job["run_id"] is job["dataset_id"] is None
    found = Forecast.from_json(measurements.known(recipe()) or "")
    assert found.peak_gib == 7.5 and found.plan == Forecast().plan
    assert json.loads(job["result"]["forecast"])["peak_gib"] == 7.5
    assert measuring.failure(recipe()) == "" and runs.listed() == []


def test_a_second_measurement_takes_the_place_of_the_first(fake: Fake) -> None:
    measured()
    fake.measures = lambda config, job: Forecast(probed=True, peak_gib=1.25)
    measured()
    assert Forecast.from_json(measurements.known(recipe()) or "").peak_gib == 1.25
    assert database().table("probes").count == 1


def test_a_measurement_that_fails_says_why_beside_the_recipe_that_it_was_of(fake: Fake) -> None:
    def measure(config: Any, job: Job) -> Forecast:
        raise StudioError("measurement", "needs 19 GiB and 15 GiB are free", "Take fewer tokens at once.")

    fake.measures = measure
    job = measured()
    assert job["state"] == "failed" and "needs 19 GiB and 15 GiB are free" in job["error"]
    assert "Measuring brought nothing: measurement: needs 19 GiB" in measuring.failure(recipe())
    assert measuring.failure(recipe(lora={"r": 8})) == ""
    assert measurements.known(recipe()) is None and measuring.signature() is None


def test_a_measurement_that_breaks_keeps_its_traceback(fake: Fake, samples: Path) -> None:
    def measure(config: Any, job: Job) -> Forecast:
        raise RuntimeError("out of luck")

    fake.measures = measure
    assert "Internal error" in measured()["error"]
    assert "RuntimeError: out of luck" in (samples / "log.txt").read_text()


def test_memory_that_runs_out_is_explained(fake: Fake) -> None:
    def measure(config: Any, job: Job) -> Forecast:
        raise MemoryError

    fake.measures = measure
    assert "Lower training.micro_batch_tokens" in measured()["error"]


def test_a_measurement_that_is_stopped_brings_nothing_and_says_so(fake: Fake) -> None:
    def measure(config: Any, job: Job) -> Forecast:
        measuring.stop()
        assert queue.get(job.id)["state"] == "stopping"
        job.check_stop()
        raise AssertionError("it went on")

    fake.measures = measure
    assert measured()["state"] == "stopped"
    assert "Measuring was stopped." in measuring.failure(recipe()) and measurements.known(recipe()) is None


def test_a_stop_that_comes_late_still_brings_nothing(fake: Fake) -> None:
    def measure(config: Any, job: Job) -> Forecast:
        queue.stop(job.id)
        return Forecast(probed=True)

    fake.measures = measure
    assert measured()["state"] == "stopped" and measurements.known(recipe()) is None


def test_a_measurement_that_waits_is_stopped_before_it_starts(fake: Fake) -> None:
    job_id = probe.start(recipe())
    measuring.stop()
    work_on(Job(queue.get(job_id)))
    assert queue.get(job_id)["state"] == "stopped"
    measuring.stop()  # nothing is left to stop


def test_a_measurement_left_by_a_dead_process_is_interrupted(fake: Fake) -> None:
    job_id = probe.start(recipe())
    queue.set_state(job_id, "running")
    assert queue.mark_orphans() == [job_id]
    assert "Measuring brought nothing: The process that worked on it ended." in measuring.failure(recipe())


def test_the_worker_measures(fake: Fake) -> None:
    job_id = probe.start(recipe())
    worker = Worker(poll_seconds=0.01)
    worker.start()
    for _ in range(600):
        if queue.get(job_id)["state"] in queue.ENDED:
            break
        time.sleep(0.05)
    worker.close()
    worker.join()
    assert queue.get(job_id)["state"] == "completed"


def test_a_double_click_measures_once(fake: Fake) -> None:
    measuring.start(recipe(), "click")
    measuring.start(recipe(), "click")
    assert queue.waiting() == 1


def test_nothing_is_measured_beside_another_job(fake: Fake) -> None:
    assert measuring.button(True).interactive and not measuring.button(False).interactive
    run_id = add(recipe())
    job_id = queue.enqueue("train", run_id)
    for state in ("queued", "running"):
        if state == "running":
            queue.set_state(job_id, state)
        with pytest.raises(StudioError, match="would wait behind run 1"):
            measuring.start(recipe(), state)
        button = measuring.button(True)
        assert (button.value, button.interactive) == ("Measure when the job has ended", False)
    queue.set_state(job_id, "completed")
    measuring.start(recipe(), "after")
    assert measuring.button(True).value == "Measuring…" and not measuring.button(True).interactive


def test_progress_is_shown_here_and_in_the_strip_and_named_to_those_who_wait(fake: Fake) -> None:
    nothing, hidden = measuring.shown()
    assert nothing.visible is hidden.visible is False
    config = recipe().model_copy(update={"name": "<b>mine</b>"})
    job_id = probe.start(config)
    assert "waiting for the worker" in measuring.shown()[0].value
    before = measuring.moved()
    queue.set_state(job_id, "running")
    queue.set_progress(job_id, "step 1 of 2", 0.5)
    card, halt = measuring.shown()
    assert "Measuring &lt;b&gt;mine&lt;/b&gt;: step 1 of 2" in card.value and "50.0%" in card.value
    assert halt.visible and halt.interactive and measuring.moved() != before
    assert "measuring &lt;b&gt;mine&lt;/b&gt;" in status.strip()
    waiting = near_duplicates.start(1)
    assert queue.get(waiting)["phase"] == "waiting behind the measurement of <b>mine</b>"
    queue.stop(job_id)
    assert measuring.shown()[1].value == "Stopping…" and not measuring.shown()[1].interactive


def test_what_a_click_changes_is_not_measured_again(fake: Fake) -> None:
    """Progress alone does not count the rows anew; a start or an end does."""
    job_id = probe.start(recipe())
    queue.set_state(job_id, "running")
    before = measuring.moved()
    queue.set_progress(job_id, "step 2 of 2", 0.9)
    assert measuring.moved() == before
    queue.set_state(job_id, "completed")
    assert measuring.moved() != before


def test_a_recipe_whose_dataset_is_gone_is_refused_before_and_explained_after(fake: Fake) -> None:
    with pytest.raises(StudioError, match="'nowhere': does not exist"):
        probe.start(recipe(data={"dataset": "nowhere"}))
    job_id = probe.start(recipe())
    database().table("datasets").update(1, {"name": "renamed"})
    work_on(Job(queue.get(job_id)))
    assert "'cited-answers': does not exist" in queue.get(job_id)["error"]


def test_a_workspace_of_the_version_before_gets_the_new_columns(workspace: Path) -> None:
    workspace.mkdir(parents=True)
    connection = sqlite3.connect(workspace / "plumbline.db")
    db = Database(connection)
    migrations.apply(db, stop_before="m008_forecasts")
    run = {"name": "old-r4", "state": "completed", "recipe": "training: {micro_batch: 2}", "base": "starter"}
    db.table("runs").insert(run | {"id": 1, "step": 3, "created_at": time.time()})
    connection.close()
    assert runs.get(1)["forecast"] is runs.get(1)["outcome"] is None
    assert runs.forecast_and_outcome(1) is None and runs.recipe(1).training.micro_batch_tokens is None
    runs.update(1, forecast="{}", outcome='{"peak_gib": 1}')
    assert runs.forecast_and_outcome(1) == ({}, {"peak_gib": 1})
    assert not migrations.pending(database()) and probes.find("none", "none") is None


def test_stop_requested_is_what_a_measurement_raises(fake: Fake) -> None:
    job_id = probe.start(recipe())
    queue.claim(job_id)
    queue.stop(job_id)
    with pytest.raises(StopRequested):
        probe.probe(Job(queue.get(job_id)))
