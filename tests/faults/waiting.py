"""Wait for what another thread or process brings about, and no longer."""

import threading
import time
from collections.abc import Callable


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Look again and again. :raises AssertionError: when it is not true after so many seconds"""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        threading.Event().wait(0.02)
