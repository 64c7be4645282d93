"""Records of runs and datasets in their own folders, from which a lost database is made again.

``runs/N/run.json`` has a run's row, its jobs and the end of its log, ``runs/N/evaluations/N.json`` an
evaluation with its answers, ``datasets/N/dataset.json`` a dataset's row, ``mappings.json`` the saved
mappings. They are written after each change that matters; what a run measures is in its
metrics_history.jsonl. The database is the truth as long as it is there.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from plumbline.files import write_whole
from plumbline.home import folder, home, numbers_in
from plumbline.store import opening
from plumbline.store.database import database, once_committed, writing

Kind = Literal["run", "dataset", "evaluation", "mappings"]
log = logging.getLogger("plumbline")
EVENTS = 200  # lines of a run's log, as many as the page shows
WAIT_SECONDS = 10.0  # for another process that writes records
_local = threading.local()


def note(kind: Kind, number: int = 0) -> None:
    """Something changed: its record is written when the change is committed.

    A record that cannot be written now is written with the next one, or at the next start of the studio.
    """
    _noted()[kind, number] = None
    once_committed(write_noted)


def _noted() -> dict[tuple[Kind, int], None]:
    if not hasattr(_local, "noted"):
        _local.noted = {}
    return _local.noted


def write_noted() -> None:
    """Write the records of what changed in this thread."""
    noted = list(_noted())
    try:
        with FileLock(home() / "sidecars.lock", timeout=WAIT_SECONDS, mode=0o600):
            _write({record: _COMPOSE[record[0]](record[1]) for record in noted})
    except (OSError, sqlite3.Error, Timeout) as error:
        log.warning("what changed could not be written beside the database: %s", error)
        return
    for record in noted:
        _noted().pop(record, None)


def _write(composed: dict[tuple[Kind, int], dict[str, Any] | None]) -> None:
    """Call with the lock held.

    The database is synced between: a record never says more than a power cut would leave there.
    """
    stamp = _counted()
    for (kind, number), record in composed.items():
        if record is not None:
            path = _place(kind, number, record)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(path, json.dumps(record, ensure_ascii=False))
    write_stamp(stamp)


def write_stamp(stamp: opening.Stamp) -> None:
    write_whole(opening.stamp_path(), json.dumps({"id": stamp.id, "changes": stamp.changes}))


def _counted() -> opening.Stamp:
    """Count a change, and see that all changes up to it have reached the disk."""
    connection = database().conn
    connection.execute("PRAGMA synchronous = FULL")
    try:
        with writing() as db:
            db.execute("update workspace set changes = changes + 1")
            stamp = opening.stamp_of(connection)
    finally:
        connection.execute("PRAGMA synchronous = NORMAL")
    assert stamp is not None, "the migration made it"
    return stamp


def bring_up_to_date() -> None:
    """Write every record that is missing or is not what the database says, as after a crash."""
    db = database()
    every: list[tuple[Kind, int]] = [("mappings", 0)]
    # A row whose folder is gone has nothing that a record could stand beside.
    every += [("dataset", number) for number in sorted(_numbers("datasets") & numbers_in("datasets"))]
    every += [("run", number) for number in sorted(_numbers("runs"))]
    every += [("evaluation", row["id"]) for row in db.table("evaluations").rows]
    with FileLock(home() / "sidecars.lock", timeout=WAIT_SECONDS, mode=0o600):
        stale: dict[tuple[Kind, int], dict[str, Any] | None] = {}
        for kind, number in every:
            record = _COMPOSE[kind](number)
            if record is not None and read(_place(kind, number, record)) != record:
                stale[kind, number] = record
        if stale or opening.last_stamp() is None:
            _write(stale)


def _numbers(table: str) -> set[int]:
    return {row[0] for row in database().execute(f"select id from {table}").fetchall()}


def read(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def run_place(run_id: int) -> Path:
    return home() / "runs" / str(run_id) / "run.json"


def dataset_place(dataset_id: int) -> Path:
    return home() / "datasets" / str(dataset_id) / "dataset.json"


def evaluation_places(run_id: int) -> list[Path]:
    """Of all evaluations of a run, by number."""
    paths = (home() / "runs" / str(run_id) / "evaluations").glob("*.json")
    return sorted((each for each in paths if each.stem.isdecimal()), key=lambda each: int(each.stem))


def mappings_place() -> Path:
    return home() / "mappings.json"


def _place(kind: Kind, number: int, record: dict[str, Any]) -> Path:
    if kind == "evaluation":
        return folder("runs", record["evaluation"]["run_id"], "evaluations") / f"{number}.json"
    if kind == "run":
        return folder("runs", number) / "run.json"
    return dataset_place(number) if kind == "dataset" else mappings_place()


def _run(number: int) -> dict[str, Any] | None:
    rows = _rows("runs", "id = ?", [number])
    if not rows:
        return None  # it was deleted meanwhile
    events = _rows("events", "run_id = ?", [number], order_by="id desc", limit=EVENTS)[::-1]
    for event in events:
        del event["id"]
    return {"run": rows[0], "jobs": _rows("jobs", "run_id = ?", [number], order_by="id"), "events": events}


def _dataset(number: int) -> dict[str, Any] | None:
    rows = _rows("datasets", "id = ?", [number])
    return {"dataset": rows[0]} if rows else None


def _evaluation(number: int) -> dict[str, Any] | None:
    rows = _rows("evaluations", "id = ?", [number])
    if not rows or not _rows("runs", "id = ?", [rows[0]["run_id"]]):
        return None
    answers = _rows("evaluation_rows", "evaluation_id = ?", [number], order_by="row")
    return {"evaluation": rows[0], "answers": answers}


def _mappings(number: int) -> dict[str, Any] | None:
    return {"mappings": _rows("mappings", order_by="name")}


def _rows(table: str, *where: Any, **options: Any) -> list[dict[str, Any]]:
    return list(database().table(table).rows_where(*where, **options))


_COMPOSE: dict[Kind, Callable[[int], dict[str, Any] | None]] = {
    "run": _run,
    "dataset": _dataset,
    "evaluation": _evaluation,
    "mappings": _mappings,
}
