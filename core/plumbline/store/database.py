"""The SQLite file that workers write and pages read: one connection per thread, WAL, migrations.

Never share a connection between threads; call `database()` wherever one is needed.
"""

import functools
import math
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlite_utils import Database, Migrations

from plumbline.store import backups, opening
from plumbline.store.opening import database_path

migrations = Migrations("plumbline")
_local = threading.local()
JOB_SECONDS = 600.0  # how long a job waits for its turn with what it cannot go on without
PASSING_SECONDS, HELD_SECONDS = 0.1, 1.0


@migrations()
def m001_datasets(db: Database) -> None:
    db.table("datasets").create(
        {
            "id": int,
            "name": str,
            "shape": str,
            "rows": int,
            "held_out_rows": int,
            "sha256": str,
            "source": str,
            "left_out": str,
            "created_at": float,
        },
        pk="id",
        not_null={"name", "shape", "rows", "held_out_rows", "sha256"},
    )
    db.table("datasets").create_index(["name"], unique=True)


@migrations()
def m002_runs(db: Database) -> None:
    db.table("runs").create(
        {
            "id": int,
            "name": str,
            "state": str,
            "phase": str,
            "base": str,
            "dataset_id": int,
            "recipe": str,
            "step": int,
            "total_steps": int,
            "loss": float,
            "eval_loss": float,
            "base_eval_loss": float,
            "best_eval_loss": float,
            "best_step": int,
            "seconds_left": float,
            "memory_gb": float,
            "device": str,
            "decisions": str,
            "summary": str,
            "error": str,
            "created_at": float,
            "started_at": float,
            "finished_at": float,
        },
        pk="id",
        not_null={"name", "state", "recipe"},
    )


@migrations()
def m003_metrics(db: Database) -> None:
    db.table("metrics").create(
        {
            "run_id": int,
            "step": int,
            "epoch": float,
            "loss": float,
            "eval_loss": float,
            "learning_rate": float,
            "grad_norm": float,
            "tokens_per_second": float,
            "memory_gb": float,
            "not_a_number": str,
            "extra": str,
            "created_at": float,
        },
        pk=("run_id", "step"),
    )


@migrations()
def m004_jobs(db: Database) -> None:
    db.table("jobs").create(
        {
            "id": int,
            "kind": str,
            "run_id": int,
            "state": str,
            "control": str,
            "phase": str,
            "progress": float,
            "payload": str,
            "result": str,
            "error": str,
            "token": str,
            "created_at": float,
            "started_at": float,
            "finished_at": float,
        },
        pk="id",
        not_null={"kind", "state"},
    )
    db.table("jobs").create_index(["state"])
    db.table("jobs").create_index(["token"], unique=True)


@migrations()
def m005_evaluations(db: Database) -> None:
    db.table("evaluations").create(
        {
            "id": int,
            "run_id": int,
            "dataset_id": int,
            "job_id": int,
            "rows": int,
            "result": str,
            "created_at": float,
        },
        pk="id",
    )
    db.table("evaluation_rows").create(
        {
            "evaluation_id": int,
            "row": int,
            "prompt": str,
            "reference": str,
            "base_answer": str,
            "adapter_answer": str,
            "base_score": float,
            "adapter_score": float,
        },
        pk=("evaluation_id", "row"),
    )


@migrations()
def m006_events(db: Database) -> None:
    db.table("events").create(
        {"id": int, "run_id": int, "job_id": int, "level": str, "text": str, "created_at": float},
        pk="id",
    )
    db.table("events").create_index(["run_id"])


@migrations()
def m007_data_desk(db: Database) -> None:
    datasets = db.table("datasets")
    datasets.add_column("bytes", int)
    # How its columns became rows, what its checks found, which columns it kept, where it came from.
    for name in ("mapping", "findings", "columns", "origin"):
        datasets.add_column(name, str)
    db.table("mappings").create({"name": str, "mapping": str, "created_at": float}, pk="name")
    db.table("jobs").add_column("dataset_id", int)


@migrations()
def m008_forecasts(db: Database) -> None:
    # What a run was expected to take and what it took, as JSON (plumbline.planner.figures).
    for name in ("forecast", "outcome"):
        db.table("runs").add_column(name, str)
    db.table("probes").create(
        {"recipe": str, "device": str, "forecast": str, "created_at": float},
        pk=("recipe", "device"),
        not_null={"forecast"},
    )


@migrations()
def m009_lineage(db: Database) -> None:
    # Which run, and which step of it, a run goes on from or trains again.
    db.table("runs").add_column("parent", int)
    db.table("runs").add_column("parent_step", int)
    db.table("runs").add_column("relation", str)


