"""SQLite: NaN stays NaN, threads have their own connection, states change in one place.

A check is the job that has a dataset and no run; a workspace of the version before opens as it is.
"""

import json
import math
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from sqlite_utils import Database

from plumbline.config.mapping import Mapping
from plumbline.config.schema import loads
from plumbline.data import rows
from plumbline.data.importing import importer
from plumbline.data.importing import near_duplicates as near
from plumbline.data.importing.importer import Options
from plumbline.data.readers.source_files import Source
from plumbline.data.selection import datasets as data
from plumbline.errors import StopRequested, StudioError
from plumbline.home import folder
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.store import datasets, runs
from plumbline.store.database import database, database_path, insert, migrations
from plumbline.worker import near_duplicates as check
from plumbline.worker.worker import Worker, work_on
from plumbline_studio import status
from tests.runs import add, do, recipe


@pytest.fixture
def run_id(samples: Path) -> int:
    return add(recipe())


def test_nan_and_infinity_are_kept(run_id: int) -> None:
    runs.record(
        run_id, [(1, {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.5, "entropy": 1.0})]
    )
    (point,) = runs.metrics(run_id)
    assert math.isnan(point["loss"]) and point["grad_norm"] == math.inf and point["learning_rate"] == 0.5
    assert point["eval_loss"] is None


def test_a_step_has_one_row_whatever_is_measured_at_it(run_id: int) -> None:
    runs.record(run_id, [(5, {"loss": 2.0})])
    runs.record(run_id, [(5, {"eval_loss": 3.0})])
    assert [(p["step"], p["loss"], p["eval_loss"]) for p in runs.metrics(run_id)] == [(5, 2.0, 3.0)]


def test_points_past_a_checkpoint_are_forgotten(run_id: int) -> None:
    for step in (1, 2, 3):
        runs.record(run_id, [(step, {"loss": float(step)})])
    runs.forget_after(run_id, 2)
    assert [p["step"] for p in runs.metrics(run_id)] == [1, 2]


def test_threads_write_while_others_read(run_id: int) -> None:
    def write(first: int) -> None:
        for step in range(first, first + 50):
            runs.record(run_id, [(step, {"loss": 1.0})])

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


def test_a_second_worker_leaves_the_first_ones_jobs_alone(
    run_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()
    monkeypatch.setattr(queue, "next_queued", lambda: looked.set())
    first, second = Worker(poll_seconds=0.01), Worker(poll_seconds=0.01)
    first.start()
    assert looked.wait(10)
    second.start()
    job_id = insert("jobs", {"kind": "train", "run_id": run_id, "state": "running"})
    threading.Event().wait(0.3)
    state = queue.get(job_id)["state"]
    for worker in (first, second):
        worker.close()
        worker.join()
    assert state == "running"


def test_a_completed_run_does_not_resume(run_id: int) -> None:
    queue.set_state(queue.enqueue("train", run_id), "completed")
    with pytest.raises(StudioError, match="is completed"):
        queue.resume_run(run_id)


def test_states_change_while_others_write(run_id: int) -> None:
    """A transaction that reads first fails when another thread writes in between, so none does."""
    job_id = queue.enqueue("train", run_id)
    errors: list[Exception] = []

    def repeat(what: object, *values: object) -> None:
        try:
            for _ in range(100):
                what(*values)  # type: ignore[operator]
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=repeat, args=(queue.set_state, job_id, "running")),
        threading.Thread(target=repeat, args=(queue.stop, job_id)),
        threading.Thread(target=repeat, args=(datasets.replace_finding, 1, "near", None)),
        threading.Thread(target=repeat, args=(runs.event, "said", run_id)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def repeated(count: int = 3) -> int:
    """A dataset of which every second row nearly repeats the one before it. :returns: its id"""
    system = "You are a very patient helper who knows where every single thing of this large house is. " * 9
    file = folder("staging") / "repeated.jsonl"
    with open(file, "w", encoding="utf-8") as out:
        for number in range(2 * count):
            thing = f"thing number {number // 2}"
            answer = f"The {thing} of this house is kept in the room beside the hall of the {thing}."
            row = {"system": system, "prompt": f"{number}: where is it?", "completion": answer}
            out.write(json.dumps(row) + "\n")
    mapping = Mapping(prompt="prompt", answer="completion", system="system")
    return importer.add([Source(file, file.name)], options=Options(mapping=mapping))


def test_a_check_finds_rows_that_say_nearly_the_same_and_keeps_them(samples: Path) -> None:
    dataset_id = repeated()
    datasets.set_findings(dataset_id, [{"kind": "email", "text": "1 row", "part": "train", "rows": [1]}])
    for _ in range(2):  # the second replaces what the first found
        job = do("check", None, dataset_id=dataset_id, threshold=0.75)
        assert job["state"] == "completed" and job["progress"] == 1.0, job["error"]
        assert job["result"]["first"] == [2, 4, 6] and job["run_id"] is None
    kinds = {one["kind"]: one for one in datasets.findings(datasets.get(dataset_id))}
    assert set(kinds) == {"email", "near"}
    text = "3 of 6 rows nearly repeat another row (3 groups)"
    assert kinds["near"] == {"kind": "near", "text": text, "part": "train", "rows": [2, 4, 6]}
    groups = json.loads(check.near_path(dataset_id).read_text())
    assert groups["groups"] == [[1, 2], [3, 4], [5, 6]] and groups["threshold"] == 0.75
    assert queue.latest_check(dataset_id) == queue.latest_check() == queue.get(job["id"])


def test_a_check_that_finds_nothing_takes_an_older_finding_away(samples: Path) -> None:
    datasets.set_findings(1, [{"kind": "near", "text": "old", "part": "train", "rows": [1]}])
    assert do("check", None, dataset_id=1)["result"]["groups"] == 0
    assert datasets.findings(datasets.get(1)) == []


def test_what_the_system_says_is_not_compared() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answer, worse = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "w"}
    assert near.text_of({"messages": [*turns, answer], "rejected": [worse]}) == "u\na\nw"
    assert near.text_of({"text": "t"}) == "t"


