"""The queue in SQLite: every job waits here and is told to stop here.

A run's state is its newest training job's state; only this module changes either. A check belongs to
a dataset and has no run; a probe has neither, for its recipe is no run yet; every other job has a run.
"""

import json
import time
from typing import Any, Literal, cast

from sqlite_utils.db import NotFoundError

from plumbline.errors import StudioError
from plumbline.jobs.job_names import subject
from plumbline.store import history, runs, sidecars
from plumbline.store.database import database, insert, writing
from plumbline.store.records import JobRow

Kind = Literal["train", "evaluate", "merge", "adapter", "check", "probe", "reference"]
ACTIVE = ("preparing", "running", "stopping")
ENDED = ("completed", "stopped", "failed", "interrupted")


def enqueue(
    kind: Kind,
    run_id: int | None,
    token: str | None = None,
    *,
    dataset_id: int | None = None,
    **payload: Any,
) -> int:
    """Put a job in the queue and return its id.

    :param run_id: the run that it belongs to; None for a check, which has a ``dataset_id`` instead, and
        for a probe
    :param token: names one click; a second click with the same token gets the same job back
    :raises StudioError: when there is no such run
    """
    if kind != "probe" and (dataset_id if kind == "check" else run_id) is None:
        raise ValueError(f"a {kind} job needs {'a dataset' if kind == 'check' else 'a run'}")
    with writing() as db:
        if token is not None:
            for row in db.table("jobs").rows_where("token = ?", [token]):
                return row["id"]
        if run_id is not None:
            runs.get(run_id)  # it may have been deleted meanwhile
        job_id = insert(
            "jobs",
            {
                "id": runs.free_number("jobs"),
                "kind": kind,
                "run_id": run_id,
                "dataset_id": dataset_id,
                "state": "queued",
                "progress": 0.0,
                "payload": json.dumps(payload),
                "token": token,
                "created_at": time.time(),
            },
        )
        if kind == "train" and run_id is not None:
            db.table("runs").update(
                run_id, {"state": "queued", "error": None, "finished_at": None, "seconds_left": None}
            )
        _note(run_id)
    return job_id


def _note(run_id: int | None) -> None:
    """A job of a run changed; a check's and a probe's are in no folder."""
    if run_id is not None:
        sidecars.note("run", run_id)


def get(job_id: int) -> JobRow:
    """A job; the ``phase`` of a queued one says what it waits for.

    :raises StudioError: when there is no such job
    """
    try:
        row = cast(JobRow, database().table("jobs").get(job_id))
    except NotFoundError:
        raise StudioError(f"job {job_id}", "does not exist") from None
    return {
        **row,
        "phase": _awaited(row) if row["state"] == "queued" else row["phase"],
        "payload": json.loads(row["payload"] or "{}"),
        "result": json.loads(row["result"]) if row["result"] else None,
    }


def run_of(job: JobRow) -> int:
    """The run that a job belongs to; a check and a probe have none."""
    assert job["run_id"] is not None, f"a {job['kind']} job has no run"
    return job["run_id"]


def state(job_id: int) -> str | None:
    """A job's state; None when it was deleted with its run since it ended."""
    row = database().execute("select state from jobs where id = ?", [job_id]).fetchone()
    return None if row is None else row[0]


def _awaited(job: JobRow) -> str:
    """``waiting behind run 3 and 2 more``: the job that is being worked on, then those queued earlier."""
    marks = ",".join("?" * len(ACTIVE))
    where = f"state in ({marks}) or (state = 'queued' and id < ?)"
    order = "state = 'queued', id"
    rows = database().table("jobs").rows_where(where, [*ACTIVE, job["id"]], order_by=order)
    ahead = cast(list[JobRow], list(rows))
    if not ahead:
        return "waiting for the worker"
    more = f" and {len(ahead) - 1} more" if len(ahead) > 1 else ""
    return f"waiting behind {subject(ahead[0])}{more}"


def next_queued() -> JobRow | None:
    for row in database().table("jobs").rows_where("state = 'queued'", order_by="id", limit=1):
        return get(row["id"])
    return None


def active() -> JobRow | None:
    """The job that is being worked on, or None."""
    marks = ",".join("?" * len(ACTIVE))
    for row in database().table("jobs").rows_where(f"state in ({marks})", ACTIVE, order_by="id", limit=1):
        return cast(JobRow, row)
    return None