@migrations()
def m010_workspace(db: Database) -> None:
    # Which database this is, and how many changes of its rows it has seen (plumbline.store.sidecars).
    db.table("workspace").create({"id": str, "changes": int}, pk="id", not_null={"changes"})
    db.table("workspace").insert({"id": uuid.uuid4().hex, "changes": 0})


def database() -> Database:
    """This thread's connection to the workspace's database, migrated.

    :raises StudioError: when the file is not to be used (plumbline.store.opening)
    """
    path = str(database_path())
    if getattr(_local, "path", None) != path:
        _local.db = _open(database_path())
        _local.path = path
    return _local.db


def close() -> None:
    """Close this thread's connection, because the file is about to be replaced."""
    if getattr(_local, "path", None) is not None:
        _local.db.conn.close()
        _local.path = None


@contextmanager
def in_place_of_it(path: Path) -> Iterator[Database]:
    """While inside, this thread works on another file, which is made, in place of the workspace's."""
    close()
    _local.db, _local.path = _connected(path), str(database_path())
    try:
        migrations.apply(_local.db)
        yield _local.db
    finally:
        close()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """While inside, this thread waits so long for its turn, when another program holds the database."""
    connection = database().conn
    before = connection.execute("PRAGMA busy_timeout").fetchone()[0]
    connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {before}")


def in_passing(write: Callable[[], None]) -> bool:
    """Write what can wait until later, unless another program holds the database. :returns: whether it was

    A database that is held costs a tenth of a second, and nothing more until a second has passed.
    """
    if database().conn.in_transaction:
        write()
        return True
    if time.monotonic() - getattr(_local, "held_at", -math.inf) < HELD_SECONDS:
        return False
    try:
        with patience(PASSING_SECONDS), writing():
            write()
    except sqlite3.OperationalError as error:
        if not is_held(error):
            raise
        _local.held_at = time.monotonic()
        return False
    return True


def is_held(error: BaseException) -> bool:
    """Whether a write or a read failed because another program holds the database."""
    return isinstance(error, sqlite3.OperationalError) and "is locked" in str(error)


@contextmanager
def writing() -> Iterator[Database]:
    """A transaction that nobody else writes during: what is read in it stays true until it ends.

    It waits for its turn at the beginning. A transaction that reads first and then writes cannot wait
    (SQLite would have to change what was read) and fails as soon as another thread wrote in between.
    """
    db = database()
    if db.conn.in_transaction:
        with db.atomic():
            yield db
        return
    db.conn.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.conn.commit()  # may fail too, as on a full disk
    except BaseException:
        db.conn.rollback()
        _local.waiting = []
        raise
    waiting, _local.waiting = getattr(_local, "waiting", []), []
    for action in dict.fromkeys(waiting):
        action()


def once_committed(action: Callable[[], None]) -> None:
    """Call something now, or once a transaction is committed, however often that was asked for in it."""
    if not database().conn.in_transaction:
        action()
        return
    _local.waiting = [*getattr(_local, "waiting", []), action]


def stamp() -> tuple[tuple[int, int], ...]:
    """Changes with every commit of any process: what was read under an equal stamp is still so."""
    states = []
    for path in (database_path(), database_path().with_name(database_path().name + "-wal")):
        with suppress(FileNotFoundError):
            state = path.stat()
            states.append((state.st_mtime_ns, state.st_size))
    return tuple(states)


def insert(table: str, values: dict[str, Any]) -> int:
    """Add a row to a table with an integer key. :returns: the key"""
    return int(str(database().table(table).insert(values).last_pk))


@functools.cache
def known() -> tuple[str, ...]:
    """The names of all migrations of this version, in their order."""
    return tuple(migration.name for migration in migrations.pending(Database(memory=True)))


def _open(path: Path) -> Database:
    missing = _missing(path)
    if not missing:
        return _connected(path)
    # Of two processes that open a new or an old file at once, the second finds nothing left to do.
    with FileLock(path.with_name("migration.lock"), mode=0o600):
        missing = _missing(path)
        if missing and len(missing) < len(known()):
            backups.before_migration(missing[0])
        db = _connected(path)
        migrations.apply(db)
        return db


def _missing(path: Path) -> list[str]:
    has = opening.applied(path, known())
    return [name for name in known() if name not in has]


def _connected(path: Path) -> Database:
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its other files the same rights
    connection = sqlite3.connect(path, timeout=10.0)
    connection.execute("PRAGMA trusted_schema = OFF")
    # With a write-ahead log this is safe against crashes; only a power cut can take the last commits.
    # A commit that waits for the disk would hold up training.
    connection.execute("PRAGMA synchronous = NORMAL")
    db = Database(connection)
    db.enable_wal()
    return db
