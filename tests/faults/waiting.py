"""Wait for what another thread or process brings about, and no longer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from plumbline.jobs import queue
from plumbline.worker.worker import Worker


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Look again and again. :raises AssertionError: when it is not true after so many seconds"""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        threading.Event().wait(0.02)


@contextmanager
def working(mode: str = "process") -> Iterator[Worker]:
    """A worker that does the queue's jobs meanwhile."""
    made = Worker(mode, poll_seconds=0.01)
    made.start()
    try:
        yield made
    finally:
        made.end(5)
        made.join(30)


def ended(job_id: int) -> dict[str, Any]:
    """A job, once it has ended."""
    until(lambda: queue.get(job_id)["state"] in queue.ENDED)
    return queue.get(job_id)
