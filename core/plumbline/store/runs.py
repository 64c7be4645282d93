"""Runs and their metrics. A run's state changes only through the queue (plumbline.jobs.queue).

A deleted run leaves one event for each of its jobs, so that no number is ever given a second time.
"""

import datetime
import json
import math
import time
from collections.abc import Iterable
from typing import Any, Literal, cast

from sqlite_utils.db import NotFoundError

from plumbline.config.schema import RunConfig, dumps, loads
from plumbline.errors import StudioError
from plumbline.home import numbers_in
from plumbline.program import where
from plumbline.store import sidecars
from plumbline.store.database import database, insert, writing
from plumbline.store.records import EventRow, Relation, RunRow, Values

REWARDS = ("reward", "eval_reward", "rewards/accuracy", "eval_rewards/accuracy", "rewards/margin")
DELETED = "deleted"  # the level of the events that a deleted run leaves
# What a run measures is in its metrics_history.jsonl, too.
FLEETING = {"step", "total_steps", "loss", "eval_loss", "base_eval_loss", "best_eval_loss", "best_step"} | {
    "seconds_left",
    "memory_gb",
}
METRICS = ("epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gb")


def add(
    config: RunConfig,
    dataset_id: int,
    parent: int | None = None,
    parent_step: int | None = None,
    relation: Relation | None = None,
) -> int:
    """:param parent: the run whose weights it begins with (a branch, or the next of a rank schedule), or
        that it trains again (a reproduction)
    :param parent_step: of a branch; None means the parent's artifact
    """
    now = time.time()
    values = {
        "name": config.display_name,
        "state": "queued",
        "base": config.model.base,
        "dataset_id": dataset_id,
        "recipe": dumps(_dated(config, now)),
        "step": 0,
        "parent": parent,
        "parent_step": parent_step,
        "relation": relation,
        "created_at": now,
    }
    with writing():
        run_id = insert("runs", {"id": free_number("runs"), **values})
        sidecars.note("run", run_id)
    return run_id


def free_number(table: Literal["runs", "jobs"]) -> int:
    """The next run's number, or the next job's. Call inside of the transaction that gives it.

    A page or a process may still know a deleted one by its number, and a folder may be there that no row
    knows, as beside an older database.
    """
    column, name = ("run_id", "runs") if table == "runs" else ("job_id", "exports")
    numbers = f"select id from {table} union all select {column} from events where level = ?"
    known = database().execute(f"select coalesce(max(id), 0) from ({numbers})", [DELETED]).fetchone()[0]
    return 1 + max(known, *numbers_in(name), 0)


def get(run_id: int) -> RunRow:
    """:raises StudioError: when there is no such run"""
    try:
        return cast(RunRow, database().table("runs").get(run_id))
    except NotFoundError:
        fix = f"{where('Runs', 'runs')} lists all runs."
        raise StudioError(f"run {run_id}", "does not exist", fix) from None


def recipe(run_id: int) -> RunConfig:
    """A run's recipe. One of earlier versions has no day: it is that on which the run was started."""
    run = get(run_id)
    return _dated(loads(run["recipe"], f"recipe of run {run_id}"), run["created_at"])


def _dated(config: RunConfig, started: float) -> RunConfig:
    """The recipe with the day that templates write, which is this machine's."""
    if config.data.day:
        return config
    day = datetime.date.fromtimestamp(started).isoformat()
    return config.model_copy(update={"data": config.data.model_copy(update={"day": day})})


def decisions(run_id: int) -> dict[str, dict[str, str]]:
    """What a run chose for its hardware, as name -> ``value`` and ``why``."""
    return json.loads(get(run_id)["decisions"] or "{}")


