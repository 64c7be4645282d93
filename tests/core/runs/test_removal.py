"""Deleting runs: all of one goes or nothing does, numbers are never given again, a crash leaves no folder."""

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plumbline import api
from plumbline.checkpoints import inherit
from plumbline.cli import main
from plumbline.errors import StudioError
from plumbline.home import export_folder, home, run_folder
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.runs import delete, lineage
from plumbline.store import datasets, evaluations, runs
from plumbline.store.database import database
from plumbline.worker.supervisor import Supervisor
from tests.runs import add, recipe

OF_A_RUN = ("runs", "metrics", "evaluations", "evaluation_rows", "jobs")


def ended(run_id: int, state: str = "completed", kind: Any = "train") -> int:
    """A job of a run that has ended. :returns: its id"""
    job_id = queue.enqueue(kind, run_id)
    queue.set_state(job_id, state)
    return job_id


def kept(run_id: int, *steps: int) -> None:
    """Folders as checkpoints of these steps have them."""
    for step in steps:
        folder = run_folder(run_id) / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"0" * 1000)


def rows() -> dict[str, int]:
    return {table: database().table(table).count for table in OF_A_RUN}


@pytest.fixture
def before(samples: Path) -> dict[str, int]:
    """A workspace with one finished run that stays, and how many rows it has of each kind."""
    run_id = add(recipe())
    ended(run_id)
    runs.record(run_id, [(1, {"loss": 1.0})])
    return rows()


@pytest.fixture
def full(before: dict[str, int]) -> tuple[int, int]:
    """A finished run with everything that a run can have: its number, and that of its export."""
    run_id = add(recipe())
    kept(run_id, 2, 4)
    runs.record(run_id, [(1, {"loss": 1.0}), (2, {"loss": 0.5})])
    runs.event("something happened", run_id)
    ended(run_id)
    dataset_id = datasets.by_name("cited-answers")["id"]
    answer = dict.fromkeys(("prompt", "reference", "base_answer", "adapter_answer"), "a")
    evaluations.add(run_id, dataset_id, ended(run_id, kind="evaluate"), {"rows": 1}, [answer])
    job_id = ended(run_id, kind="adapter")
    (export_folder(job_id) / "adapter.zip").write_bytes(b"0" * 500)
    return run_id, job_id


def test_all_of_a_run_goes_and_nothing_else(full: tuple[int, int], before: dict[str, int]) -> None:
    run_id, job_id = full
    sentence = delete.contents(run_id).sentence
    assert sentence == (
        "This deletes for good: its adapter, curves and log, 2 checkpoints, 1 evaluation, 1 export; 0.0 MB."
    )
    api.delete(run_id)
    assert rows() == before
    assert [event["text"] for event in runs.events(run_id)] == [f"run {run_id} was deleted"] * 3
    assert sorted(path.name for path in (home() / "runs").iterdir()) == ["1"]
    assert sorted(path.name for path in (home() / "exports").iterdir()) == []
    with pytest.raises(StudioError, match=f"run {run_id}: does not exist"):
        api.delete(run_id)
    with pytest.raises(StudioError, match=f"run {run_id}: does not exist"):
        queue.enqueue("evaluate", run_id)


@pytest.mark.parametrize("state", ["queued", "preparing", "running", "stopping"])
def test_f08_a_run_with_a_job_that_is_not_over_is_refused_whole(full: tuple[int, int], state: str) -> None:
    run_id, job_id = full
    queue.set_state(queue.enqueue("train", run_id, resume=True), state)
    earlier = rows()
    first = "Wait for its end" if state == "stopping" else "Stop it"
    with pytest.raises(StudioError, match=f"^run {run_id}: is {state}. {first}, then delete the run.$"):
        delete.remove(run_id)
    queue.set_state(queue.latest(run_id, "train")["id"], "stopped")
    queue.set_state(queue.enqueue("merge", run_id), state)
    with pytest.raises(StudioError, match=f"^the merge of run {run_id}: is {state}. Wait for its end"):
        delete.remove(run_id)
    assert rows() == earlier | {"jobs": earlier["jobs"] + 1}
    assert inherit.steps(run_id) == [2, 4] and (export_folder(job_id) / "adapter.zip").exists()


@pytest.mark.parametrize("state", ["interrupted", "stopped", "failed"])
def test_f08_a_run_that_ended_in_whatever_way_can_be_deleted(samples: Path, state: str) -> None:
    run_id = add(recipe())
    ended(run_id, state)
    delete.remove(run_id)
    assert not runs.exists(run_id)


def test_f08_a_run_whose_process_was_killed_can_be_deleted(samples: Path) -> None:
    run_id = add(recipe())
    queue.set_state(queue.enqueue("train", run_id), "running")
    with pytest.raises(StudioError, match="is running"):
        delete.remove(run_id)
    api.delete(run_id)
    assert not runs.exists(run_id)