def waiting() -> int:
    """How many jobs are queued."""
    return database().table("jobs").count_where("state = 'queued'")


def latest(run_id: int, kind: Kind) -> JobRow | None:
    """The newest job of a kind for a run, or None."""
    return _newest("run_id = ? and kind = ?", [run_id, kind])


def latest_check(dataset_id: int | None = None) -> JobRow | None:
    """The newest check of a dataset, or of any that still exists; None when there was none."""
    if dataset_id is None:
        return _newest("kind = 'check' and dataset_id is not null", [])
    return _newest("kind = 'check' and dataset_id = ?", [dataset_id])


def latest_probe() -> JobRow | None:
    """The newest probe, or None when there was none."""
    return _newest("kind = 'probe'", [])


def unfinished_check(dataset_id: int, **payload: Any) -> int | None:
    """The id of a check of a dataset with the same payload that waits or runs and is not stopping."""
    where = (
        "state in ('queued', 'preparing', 'running') and kind = 'check' and dataset_id = ? and payload = ?"
    )
    for row in database().table("jobs").rows_where(where, [dataset_id, json.dumps(payload)], limit=1):
        return row["id"]
    return None


def _newest(where: str, values: list[Any]) -> JobRow | None:
    for row in database().table("jobs").rows_where(where, values, order_by="id desc", limit=1):
        return get(row["id"])
    return None


def claim(job_id: int) -> bool:
    """Take a queued job up; False when it was stopped, or taken, in between."""
    with writing() as db:
        change = db.execute("update jobs set state = 'preparing' where id = ? and state = 'queued'", [job_id])
        if change.rowcount == 0:
            return False
        set_state(job_id, "preparing")
    return True


def set_state(job_id: int, state: str, error: str | None = None, result: Any = None) -> None:
    """Move a job to another state in one transaction, and its run when no newer job trains that."""
    change: dict[str, Any] = {"state": state}
    if state == "preparing":
        change["started_at"] = time.time()
    if state in ENDED:
        change["finished_at"] = time.time()
    with writing() as db:
        job = db.table("jobs").get(job_id)
        more = {"error": error} | ({"result": json.dumps(result)} if result is not None else {})
        db.table("jobs").update(job_id, change | (more if state in ENDED else {}))
        if job["kind"] == "train" and job_id == _newest_training(job["run_id"]):
            if state == "preparing" and db.table("runs").get(job["run_id"])["started_at"]:
                change.pop("started_at")
            db.table("runs").update(job["run_id"], change | ({"error": error} if state in ENDED else {}))
        _note(job["run_id"])


def _newest_training(run_id: int) -> int:
    """The id of a run's newest training job: a run may be queued again while an older one still ends."""
    query = "select max(id) from jobs where run_id = ? and kind = 'train'"
    return database().execute(query, [run_id]).fetchone()[0]


def set_progress(job_id: int, phase: str, progress: float | None = None) -> None:
    """:param phase: what is being done, in words; :param progress: 0 to 1, or None to leave it"""
    change: dict[str, Any] = {"phase": phase}
    if progress is not None:
        change["progress"] = progress
    db = database()
    db.table("jobs").update(job_id, change)
    job = db.table("jobs").get(job_id)
    if job["kind"] == "train":
        db.table("runs").update(job["run_id"], {"phase": phase})


def stop(job_id: int) -> None:
    """Ask a job to stop: a queued one ends at once, a running one at its next safe point."""
    with writing() as db:
        job = db.table("jobs").get(job_id)
        if job["state"] in ENDED:
            return
        db.table("jobs").update(job_id, {"control": "stop"})
        if job["state"] == "queued":
            set_state(job_id, "stopped")
        else:
            set_state(job_id, "stopping")


