"""The database made anew from the folders of runs, datasets and exports.

What the old file still tells is taken over first; what a folder's record says counts more. The new file is
made aside and put in place when it is whole, and the old one is kept beside it under another name.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from plumbline.config.recipe_yaml import parsed
from plumbline.data.selection.datasets import samples
from plumbline.errors import StudioError
from plumbline.home import numbers_in
from plumbline.recovery import folders
from plumbline.store import datasets, history, opening, runs, sidecars
from plumbline.store.database import close, in_place_of_it, known, writing

TABLES = (
    "datasets",
    "mappings",
    "runs",
    "jobs",
    "metrics",
    "evaluations",
    "evaluation_rows",
    "events",
    "probes",
)
_JSON = {"decisions", "summary", "forecast", "outcome", "payload", "result", "extra", "findings", "columns"}


_TYPES: dict[str, type] = {"INTEGER": int, "TEXT": str}


@dataclass
class Rebuilt:
    """What the new database lists.

    :param old_file: the old file under its new name; None where there was none
    :param remarks: what a folder did not tell, in sentences
    """

    runs: int = 0
    datasets: int = 0
    evaluations: int = 0
    old_file: Path | None = None
    remarks: list[str] = field(default_factory=list)


def rebuild() -> Rebuilt:
    """Call with nothing else at work in the workspace (plumbline.jobs.workspace_lock).

    :raises StudioError: when the file is of a newer version, which alone knows what it holds
    """
    path = opening.database_path()
    try:
        opening.applied(path, known())
    except opening.UnusableDatabase as error:
        if not error.rebuilt:
            raise
    close()
    made = path.with_name("rebuilt.db")
    for old in opening.beside(made):
        old.unlink()
    done = Rebuilt()
    with in_place_of_it(made) as db, writing():
        _take_over(path, db)
        _datasets(db, done)
        _runs(db, done)
        _exports(db)
        done.runs, done.datasets = db.table("runs").count, db.table("datasets").count
        done.evaluations = db.table("evaluations").count
        stamp = opening.stamp_of(db.conn)
    assert stamp is not None, "the migration made it"
    done.old_file = _set_aside(path)
    os.replace(made, path)
    sidecars.write_stamp(stamp)
    sidecars.bring_up_to_date()
    return done


def _set_aside(path: Path) -> Path | None:
    """Give the old file, and what SQLite kept beside it, names with the time in them."""
    name = f"{path.name}.kept-{time.strftime('%Y%m%d-%H%M%S')}"
    for file in opening.beside(path):
        file.rename(path.with_name(name + file.name.removeprefix(path.name)))
    old_file = path.with_name(name)
    return old_file if old_file.exists() else None


def _take_over(path: Path, db: Database) -> None:
    """Copy the rows that can still be read."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with closing(opening.read_only(path)) as old:
        old.row_factory = sqlite3.Row
        for table in TABLES:
            for row in _readable(old, db, table):
                if _sound(db, table, row):
                    db.table(table).insert(row, ignore=True)


def _readable(old: sqlite3.Connection, db: Database, table: str) -> Iterator[dict[str, Any]]:
    """A table's rows up to the first that cannot be read; none of what is no table."""
    try:
        query = "select 1 from sqlite_master where type = 'table' and name = ?"
        if old.execute(query, [table]).fetchone() is None:
            return
        there = {row["name"] for row in old.execute(f"pragma table_info({table})")}
        columns = [name for name in db.table(table).columns_dict if name in there]
        for row in old.execute(f"select {', '.join(columns)} from {table}"):
            yield dict(row)
    except sqlite3.Error:
        return


def _sound(db: Database, table: str, row: dict[str, Any]) -> bool:
    """Whether a row that may come from a damaged file is one that could have been written."""
    for column in db.table(table).columns:
        value = row.get(column.name)
        if value is None:
            if column.notnull or column.is_pk:
                return False
        elif not isinstance(value, _TYPES.get(column.type, object)):
            return False
    try:
        for name in _JSON & row.keys():
            json.loads(row[name] or "null")
        if table == "runs":
            parsed(row["recipe"], "recipe")
    except (ValueError, StudioError):
        return False
    return True


