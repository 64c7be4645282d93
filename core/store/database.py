"""The SQLite file that workers write and pages read: one connection per thread, WAL, migrations.

Never share a connection between threads; call `database()` wherever one is needed.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlite_utils import Database, Migrations

from core.home import home

migrations = Migrations("plumbline")
_local = threading.local()


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
    # What a run was expected to take and what it took, as JSON (core.training.forecast, core.figures).
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


def database_path() -> Path:
    return home() / "plumbline.db"


def database() -> Database:
    """This thread's connection to the workspace's database, migrated."""
    path = str(database_path())
    if getattr(_local, "path", None) != path:
        _local.db = _open(path)
        _local.path = path
    return _local.db


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
        raise


def stamp() -> tuple[tuple[int, int], ...]:
    """Changes with every commit of any process: what was read under an equal stamp is still so."""
    found = []
    for path in (database_path(), database_path().with_name(database_path().name + "-wal")):
        with suppress(FileNotFoundError):
            state = path.stat()
            found.append((state.st_mtime_ns, state.st_size))
    return tuple(found)


def insert(table: str, values: dict[str, Any]) -> int:
    """Add a row to a table with an integer key. :returns: the key"""
    return int(str(database().table(table).insert(values).last_pk))


def _open(path: str) -> Database:
    connection = sqlite3.connect(path, timeout=10.0)
    connection.execute("PRAGMA trusted_schema = OFF")
    # With a write-ahead log this is safe against crashes; only a power cut can take the last commits.
    # A commit that waits for the disk would hold up training.
    connection.execute("PRAGMA synchronous = NORMAL")
    db = Database(connection)
    for attempt in range(5):
        try:
            db.enable_wal()
            migrations.apply(db)
            return db
        except sqlite3.OperationalError:
            # Two processes that migrate a new file at once: the second sees the first one's
            # tables, or a lock, and finds nothing left to do on its next look.
            if attempt == 4:
                raise
            time.sleep(0.3)
    raise AssertionError("unreachable")