def detach(dataset_id: int, name: str) -> None:
    """Stop the queued checks of a dataset that is about to be deleted; ended ones forget it.

    Call inside of the transaction that deletes it: no check of it starts until that has ended.

    :raises StudioError: while one is being worked on
    """
    db = database()
    waiting = "dataset_id = ? and kind = 'check' and state = 'queued'"
    db.execute(
        f"update jobs set state = 'stopped', control = 'stop', finished_at = ? where {waiting}",
        [time.time(), dataset_id],
    )
    marks = ",".join("?" * len(ACTIVE))
    if db.table("jobs").count_where(f"dataset_id = ? and state in ({marks})", [dataset_id, *ACTIVE]):
        raise StudioError(
            f"dataset {name!r}", "is being checked for near-duplicates", "Stop that, or wait for its end."
        )
    # The next dataset may get this id: an old check must not look like one of it.
    db.execute("update jobs set dataset_id = null where dataset_id = ?", [dataset_id])


def forget(run_id: int) -> list[int]:
    """Delete the jobs of a run that is about to be deleted. Call inside of that transaction.

    :returns: their ids
    :raises StudioError: while one of them waits or is being worked on
    """
    rows = database().table("jobs").rows_where("run_id = ?", [run_id], order_by="id")
    jobs = cast(list[JobRow], list(rows))
    for job in jobs:
        if job["state"] not in ENDED:
            first = "Wait for its end" if job["kind"] != "train" or job["state"] == "stopping" else "Stop it"
            raise StudioError(subject(job), f"is {job['state']}", f"{first}, then delete the run.")
    database().execute("delete from jobs where run_id = ?", [run_id])
    return [job["id"] for job in jobs]


def end(job_id: int) -> None:
    """Ask a running job to save its state and end, because its process ends; a queued one stays queued.

    A job that is to stop already is left to that.
    """
    with writing() as db:
        job = db.table("jobs").get(job_id)
        if job["state"] in ("preparing", "running"):
            db.table("jobs").update(job_id, {"control": "end"})
            set_state(job_id, "stopping")


def stop_requested(job_id: int) -> bool:
    """Whether a job is asked to save its state and end, by `stop` or by `end`."""
    return _control(job_id) is not None


def ending(job_id: int) -> bool:
    """Whether a job is asked to end because its process ends."""
    return _control(job_id) == "end"


def _control(job_id: int) -> str | None:
    row = database().execute("select control from jobs where id = ?", [job_id]).fetchone()
    return None if row is None else row[0]


def suggest(job_id: int, settings: dict[str, Any]) -> None:
    """Keep settings to start again with, by key, in the result of a job that is about to fail."""
    database().table("jobs").update(job_id, {"result": json.dumps({"suggestion": settings})})


def stop_run(run_id: int) -> None:
    """Stop a run's training. :raises StudioError: when it is not queued or running"""
    job = latest(run_id, "train")
    if job is None or job["state"] in ENDED:
        raise StudioError(f"run {run_id}", f"is {runs.get(run_id)['state']}, there is nothing to stop")
    stop(job["id"])


def resume_run(run_id: int) -> int:
    """Queue a run again from its newest checkpoint. :raises StudioError: when it is not resumable"""
    with writing():
        run = runs.get(run_id)
        if run["state"] not in ("stopped", "interrupted", "failed"):
            raise StudioError(
                f"run {run_id}", f"is {run['state']}", "Only a stopped, interrupted or failed run resumes."
            )
        return enqueue("train", run_id, resume=True)


def enqueue_once(kind: Kind, run_id: int, **payload: Any) -> int:
    """Put a job in the queue unless one of its kind waits or is worked on for the run. :returns: its id"""
    with writing():
        job = latest(run_id, kind)
        if job is not None and job["state"] not in ENDED:
            return job["id"]
        return enqueue(kind, run_id, **payload)


def mark_orphans() -> list[int]:
    """Call only with the worker lock held: whatever is active has lost its process.

    :returns: the ids of the jobs that are now interrupted
    """
    marks = ",".join("?" * len(ACTIVE))
    orphans = [row["id"] for row in database().table("jobs").rows_where(f"state in ({marks})", ACTIVE)]
    for job_id in orphans:
        job = get(job_id)
        if job["kind"] == "train":
            history.catch_up(run_of(job))
        set_state(job_id, "interrupted", error="The process that worked on it ended.")
        runs.event(f"{job['kind']} was interrupted: its process ended", job["run_id"], job_id, "warning")
    return orphans


def with_token(token: str) -> list[JobRow]:
    """The jobs that one click made: none or one."""
    return cast(list[JobRow], list(database().table("jobs").rows_where("token = ?", [token])))
