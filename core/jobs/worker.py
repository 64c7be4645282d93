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

from core.errors import StopRequested, message_of
from core.home import home, run_folder
from core.jobs import life, queue
from core.jobs import mode as modes
from core.models import stack
from core.store import backups, runs
from core.store.database import JOB_SECONDS, PASSING_SECONDS, in_passing, is_held, patience, writing

if TYPE_CHECKING:
    from core.jobs.supervisor import Supervisor

log = logging.getLogger("plumbline")
END_SECONDS = 18.0  # for a job to save its state when Plumbline is ended; services wait 25 to 30


class Job:
    """What a handler sees of its job: its payload, a way to report, and a way to be stopped."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.id: int = row["id"]
        self.kind: str = row["kind"]
        self.payload: dict[str, Any] = row["payload"]
        self._run_id: int | None = row["run_id"]
        self._dataset_id: int | None = row["dataset_id"]
        self._events: list[tuple[str, str, float]] = []
        self._phase: tuple[str, float | None] | None = None

    @property
    def run_id(self) -> int:
        """The run it belongs to; a check and a probe have none."""
        assert self._run_id is not None, f"a {self.kind} job has no run"
        return self._run_id

    @property
    def dataset_id(self) -> int:
        """The dataset that a check looks at; other jobs have none."""
        assert self._dataset_id is not None, f"a {self.kind} job has no dataset"
        return self._dataset_id

    def event(self, text: str, level: str = "info") -> None:
        """A line of the log that people see. It waits while another program holds the database."""
        life.sign()
        self._events.append((text, level, time.time()))
        in_passing(self.settle)

    def log(self, text: str) -> None:
        """Keep a traceback: in the run's folder, or in the workspace's when there is no run."""
        place = home() if self._run_id is None else run_folder(self._run_id)
        with open(place / "log.txt", "a", encoding="utf-8") as file:
            file.write(text)

    def running(self) -> None:
        """Preparation is over."""
        if not self.stop_requested():
            queue.set_state(self.id, "running")

    def report(self, phase: str, progress: float | None = None) -> None:
        """What is being done; while another program holds the database, only the newest is kept."""
        life.sign()
        self._phase = phase, progress
        in_passing(self.settle)

    def settle(self) -> None:
        """Write what waits: events and the phase."""
        with writing():
            for text, level, at in self._events:
                runs.event(text, self._run_id, self.id, level, at)
            if self._phase is not None:
                queue.set_progress(self.id, *self._phase)
        self._events, self._phase = [], None

    def stop_requested(self) -> bool:
        """Whether the job is to save its state and end: the user pressed Stop, or Plumbline is ended.

        While another program holds the database nobody can have asked for it.
        """
        life.sign()
        try:
            with patience(PASSING_SECONDS):
                return queue.stop_requested(self.id)
        except sqlite3.OperationalError as error:
            if not is_held(error):
                raise
            return False

    def check_stop(self) -> None:
        """:raises StopRequested: when the user pressed Stop, or Plumbline is ended"""
        if self.stop_requested():
            raise StopRequested()


def _handler(kind: str) -> Callable[[Job], Any]:
    # Imported here: all but the check bring torch, and the thread must start without it.
    if kind == "check":
        from core.jobs.check import check

        return check
    if kind == "probe":
        from core.jobs.probe import probe

        return probe
    if kind == "train":
        from core.training.run import train

        return train
    if kind == "evaluate":
        from core.evaluation.compare import evaluate

        return evaluate
    if kind == "merge":
        from core.export.merge import merge

        return merge
    if kind == "adapter":
        from core.export.adapter import export_adapter

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
                    with life.watched(job):
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
    from core.jobs.supervisor import Supervisor  # it does jobs as this module says

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
            make_room(job)
        result = _handler(job.kind)(job)
        job.settle()
    except StopRequested:
        record_stop(job)
    except Exception as error:
        text = message_of(error)
        job.log("".join(traceback.format_exception(error)))
        # The traceback's frames hold the model; without them its memory is freed now.
        traceback.clear_frames(error.__traceback__)
        record_failure(job, text)
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
        record_failure(job, message_of(error))


def record_stop(job: Job) -> None:
    """It ended because it was asked to: by its user, or because Plumbline is ended."""
    if queue.ending(job.id):
        record_interruption(job, "Plumbline was ended while it ran.")
        return
    queue.set_state(job.id, "stopped")
    job.event(f"{job.kind} stopped")


def record_interruption(job: Job, why: str) -> None:
    queue.set_state(job.id, "interrupted", error=why)
    job.event(f"{job.kind} was interrupted: {why}", "warning")


def record_failure(job: Job, text: str) -> None:
    queue.set_state(job.id, "failed", error=text)
    job.event(f"{job.kind} failed: {text}", "error")


def make_room(job: Job) -> None:
    """On a GPU the chat model goes before a job comes: two models rarely fit.

    :raises StopRequested: when the job is stopped while an answer is still being written
    """
    from core.chat import session

    if (chat := session.close(gpu_only=True)) is None:
        return
    while not chat.busy.acquire(timeout=0.5):
        job.report("waiting for the chat's answer to end")
        job.check_stop()
    del chat
    release_memory()  # another process gets only what torch gives back


def release_memory() -> None:
    """Give back what a finished job held, on the host and on the GPU."""
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # 32 MiB for every stream that a matrix product ran in; the next product takes one again.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
