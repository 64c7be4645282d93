"""The queue in SQLite: train, evaluate, merge and export all wait here and are told to stop here.

A run's state is its newest training job's state; only this module changes either.
"""

import json
import time
from typing import Any, Literal

from sqlite_utils.db import NotFoundError

from core.errors import StudioError
from core.store import runs
from core.store.database import database, insert

Kind = Literal["train", "evaluate", "merge", "adapter"]
ACTIVE = ("preparing", "running", "stopping")
ENDED = ("completed", "stopped", "failed", "interrupted")


def enqueue(kind: Kind, run_id: int, token: str | None = None, **payload: Any) -> int:
    """Put a job in the queue and return its id.

    :param token: names one click; a second click with the same token gets the same job back
    """
    db = database()
    with db.atomic():
        if token is not None:
            for row in db.table("jobs").rows_where("token = ?", [token]):
                return row["id"]
        job_id = insert(
            "jobs",
            {
                "kind": kind,
                "run_id": run_id,
                "state": "queued",
                "progress": 0.0,
                "payload": json.dumps(payload),
                "token": token,
                "created_at": time.time(),
            },
        )
        if kind == "train":
            db.table("runs").update(
                run_id, {"state": "queued", "error": None, "finished_at": None, "seconds_left": None}
            )
    return job_id


def get(job_id: int) -> dict[str, Any]:
    """:raises StudioError: when there is no such job"""
    try:
        row = database().table("jobs").get(job_id)
    except NotFoundError:
        raise StudioError(f"job {job_id}", "does not exist") from None
    return {
        **row,
        "payload": json.loads(row["payload"] or "{}"),
        "result": json.loads(row["result"]) if row["result"] else None,
    }


def next_queued() -> dict[str, Any] | None:
    for row in database().table("jobs").rows_where("state = 'queued'", order_by="id", limit=1):
        return get(row["id"])
    return None


def active() -> dict[str, Any] | None:
    """The job that is being worked on, or None."""
    marks = ",".join("?" * len(ACTIVE))
    for row in database().table("jobs").rows_where(f"state in ({marks})", ACTIVE, order_by="id", limit=1):
        return row
    return None


def waiting() -> int:
    """How many jobs are queued."""
    return database().table("jobs").count_where("state = 'queued'")


def latest(run_id: int, kind: Kind) -> dict[str, Any] | None:
    """The newest job of a kind for a run, or None."""
    found = (
        database()
        .table("jobs")
        .rows_where("run_id = ? and kind = ?", [run_id, kind], order_by="id desc", limit=1)
    )
    for row in found:
        return get(row["id"])
    return None


def claim(job_id: int) -> bool:
    """Take a queued job up; False when it was stopped, or taken, in between."""
    db = database()
    with db.atomic():
        change = db.execute("update jobs set state = 'preparing' where id = ? and state = 'queued'", [job_id])
        if change.rowcount == 0:
            return False
        set_state(job_id, "preparing")
    return True


def set_state(job_id: int, state: str, error: str | None = None, result: Any = None) -> None:
    """Move a job, and its run when it is a training job, to another state in one transaction."""
    db = database()
    change: dict[str, Any] = {"state": state}
    if state == "preparing":
        change["started_at"] = time.time()
    if state in ENDED:
        change["finished_at"] = time.time()
    with db.atomic():
        job = db.table("jobs").get(job_id)
        more = {"error": error, "result": json.dumps(result) if result is not None else None}
        db.table("jobs").update(job_id, change | (more if state in ENDED else {}))
        if job["kind"] == "train":
            if state == "preparing" and db.table("runs").get(job["run_id"])["started_at"]:
                change.pop("started_at")
            db.table("runs").update(job["run_id"], change | ({"error": error} if state in ENDED else {}))


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
    db = database()
    with db.atomic():
        job = db.table("jobs").get(job_id)
        if job["state"] in ENDED:
            return
        db.table("jobs").update(job_id, {"control": "stop"})
        if job["state"] == "queued":
            set_state(job_id, "stopped")
        else:
            set_state(job_id, "stopping")


def stop_requested(job_id: int) -> bool:
    row = database().execute("select control from jobs where id = ?", [job_id]).fetchone()
    return row is not None and row[0] == "stop"


def stop_run(run_id: int) -> None:
    """Stop a run's training. :raises StudioError: when it is not queued or running"""
    job = latest(run_id, "train")
    if job is None or job["state"] in ENDED:
        raise StudioError(f"run {run_id}", f"is {runs.get(run_id)['state']}, there is nothing to stop")
    stop(job["id"])


def resume_run(run_id: int) -> int:
    """Queue a run again from its newest checkpoint. :raises StudioError: when it is not resumable"""
    run = runs.get(run_id)
    if run["state"] not in ("stopped", "interrupted", "failed"):
        raise StudioError(
            f"run {run_id}", f"is {run['state']}", "Only a stopped, interrupted or failed run resumes."
        )
    return enqueue("train", run_id, resume=True)


def mark_orphans() -> list[int]:
    """Call only with the worker lock held: whatever is active has lost its process.

    :returns: the ids of the jobs that are now interrupted
    """
    marks = ",".join("?" * len(ACTIVE))
    orphans = [row["id"] for row in database().table("jobs").rows_where(f"state in ({marks})", ACTIVE)]
    for job_id in orphans:
        job = get(job_id)
        set_state(job_id, "interrupted", error="The process that worked on it ended.")
        runs.event(f"{job['kind']} was interrupted: its process ended", job["run_id"], job_id, "warning")
    return orphans


def with_token(token: str) -> list[dict[str, Any]]:
    """The jobs that one click made: none or one."""
    return list(database().table("jobs").rows_where("token = ?", [token]))