def test_numbers_are_never_given_again(full: tuple[int, int]) -> None:
    run_id, job_id = full
    delete.remove(run_id)
    assert add(recipe()) == run_id + 1
    assert queue.enqueue("train", run_id + 1) == job_id + 1
    queue.stop_run(run_id + 1)
    delete.remove(run_id + 1)
    assert add(recipe()) == run_id + 2


def test_a_run_whose_branch_is_trained_again_stays_until_that_has_begun(full: tuple[int, int]) -> None:
    run_id, _ = full
    child = runs.add(recipe(), 1, run_id, 2, "branch")
    ended(child)
    again = runs.add(recipe(), 1, child, None, "reproduction")
    with pytest.raises(StudioError, match=f"is needed by run {again}"):
        delete.remove(run_id)
    ended(again)
    delete.remove(run_id)


def test_runs_that_come_from_a_deleted_one_stay_and_say_so(full: tuple[int, int]) -> None:
    run_id, _ = full
    child = runs.add(recipe(), 1, run_id, 2, "branch")
    stage = runs.add(recipe(), 1, run_id, None, "rank")
    again = runs.add(recipe(), 1, run_id, None, "reproduction")
    with pytest.raises(StudioError, match=f"is needed by run {child}, which has saved nothing of its own"):
        delete.remove(run_id)
    kept(child, 1)
    ended(child, "stopped")
    ended(stage)
    with pytest.raises(StudioError, match=f"is needed by run {again}"):
        delete.remove(run_id)
    ended(again)
    assert f"Run {child}, run {stage}, run {again} come from it and stay." in delete.contents(run_id).sentence
    assert lineage.origin(runs.get(child), runs.numbers()) == f"from step 2 of run {run_id}"
    delete.remove(run_id)
    known = runs.numbers()
    said = [lineage.origin(runs.get(each), known) for each in (child, stage, again, 1)]
    gone = f"run {run_id} (deleted)"
    assert said == [f"from step 2 of {gone}", f"after {gone}", f"{gone} again", ""]
    with pytest.raises(StudioError, match=f"run {run_id}: does not exist"):
        lineage.agreement(again)


@pytest.mark.parametrize("moment", ["rename", "rmtree"])
def test_f25_a_crash_in_the_middle_of_a_deletion_leaves_no_folder_after_the_next_start(
    full: tuple[int, int], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run_id, job_id = full

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path if moment == "rename" else delete.shutil, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            delete.remove(run_id)
    assert not runs.exists(run_id)
    assert [*(home() / "runs").iterdir()] and [*(home() / "exports").iterdir()]
    other = add(recipe())
    kept(other, 1)
    delete.clear()
    assert sorted(path.name for path in (home() / "runs").iterdir()) == ["1", str(other)]
    assert [*(home() / "exports").iterdir()] == []


def test_f25_folders_without_a_row_stay_when_nobody_deleted_them(samples: Path) -> None:
    kept(7, 1)
    delete.clear()
    assert inherit.steps(7) == [1]


def test_f25_links_are_removed_and_never_followed(full: tuple[int, int], tmp_path: Path) -> None:
    run_id, job_id = full
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("stays")
    (run_folder(run_id) / "checkpoints" / "link").symlink_to(outside)
    (export_folder(job_id) / "adapter.zip").unlink()
    export_folder(job_id).rmdir()
    os.symlink(outside, home() / "exports" / str(job_id))
    delete.remove(run_id)
    assert (outside / "canary").read_text() == "stays"
    assert [path.name for path in (home() / "runs").iterdir()] == ["1"]


def test_a_folder_that_cannot_be_removed_does_not_stop_the_next_start(
    full: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        delete.remove(full[0])
    assert f"{full[0]} of a deleted run could not be removed" in caplog.text
    delete.clear()
    assert [path.name for path in (home() / "runs").iterdir()] == ["1"]


def test_a_worker_takes_the_job_of_a_deleted_run_for_ended(samples: Path) -> None:
    """The run is deleted between its job's end and the end of the process that did it."""
    run_id = add(recipe())
    job = Job(queue.get(ended(run_id)))
    looked: list[float] = []

    def wait(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 1:
            delete.remove(run_id)
            raise subprocess.TimeoutExpired("a child", seconds)

    child: Any = SimpleNamespace(process=SimpleNamespace(wait=wait, returncode=-9), printed=lambda: "")
    supervisor = Supervisor()
    assert supervisor._wait(child, job) is False and len(looked) == 2
    supervisor._conclude(child, job, False)
    assert runs.events(run_id)[-1]["text"] == f"run {run_id} was deleted"


def test_the_command_line_deletes_and_asks_first(
    full: tuple[int, int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = full
    assert main.main(["delete", str(run_id)], lambda *_: None) == 2
    assert "Add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main.main(["delete", str(run_id)], lambda *_: None) == 1
    assert re.search(r"2 checkpoints.*\nKept\.", capsys.readouterr().out) and runs.exists(run_id)
    assert main.main(["delete", str(run_id), "--yes"], lambda *_: None) == 0
    assert not runs.exists(run_id)
    assert main.main(["delete", str(run_id), "--yes"], lambda *_: None) == 2
