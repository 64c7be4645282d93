"""Signs of life: whoever does a job touches a file now and then; whoever waits for it looks at its time.

Only changes of that time count, measured by the waiting process's own clock.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.home import home
from core.jobs import queue

if TYPE_CHECKING:
    from core.jobs.worker import Job

SECONDS = 30.0  # without a sign of life after Stop, a job hangs
LONGEST = 300.0
TOUCH_SECONDS = 0.5
_touched = 0.0


def sign() -> None:
    """Show that the job goes on. Cheap enough for every step."""
    global _touched
    now = time.monotonic()
    if now - _touched >= TOUCH_SECONDS:
        _touched = now
        _path().touch()


class Patience:
    """How long a job that was asked to stop is waited for.

    A job with long steps shows itself seldom: it is given twice the time between its last two signs,
    when that is more than `SECONDS`, up to `LONGEST`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.heard, self.gap = clock(), 0.0
        self.asked: float | None = None
        self.seen = _stamp()

    def over(self, stopping: bool) -> bool:
        """Look once. True when the job was asked to stop and shows no sign of life for too long."""
        now = self.clock()
        if (stamp := _stamp()) != self.seen:
            self.seen, self.gap, self.heard = stamp, now - self.heard, now
        if not stopping:
            self.asked = None
            return False
        if self.asked is None:
            self.asked = now
        return now - max(self.heard, self.asked) > min(max(SECONDS, 2 * self.gap), LONGEST)


@contextmanager
def watched(job: "Job", poll_seconds: float = 0.5) -> Iterator[None]:
    """While a thread of this process does a job: say so when the job does not answer Stop.

    A thread cannot be ended from outside, so the truth is all that can be offered.
    """
    done = threading.Event()

    def watch() -> None:
        patience = Patience()
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


def _path() -> Path:
    # Not the lock's own file: whoever tries to take the lock changes that one's time.
    return home() / "worker.alive"


def _stamp() -> int:
    try:
        return _path().stat().st_mtime_ns
    except FileNotFoundError:
        return 0