def test_a_check_that_is_stopped_leaves_what_was_known(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise StopRequested

    datasets.set_findings(1, [{"kind": "near", "text": "old", "part": "train", "rows": [1]}])
    monkeypatch.setattr(near, "near_duplicates", stopped)
    assert do("check", None, dataset_id=1)["state"] == "stopped"
    assert datasets.findings(datasets.get(1))[0]["text"] == "old"


def test_a_check_that_fails_keeps_its_traceback_in_the_workspace(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(near, "near_duplicates", broken)
    job = do("check", None, dataset_id=1)
    assert job["state"] == "failed" and "Internal error" in job["error"]
    assert "RuntimeError: out of luck" in (samples / "log.txt").read_text()


def test_f03_an_end_that_the_disk_did_not_take_is_a_failure_in_words(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = queue.set_state

    def full(job_id: int, state: str, **more: object) -> None:
        if state == "completed":
            raise sqlite3.OperationalError("database or disk is full")
        honest(job_id, state, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(queue, "set_state", full)
    job = do("check", None, dataset_id=1)
    assert job["state"] == "failed" and job["error"].startswith("The disk is full. Free some space")


def test_a_check_left_running_by_a_dead_process_is_interrupted(samples: Path) -> None:
    job_id = check.start(1)
    queue.set_state(job_id, "running")
    assert queue.mark_orphans() == [job_id]
    assert queue.get(job_id)["state"] == "interrupted"


def test_the_strip_says_what_is_checked(samples: Path) -> None:
    queue.set_state(check.start(1), "running")
    assert "checking cited-answers for near-duplicates" in status.strip()


def test_a_waiting_job_says_what_it_waits_for(run_id: int) -> None:
    queue.set_state(queue.enqueue("train", run_id), "running")
    first, second = check.start(1), queue.enqueue("merge", run_id)
    assert queue.get(first)["phase"] == "waiting behind run 1"
    assert queue.get(second)["phase"] == "waiting behind run 1 and 1 more"
    queue.set_state(queue.enqueue("train", run_id) - 3, "completed")
    assert queue.get(first)["phase"] == "waiting for the worker"
    assert queue.get(second)["phase"] == "waiting behind the check of cited-answers"


def test_a_job_needs_what_it_is_about(run_id: int) -> None:
    with pytest.raises(ValueError, match="needs a dataset"):
        queue.enqueue("check", run_id)
    with pytest.raises(ValueError, match="needs a run"):
        queue.enqueue("merge", None, dataset_id=1)


def test_a_dataset_that_is_being_checked_is_not_deleted(samples: Path) -> None:
    job_id = check.start(1)
    queue.set_state(job_id, "running")
    with pytest.raises(StudioError, match="'cited-answers': is being checked for near-duplicates"):
        data.remove(1)
    queue.set_state(job_id, "completed")
    waiting = check.start(1)
    data.remove(1)
    assert queue.get(waiting)["state"] == "stopped" and queue.latest_check() is None
    work_on(Job(queue.get(waiting)))
    assert queue.get(waiting)["state"] == "stopped"
    assert not (samples / "datasets" / "1").exists()


OLD_RECIPE = """\
name: ''
model: {base: starter, revision: null}
quantisation: {method: nf4, double: true, compute_dtype: auto}
lora: {r: 4, alpha: 8.0, dropout: 0.0, target_modules: [q_proj, v_proj]}
data: {dataset: old, held_out_share: 0.25, split_seed: 42, max_rows: null}
training: {epochs: 1.0, max_steps: 2, learning_rate: 0.001, effective_batch: 4, micro_batch: 4,
  max_length: 64, optimizer: adamw_torch, gradient_checkpointing: false, seed: 0}
evaluation: {max_rows: 8, max_new_tokens: 8, batch: 8}
"""


@pytest.fixture
def old_workspace(workspace: Path) -> Path:
    """A workspace as the version before left it: no new columns, rows without an index."""
    place = workspace / "datasets" / "1"
    place.mkdir(parents=True)
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What is {n}\u2028 é?"},
                    {"role": "assistant", "content": f"It is {n}."},
                ]
            },
            ensure_ascii=False,
        )
        for n in range(24)
    ]
    (place / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    connection = sqlite3.connect(workspace / "plumbline.db")
    db = Database(connection)
    migrations.apply(db, stop_before="m007_data_desk")
    dataset = {"name": "old", "shape": "messages", "rows": 24, "held_out_rows": 0, "sha256": "0" * 64}
    db.table("datasets").insert(
        dataset | {"id": 1, "source": "old.jsonl", "left_out": "2", "created_at": time.time()}
    )
    run = {"name": "old-r4", "state": "interrupted", "base": "starter", "dataset_id": 1, "step": 0}
    db.table("runs").insert(run | {"id": 1, "recipe": OLD_RECIPE, "created_at": time.time()})
    job = {"kind": "train", "run_id": 1, "state": "interrupted", "payload": "{}", "progress": 0.0}
    db.table("jobs").insert(job | {"id": 1, "created_at": time.time()})
    connection.close()
    return workspace


def test_a_workspace_of_the_version_before_is_listed_and_shown(
    old_workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    from plumbline.cli import main

    for verb in (["data"], ["data", "show", "old"], ["data", "show", "old", "--row", "24"], ["runs"]):
        assert main.main(verb, lambda *_: None) == 0, verb
    printed = capsys.readouterr().out
    assert "stored by an earlier version" in printed and "What is 23" in printed and "old-r4" in printed
    assert "2 bad rows" in printed
    assert not migrations.pending(database()) and database_path().exists()
    assert len(rows.index(1, "train")) == 24 and (old_workspace / "datasets/1/train.npy").exists()
    recipe = runs.recipe(1)  # with the day on which it was started, which an old recipe does not say
    undated = recipe.model_copy(update={"data": recipe.data.model_copy(update={"day": ""})})
    assert recipe.data.day and undated == loads(OLD_RECIPE)


def test_a_run_of_the_version_before_goes_on_and_its_dataset_is_checked(old_workspace: Path) -> None:
    job_id = queue.resume_run(1)
    work_on(Job(queue.get(job_id)))
    assert queue.get(job_id)["state"] == runs.get(1)["state"] == "completed", queue.get(job_id)["error"]
    assert do("check", None, dataset_id=1)["state"] == "completed"
    with pytest.raises(StudioError, match="is used by old-r4"):
        data.remove(1)


def test_a_check_that_waits_or_runs_is_not_queued_again(samples: Path) -> None:
    job_id = check.start(1)
    assert check.start(1) == job_id and check.start(2) != job_id and check.start(1, 0.9) != job_id
    queue.set_state(job_id, "running")
    assert check.start(1) == job_id
    queue.set_state(job_id, "stopping")
    assert check.start(1) != job_id
