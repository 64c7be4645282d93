"""A database that is lost, damaged or old: nothing of runs and datasets is written over, all comes back."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from plumbline.cli import main
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.store import datasets, runs
from plumbline.store.database import database
from tests import old_workspace
from tests.old_workspace import NAMES, STATES, digests, harm
from tests.runs import do

HARMS = ("deleted", "emptied", "truncated", "garbled", "older")
TABLES = ("datasets", "runs", "jobs", "metrics", "evaluations", "evaluation_rows", "events", "mappings")


@pytest.fixture
def older(workspace: Path) -> Path:
    return old_workspace.make(workspace)


def run(*verb: str) -> int:
    return main.main(list(verb), lambda *_: None)


def file_of(folder: Path) -> str:
    path = folder / "new.jsonl"
    path.write_text('{"prompt": "What is new?", "completion": "This."}\n' * 3)
    return str(path)


def test_a_workspace_of_98131f9_opens_whole(workspace: Path, older: Path, tmp_path: Path) -> None:
    before = digests(workspace)
    assert run("runs") == run("data") == run("show", "1") == 0
    assert {row["id"]: row["state"] for row in runs.listed()} == STATES
    assert {row["id"]: row["name"] for row in datasets.listed()} == NAMES
    assert len(runs.metrics(1)) == 5 and runs.get(2)["parent"] == 1
    assert digests(workspace) == before
    (kept,) = (workspace / "backups").iterdir()
    with sqlite3.connect(kept) as copy:
        assert copy.execute("select count(*) from runs").fetchone() == (3,)
        assert not copy.execute("select 1 from sqlite_master where name = 'workspace'").fetchone()


@pytest.mark.parametrize("kind", HARMS)
def test_nothing_of_runs_and_datasets_is_overwritten_and_a_rebuild_lists_them_all(
    workspace: Path, older: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    before = digests(workspace)
    left = harm(workspace, kind, older)
    refused = kind != "older"
    assert run("data", "add", file_of(tmp_path)) == (2 if refused else 0)
    told = capsys.readouterr().err
    assert not refused or ("doctor --rebuild" in told and "Traceback" not in told)
    assert ("keeps the old file beside" in told) == (refused and kind != "deleted")
    if not refused:
        recipe = old_workspace.recipe("squares")
        assert runs.add(recipe, 1) == 4 and datasets.listed()[-1]["id"] == 3
        assert queue.enqueue("merge", 1) == 5, "an export's folder is written into again"
        queue.stop(5)
    assert {name: digests(workspace)[name] for name in before} == before
    assert run("doctor", "--rebuild") == 0
    assert {name: digests(workspace)[name] for name in before} == before
    listed = {row["id"]: row for row in runs.listed()}
    names = {row["id"]: row["name"] for row in datasets.listed()}
    assert {number: names[number] for number in NAMES} == NAMES
    assert listed.keys() >= STATES.keys()
    for number, state in STATES.items():
        row = listed[number]
        # That a run failed is in the database alone.
        assert row["state"] == ("interrupted" if state == "failed" else state)
        assert row["dataset_id"] == min(number, 2) and row["recipe"] == old_workspace.schema.dumps(
            old_workspace.recipe(NAMES[min(number, 2)])
        )
        assert (row["eval_loss"], row["base_eval_loss"], row["total_steps"]) == (2.25, 3.0, 4)
        assert [p["loss"] for p in runs.metrics(number)][1:] == [
            3.0 - step / 4 for step in range(1, row["step"] + 1)
        ]
    assert queue.get(4)["result"]["file"] == "run-1-adapter.zip"
    kept = [path for path in workspace.glob("plumbline.db.kept-*") if path.name[-4:] not in ("-wal", "-shm")]
    assert len(kept) == (kind != "deleted")
    if kind in ("truncated", "garbled", "emptied"):
        assert kept[0].read_bytes() == left


def let_go() -> None:
    """Close this thread's connection, as a process does at its end."""
    from plumbline.store import database as store

    store.close()


def rows() -> dict[str, list[dict[str, Any]]]:
    order = {"metrics": "run_id, step"}
    found = {
        name: list(database().table(name).rows_where(order_by=order.get(name, "rowid"))) for name in TABLES
    }
    for row in [*found["events"], *found["metrics"]]:
        row.pop("id", None)
        row.pop("created_at")
    return found


