"""What asks a process to end: Ctrl-C, SIGTERM, and SIGHUP when its terminal is closed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught(handle: Callable[[int], None]) -> Iterator[None]:
    """While inside, call ``handle`` with each such signal's number, in the main thread.

    Outside of the main thread nothing is caught: Python has signals only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    # Started with nohup, a process is meant to outlive its terminal.
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        names.append(hangup)
    before = {name: signal.signal(name, lambda number, frame: handle(number)) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
