"""The background thread that works the queue, one job at a time, for one workspace.

A file lock says who the worker is; the kernel frees it when the process dies, so whoever gets
it next knows that jobs still marked as running are orphans. The thread does the jobs itself, or
supervises a process for each.
"""

import logging
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from plumbline.errors import StopRequested, message_of
from plumbline.home import home
from plumbline.jobs import mode as modes
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.models import stack
from plumbline.models.hardware import release_memory
from plumbline.store import backups
from plumbline.store.database import JOB_SECONDS, PASSING_SECONDS, is_held, patience
from plumbline.worker import hang_watch
from plumbline.worker.free_gpu import unload_chat

if TYPE_CHECKING:
    from plumbline.worker.supervisor import Supervisor

log = logging.getLogger("plumbline")
END_SECONDS = 18.0  # for a job to save its state when Plumbline is ended; services wait 25 to 30


def _handler(kind: str) -> Callable[[Job], Any]:
    # Imported here: all but the check bring torch, and the thread must start without it.
    if kind == "check":
        from plumbline.worker.near_duplicates import check

        return check
    if kind == "probe":
        from plumbline.worker.measure import probe

        return probe
    if kind == "train":
        from plumbline.training.run import train

        return train
    if kind == "reference":
        from plumbline.training.against_trl import check as check_against_trl

        return check_against_trl
    if kind == "evaluate":
        from plumbline.evaluation.compare import evaluate

        return evaluate
    if kind == "merge":
        from plumbline.export.merge import merge

        return merge
    if kind == "adapter":
        from plumbline.export.adapter import export_adapter

        return export_adapter
    raise ValueError(f"unknown job kind {kind!r}")


class Worker(threading.Thread):
    """Start it once per process. It takes the worker lock when that is free, then works.

    :param mode: ``thread`` does the jobs in this thread, ``process`` each in a process of its own
    """

    def __init__(self, mode: str = "thread", poll_seconds: float = 0.3) -> None:
        super().__init__(name="plumbline-worker", daemon=True)
        self.poll_seconds = poll_seconds
        self.closing = threading.Event()
        self.lock = FileLock(home() / "worker.lock", thread_local=False)
        self._supervisor = _supervisor() if mode == "process" else None
        modes.use(mode)
        self._job: Job | None = None

    def run(self) -> None:
        while not self.closing.is_set():
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                self.closing.wait(2.0)
                continue
            try:
                with patience(JOB_SECONDS):
                    queue.mark_orphans()
                    self._work()
            except Exception:
                # The store failed, not a job; a worker that ends would leave the queue waiting.
                log.exception("the worker could not go on; trying again")
                self.closing.wait(2.0)
            finally:
                if self._supervisor is not None:
                    self._supervisor.close()
                self.lock.release()

    def _work(self) -> None:
        while not self.closing.is_set():
            row = queue.next_queued()
            if row is None:
                backups.daily()
                if self._supervisor is not None:
                    self._supervisor.idle()
                self.closing.wait(self.poll_seconds)
                continue
            self._job = job = Job(row)
            try:
                if self._supervisor is not None:
                    self._supervisor.do(job)
                else:
                    with hang_watch.watched(job):
                        work_on(job)
            finally:
                self._job = None

    def close(self) -> None:
        """Ask the thread to end after its current job."""
        self.closing.set()

    def end(self, seconds: float = END_SECONDS) -> None:
        """Ask its current job to save its state, and wait for its end; a process that does not is killed.

        The job is interrupted then. A thread that does not end is left to the end of this process.
        """
        self.closing.set()
        deadline = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < deadline:
            if (job := self._job) is not None:
                _ask_to_end(job)  # again and again: it may have been on its way out of the queue
            self.join(0.1)
        if self._supervisor is not None:
            self._supervisor.kill()
            self.join(2.0)


def _ask_to_end(job: Job) -> None:
    try:
        with patience(PASSING_SECONDS):
            queue.end(job.id)
    except sqlite3.OperationalError as error:
        if not is_held(error):
            raise


def _supervisor() -> "Supervisor":
    from plumbline.worker.supervisor import Supervisor  # it does jobs as this module says

    return Supervisor()


def recover() -> None:
    """When no process works the queue, what is marked as running has lost its process."""
    try:
        with FileLock(home() / "worker.lock", timeout=0):
            queue.mark_orphans()
    except Timeout:
        return


def work_on(job: Job) -> None:
    """Do one job here to its end and record how it ended, whatever it raises."""
    if queue.claim(job.id):
        perform(job)


def perform(job: Job) -> None:
    """Do a job that was claimed, here."""
    with patience(JOB_SECONDS):
        _perform(job)


def _perform(job: Job) -> None:
    try:
        if job.kind != "check":
            stack.ready()
            unload_chat(job)
        result = _handler(job.kind)(job)
        job.settle()
    except StopRequested:
        job.stopped()
    except Exception as error:
        text = message_of(error, _again(job))
        job.log("".join(traceback.format_exception(error)))
        # The traceback's frames hold the model; without them its memory is freed now.
        traceback.clear_frames(error.__traceback__)
        job.failed(text)
    else:
        _record_completion(job, result)
    finally:
        release_memory()


def _record_completion(job: Job, result: Any) -> None:
    try:
        queue.set_state(job.id, "completed", result=result)
        job.event(f"{job.kind} completed")
    except sqlite3.Error as error:
        # A disk that took no more may take this: a run is resumed, and has only this left to do.
        job.failed(message_of(error, _again(job)))


def _again(job: Job) -> str:
    """What a job's user does once what was in its way is gone."""
    return "resume" if job.kind == "train" else "try again"