def _datasets(db: Database, done: Rebuilt) -> None:
    there = numbers_in("datasets")
    for lost in list(db.table("datasets").rows):
        if lost["id"] not in there:
            db.table("datasets").delete(lost["id"])
            done.remarks.append(f"Dataset {lost['id']} ({lost['name']}) has no folder any more.")
    names = folders.names_of_datasets(numbers_in("runs"))
    bare = [number for number in there if not sidecars.dataset_place(number).exists()]
    known_samples = samples() if bare else {}
    for number in sorted(there):
        record = sidecars.read(sidecars.dataset_place(number))
        if (row := _row(db, "datasets", record, number)) is None:
            if datasets.exists(number):
                continue
            if (row := folders.dataset(number, names, known_samples)) is None:
                done.remarks.append(f"datasets/{number} has no rows, and is not listed.")
                continue
            if number in bare and row["sha256"] not in known_samples:
                done.remarks.append(f"datasets/{number} is listed by its rows alone, as {row['name']}.")
        db.table("datasets").delete_where("id = ?", [number])
        db.table("datasets").insert({**row, "name": datasets.free_name(row["name"])})
    mappings = sidecars.read(sidecars.mappings_place()) or {}
    for mapping in _listed(mappings, "mappings"):
        if _sound(db, "mappings", mapping):
            db.table("mappings").insert(mapping, replace=True)


def _runs(db: Database, done: Rebuilt) -> None:
    for number in sorted(numbers_in("runs")):
        record = sidecars.read(sidecars.run_place(number))
        row = _row(db, "runs", record, number)
        if row is not None and record is not None:
            db.table("runs").insert(row | folders.figures(history.points(number)), replace=True)
            _jobs(db, number, record)
            _ended_since(db, number)
        elif runs.exists(number):
            _ended_since(db, number)
        elif (row_of_folder := folders.run(number)) is not None:
            db.table("runs").insert({**row_of_folder, "dataset_id": _dataset_of(db, number)})
            runs.event("listed again from its folder, which does not say where it came from", number)
            done.remarks.append(f"runs/{number} is listed by its files; a parent is not known.")
        else:
            done.remarks.append(f"runs/{number} has no recipe that can be read, and is not listed.")
            continue
        runs.record(number, history.points(number))
        _evaluations(db, number)


def _ended_since(db: Database, run_id: int) -> None:
    """A run that an older file knows as unfinished may have ended since: its folder says so."""
    row_of_folder = folders.run(run_id)
    if row_of_folder is None or not row_of_folder["summary"] or runs.get(run_id)["summary"]:
        return
    db.table("runs").update(
        run_id, {name: value for name, value in row_of_folder.items() if value is not None}
    )
    waiting = "run_id = ? and kind = 'train' and state not in ('completed', 'stopped', 'failed')"
    db.execute(f"update jobs set state = 'interrupted' where {waiting}", [run_id])


def _row(db: Database, table: str, record: dict[str, Any] | None, number: int) -> dict[str, Any] | None:
    """The row in a record; None where there is none that could have been written."""
    row = (record or {}).get(table.removesuffix("s"))
    if not isinstance(row, dict):
        return None
    row = {name: value for name, value in row.items() if name in db.table(table).columns_dict}
    row["id"] = number  # the folder's: nothing else may say where files are
    return row if _sound(db, table, row) else None


def _dataset_of(db: Database, number: int) -> int | None:
    sha256, name = folders.dataset_of(number)
    for row in db.table("datasets").rows_where("sha256 = ? or name = ?", [sha256, name]):
        return row["id"]
    return None


def _jobs(db: Database, run_id: int, record: dict[str, Any]) -> None:
    db.table("jobs").delete_where("run_id = ?", [run_id])
    for job in _listed(record, "jobs"):
        row = {name: value for name, value in job.items() if name in db.table("jobs").columns_dict}
        row["run_id"] = run_id
        if _sound(db, "jobs", row):
            db.table("jobs").insert(row, ignore=True)
    db.table("events").delete_where("run_id = ?", [run_id])
    for event in _listed(record, "events"):
        row = {name: event.get(name) for name in ("job_id", "level", "text", "created_at")}
        if _sound(db, "events", row | {"id": 0}):
            db.table("events").insert({**row, "run_id": run_id})


def _evaluations(db: Database, run_id: int) -> None:
    for path in sidecars.evaluation_places(run_id):
        record = sidecars.read(path) or {}
        number = int(path.stem)
        if (row := _row(db, "evaluations", record, number)) is None:
            continue
        if db.table("evaluations").count_where("id = ? and run_id != ?", [number, run_id]):
            number = 1 + db.execute("select max(id) from evaluations").fetchone()[0]
        db.table("evaluations").insert({**row, "id": number, "run_id": run_id}, replace=True)
        db.table("evaluation_rows").delete_where("evaluation_id = ?", [number])
        answers = ({**answer, "evaluation_id": number} for answer in _listed(record, "answers"))
        db.table("evaluation_rows").insert_all(
            answer for answer in answers if _sound(db, "evaluation_rows", answer)
        )


def _exports(db: Database) -> None:
    for job in folders.exports(numbers_in("exports")):
        if runs.exists(job["run_id"]):
            db.table("jobs").insert(job, ignore=True)


def _listed(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = record.get(name)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
