"""Say so when a job of this process's thread does not answer Stop."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from plumbline.jobs import queue
from plumbline.jobs.heartbeat import HangDetector
from plumbline.jobs.job import Job


@contextmanager
def watched(job: Job, poll_seconds: float = 0.5) -> Iterator[None]:
    """While a thread of this process does a job: say so when the job does not answer Stop.

    A thread cannot be ended from outside, so the truth is all that can be offered.
    """
    done = threading.Event()

    def watch() -> None:
        patience = HangDetector()
        while not done.wait(poll_seconds):
            if patience.over(queue.state(job.id) == "stopping"):
                job.event(
                    f"{job.kind} does not answer Stop. A thread cannot be ended: restart Plumbline, "
                    "then it can be resumed or started again.",
                    "warning",
                )
                queue.set_progress(job.id, "hangs: restart Plumbline to end it")
                return

    watcher = threading.Thread(target=watch, name="plumbline-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