@pytest.mark.parametrize("kind", HARMS)
def test_what_stands_beside_the_database_makes_all_of_it_again(
    workspace: Path, older: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    from plumbline.store import startup

    startup.ready()
    database().conn.execute("pragma wal_checkpoint(truncate)")
    earlier = workspace.parent / "earlier.db"
    shutil.copy(workspace / "plumbline.db", earlier)
    runs.update(1, name="another name")
    datasets.save_mapping("mine", json.dumps({"prompt": "question"}))
    datasets.set_findings(2, [{"kind": "near", "text": "1 row", "part": "train", "rows": [1]}])
    runs.event("said before the end", 3)
    queue.set_state(queue.enqueue("train", 3, resume=True), "failed", error="out of luck")
    before = rows()
    let_go()
    harm(workspace, kind, earlier)
    assert run("runs") == 2
    assert ("older copy: " in capsys.readouterr().err) == (kind == "older")
    assert run("doctor", "--rebuild") == 0
    assert rows() == before
    assert startup.ready() == [] or "Other users" in startup.ready()[0]


def test_a_run_that_an_older_database_has_yet_to_begin_is_not_trained_over(
    workspace: Path, older: Path
) -> None:
    """The artifact and the checkpoints of run 1 stay as they are, when its row says that it waits."""
    harm(workspace, "older", older)
    before = digests(workspace)
    job = do("train", 1)
    assert job["state"] == "failed" and "has been trained already" in job["error"]
    assert {name: digests(workspace)[name] for name in before} == before


def test_a_rebuild_waits_until_nobody_works_in_the_workspace(workspace: Path, older: Path) -> None:
    from plumbline.jobs import workspace_lock

    with workspace_lock.studio() as note:
        note("http://127.0.0.1:7860/")
        with pytest.raises(
            StudioError, match=r"served by a studio already: process \d+ at http://127.0.0.1:7860/"
        ):
            workspace_lock.nobody().__enter__()
        assert run("doctor", "--rebuild") == 2
    assert run("doctor", "--rebuild") == 0


def test_a_run_and_a_dataset_of_folders_alone_are_told_of(workspace: Path, older: Path) -> None:
    from plumbline.store import startup

    harm(workspace, "older", older)
    told = " ".join(startup.ready())
    assert "2 runs and 1 dataset are in folders and not in the database" in told
    assert "doctor --rebuild" in told


def test_records_that_lie_are_not_believed(workspace: Path, older: Path) -> None:
    """A record may come from elsewhere: its folder says which run it is, and columns have their types."""
    from plumbline.store import startup

    startup.ready()
    place = workspace / "runs" / "1" / "run.json"
    record = json.loads(place.read_text())
    record["run"] |= {"id": 3, "step": "<b>many</b>"}
    place.write_text(json.dumps(record))
    (workspace / "runs" / "2" / "run.json").write_text("[1]")
    (workspace / "datasets" / "2" / "dataset.json").write_text('{"dataset": {"id": "../../x"}}')
    harm(workspace, "deleted", older)
    let_go()
    assert run("doctor", "--rebuild") == 0
    assert {row["id"]: row["step"] for row in runs.listed()} == {1: 4, 2: 2, 3: 3}
    assert [row["id"] for row in datasets.listed()] == [1, 2]


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_terminal_is_asked_whether_the_database_is_to_be_made_anew(
    workspace: Path, older: Path, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    harm(workspace, "garbled", older)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert run("runs") == (0 if answer == "y" else 2)
    printed = capsys.readouterr()
    assert "is damaged" in printed.out
    assert ("squares-r16" in printed.out) == (answer == "y")
    assert ("doctor --rebuild" in printed.err) == (answer == "n")


def test_a_copy_of_yesterday_is_not_gone_on_with_by_any_process(workspace: Path, older: Path) -> None:
    """What a run, a page or a Python program asks for the database is refused as a verb is."""
    from plumbline.store import startup

    startup.ready()
    copy = workspace.parent / "yesterday.db"
    database().conn.execute("pragma wal_checkpoint(truncate)")
    shutil.copy(workspace / "plumbline.db", copy)
    runs.update(1, name="of today")
    let_go()
    harm(workspace, "older", copy)
    with pytest.raises(StudioError, match="is an older copy: 1 change of runs and datasets is not in it"):
        runs.listed()
