"""What is looked at before a database is used: who wrote it, what it holds, who may read it; its backups."""

import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plumbline.cli import main
from plumbline.data.selection import datasets as data
from plumbline.store import datasets, runs
from plumbline.store.database import database
from tests import old_workspace


def run(*verb: str) -> int:
    return main.main(list(verb), lambda *_: None)


@contextmanager
def changed(home: Path) -> Iterator[sqlite3.Connection]:
    """The database as another program changes it."""
    connection = sqlite3.connect(home / "plumbline.db")
    yield connection
    connection.commit()
    connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()


def test_f26_a_newer_schema_is_refused_and_nothing_is_touched(
    workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    old_workspace.make(workspace)
    with changed(workspace) as newer:
        values = "('plumbline', 'm099_wonders', '2030-01-01')"
        newer.execute(f"insert into _sqlite_migrations (migration_set, name, applied_at) values {values}")
    before = (workspace / "plumbline.db").read_bytes()
    for verb in (["runs"], ["data"], ["doctor", "--rebuild"]):
        assert run(*verb) == 2, verb
        told = capsys.readouterr().err
        assert "newer version of Plumbline (m099_wonders)" in told and "Nothing was changed" in told
    assert (workspace / "plumbline.db").read_bytes() == before
    assert not list(workspace.glob("plumbline.db.kept*"))


@pytest.mark.parametrize(
    "made",
    [
        "create trigger harm after update on runs begin delete from runs; end",
        "create view harm as select * from runs",
    ],
)
def test_a25_a_foreign_trigger_or_view_is_refused_and_left_out_of_a_rebuild(
    workspace: Path, made: str, capsys: pytest.CaptureFixture
) -> None:
    old_workspace.make(workspace)
    with changed(workspace) as harmed:
        harmed.execute(made)
    assert run("runs") == 2
    assert "named 'harm', which Plumbline did not make" in capsys.readouterr().err
    assert run("doctor", "--rebuild") == 0 == run("runs")
    assert {row["id"]: row["state"] for row in runs.listed()} == old_workspace.STATES
    found = database().execute("select 1 from sqlite_master where name = 'harm'").fetchall()
    assert found == []


def test_a_database_of_another_program_is_refused(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    workspace.mkdir(parents=True)
    with changed(workspace) as other:
        other.execute("create table places (url text)")
    assert run("runs") == 2 and "another program" in capsys.readouterr().err


def test_damage_inside_of_the_file_is_found_by_the_doctor(
    workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    old_workspace.make(workspace)
    assert run("runs") == 0
    path = workspace / "plumbline.db"
    database().conn.execute("pragma wal_checkpoint(truncate)")
    content = bytearray(path.read_bytes())
    pages = len(content) // 4096
    root = database().execute("select rootpage from sqlite_master where name = 'metrics'").fetchone()[0]
    database().conn.close()
    del database.__globals__["_local"].path
    assert root < pages
    content[4096 * (root - 1) : 4096 * root] = bytes(4096)
    path.write_bytes(content)
    assert run("doctor") == 2
    assert "is damaged" in capsys.readouterr().err
    assert run("doctor", "--rebuild") == 0 == run("doctor")
    assert len(runs.metrics(1)) == 5


def test_a_backup_is_made_once_a_day_and_a_few_are_kept(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plumbline.store import backups

    for day in range(1, 9):
        monkeypatch.setattr(backups.time, "strftime", lambda form, day=day: f"2030-01-{day:02}")
        backups.daily()
        backups.daily()
    names = sorted(path.name for path in (samples / "backups").iterdir())
    assert names == [f"daily-2030-01-{day:02}.db" for day in range(4, 9)]
    with sqlite3.connect(samples / "backups" / names[0]) as copy:
        assert copy.execute("select count(*) from datasets").fetchone() == (3,)
        assert copy.execute("pragma integrity_check").fetchone() == ("ok",)


def test_two_first_starts_at_once_add_the_samples_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database()
    both, seen, honest = threading.Barrier(2), threading.local(), datasets.names
    errors: list[BaseException] = []

    def names() -> list[str]:
        found = honest()
        if not getattr(seen, "once", False):
            seen.once = True
            both.wait(30)  # both have looked before one of them adds
        return found

    def start() -> None:
        try:
            data.ensure_samples()
        except BaseException as error:
            errors.append(error)

    monkeypatch.setattr(datasets, "names", names)
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [row["id"] for row in datasets.listed()] == [1, 2, 3]


def test_two_processes_that_open_an_old_workspace_at_once_migrate_it_once(workspace: Path) -> None:
    old_workspace.make(workspace)
    both, found = threading.Barrier(2), []

    def start() -> None:
        both.wait(30)
        found.append(len(runs.listed()))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3, 3] and len(list((workspace / "backups").iterdir())) == 1


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif("sys.platform == 'win32'", reason="Windows has no such rights")
def test_what_is_made_is_the_owners_alone_and_what_is_there_keeps_its_rights(samples: Path) -> None:
    found: Any = {
        path.relative_to(samples).as_posix(): rights(path) for path in [samples, *samples.iterdir()]
    }
    folders = {name: mode for name, mode in found.items() if (samples / name).is_dir()}
    assert set(folders) >= {".", "datasets"} and set(folders.values()) == {0o700}
    assert rights(samples / "datasets" / "1") == 0o700
    assert {found[name] for name in found if name.startswith("plumbline.db")} == {0o600}
    samples.chmod(0o755)
    run("data")
    assert rights(samples) == 0o755


@pytest.mark.skipif("sys.platform == 'win32'", reason="Windows has no such rights")
def test_a_workspace_that_others_may_read_is_told_of(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    workspace.mkdir(parents=True, mode=0o755)
    run("doctor")
    assert "Other users of this machine may look into" in capsys.readouterr().out
    workspace.chmod(0o700)
    run("doctor")
    assert "Other users" not in capsys.readouterr().out