def forecast_and_outcome(run_id: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What a run was expected to take, and what it took; None until both are known."""
    run = get(run_id)
    if not run["forecast"] or not run["outcome"]:
        return None
    return json.loads(run["forecast"]), json.loads(run["outcome"])


def update(run_id: int, **values: Any) -> None:
    database().table("runs").update(run_id, values)
    if not values.keys() <= FLEETING:
        sidecars.note("run", run_id)


def exists(run_id: int) -> bool:
    return database().execute("select 1 from runs where id = ?", [run_id]).fetchone() is not None


def numbers() -> set[int]:
    """Of all runs there are."""
    return {row[0] for row in database().execute("select id from runs").fetchall()}


def parent_of(run: RunRow) -> int:
    """The run whose weights a branch or a stage begins with, or that a reproduction trains again."""
    assert run["parent"] is not None, f"run {run['id']} comes from no other"
    return run["parent"]


def children(run_id: int) -> list[RunRow]:
    """The runs that come from one: its branches, the next of a rank schedule, its reproductions."""
    rows = database().table("runs").rows_where("parent = ?", [run_id], order_by="id")
    return cast(list[RunRow], list(rows))


def awaited_steps(run_id: int) -> set[int]:
    """The steps of a run that branches have yet to begin with."""
    waiting = (child for child in children(run_id) if child["state"] != "completed" and not child["step"])
    return {child["parent_step"] for child in waiting if child["parent_step"] is not None}


def remove(run_id: int, job_ids: list[int]) -> None:
    """Delete a run's rows but its jobs', which are the queue's. Call inside of a transaction.

    :param job_ids: of all jobs that it had
    """
    db = database()
    of_it = "select id from evaluations where run_id = ?"
    db.execute(f"delete from evaluation_rows where evaluation_id in ({of_it})", [run_id])
    for table in ("evaluations", "metrics", "events"):
        db.execute(f"delete from {table} where run_id = ?", [run_id])
    db.table("runs").delete(run_id)
    of_jobs: list[int | None] = [*job_ids]
    for job_id in of_jobs or [None]:
        event(f"run {run_id} was deleted", run_id, job_id, DELETED)


def deleted() -> tuple[list[int], list[int]]:
    """Numbers of deleted runs, and of the jobs that they had."""
    rows = database().execute("select run_id, job_id from events where level = ?", [DELETED]).fetchall()
    return sorted({run for run, _ in rows}), sorted({job for _, job in rows if job is not None})


def listed(limit: int = 500) -> list[RunRow]:
    """Newest first. :param limit: -1 for all"""
    return cast(list[RunRow], list(database().table("runs").rows_where(order_by="id desc", limit=limit)))


def record(run_id: int, points: Iterable[tuple[int, Values]]) -> None:
    """Add what was measured, as steps and values by name, to those steps' rows.

    SQLite has no NaN (it stores NULL), so the names of such columns are kept beside them.
    """
    rows: dict[int, Values] = {}
    for step, values in points:
        rows.setdefault(step, {}).update(values)
    if not rows:
        return
    table = database().table("metrics")
    within = "run_id = ? and step between ? and ? and extra is not null"
    known = table.rows_where(within, [run_id, min(rows), max(rows)], select="step, extra")
    extras = {row["step"]: json.loads(row["extra"]) for row in known}
    # Rows of one call that have the same columns are written at once.
    alike: dict[tuple[str, ...], list[Values]] = {}
    for step, values in rows.items():
        row = _row(run_id, step, values, extras.get(step, {}))
        alike.setdefault(tuple(row), []).append(row)
    for group in alike.values():
        table.upsert_all(group, pk=("run_id", "step"))


def _row(run_id: int, step: int, values: Values, extra: Values) -> Values:
    bad = sorted(name for name in METRICS if math.isnan(values.get(name) or 0.0))
    extra = extra | {name: value for name, value in values.items() if name not in METRICS}
    row: Values = {"run_id": run_id, "step": step, "created_at": time.time()}
    row |= {name: value for name, value in values.items() if name in METRICS and name not in bad}
    if bad:
        row["not_a_number"] = ",".join(bad)
    if extra:
        row["extra"] = json.dumps(extra)
    return row


def metrics(run_id: int, columns: Iterable[str] = METRICS) -> list[dict[str, Any]]:
    """One dict per step, in order; what was NaN when it was measured is NaN again.

    ``sources`` has the held-out loss of each dataset, where a run learns from several, and ``rewards``
    what methods with rewards measure.
    """
    columns = tuple(columns)
    rows = []
    for row in database().table("metrics").rows_where("run_id = ?", [run_id], order_by="step"):
        for name in (row["not_a_number"] or "").split(","):
            if name:
                row[name] = math.nan
        measured = {name: row[name] for name in columns}
        more = json.loads(row["extra"] or "{}")
        rewards = {name: more[name] for name in REWARDS if name in more}
        rows.append(
            {"step": row["step"], **measured, "sources": _by_source(row["extra"]), "rewards": rewards}
        )
    return rows


def _by_source(extra: str | None) -> dict[str, float]:
    if not extra or "eval_loss/" not in extra:
        return {}
    named = (name.partition("eval_loss/") + (value,) for name, value in json.loads(extra).items())
    return {source: value for before, sign, source, value in named if sign and not before}


def forget_after(run_id: int, step: int) -> None:
    """Drop the points past a checkpoint: a resumed run measures those steps again."""
    database().execute("delete from metrics where run_id = ? and step > ?", [run_id, step])
    database().conn.commit()


def event(
    text: str,
    run_id: int | None = None,
    job_id: int | None = None,
    level: str = "info",
    at: float | None = None,
) -> None:
    """A line of the log that people see. :param at: when it happened, in seconds; None means now"""
    made = time.time() if at is None else at
    database().table("events").insert(
        {"run_id": run_id, "job_id": job_id, "level": level, "text": text, "created_at": made}
    )


def events(run_id: int, limit: int = 200) -> list[EventRow]:
    """The newest events of a run, oldest first."""
    rows = database().table("events").rows_where("run_id = ?", [run_id], order_by="id desc", limit=limit)
    return cast(list[EventRow], list(rows)[::-1])


def measured(run_id: int) -> tuple[int, float]:
    """Changes whenever a point was added or changed: how many there are, and when the last came."""
    query = "select count(*), coalesce(max(created_at), 0) from metrics where run_id = ?"
    count, newest = database().execute(query, [run_id]).fetchone()
    return count, newest
