"""Signs of life: whoever does a job touches a file now and then; whoever waits for it looks at its time.

Only changes of that time count, measured by the waiting process's own clock.
"""

import time
from collections.abc import Callable
from pathlib import Path

from plumbline.home import home

SECONDS = 30.0  # without a sign of life after Stop, a job hangs
LONGEST = 300.0
TOUCH_SECONDS = 0.5
_touched = 0.0


def beat() -> None:
    """Show that the job goes on. Cheap enough for every step."""
    global _touched
    now = time.monotonic()
    if now - _touched >= TOUCH_SECONDS:
        _touched = now
        _path().touch()


class HangDetector:
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


def _path() -> Path:
    # Not the lock's own file: whoever tries to take the lock changes that one's time.
    return home() / "worker.alive"


def _stamp() -> int:
    try:
        return _path().stat().st_mtime_ns
    except FileNotFoundError:
        return 0
