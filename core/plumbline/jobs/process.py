"""A Python process of Plumbline's own beside this one: how it is started, heard, and ended.

It ends with the one that started it: what it inherits as its standard input tells it, and on Linux the
kernel does.
"""

import faulthandler
import os
import queue as channels
import signal
import subprocess
import sys
import threading
from contextlib import suppress

from plumbline.python_process import python_command

KEPT = 8192  # bytes of what a process printed last
ORPHANED = 70  # the exit code that nobody is left to read


class Process:
    """A process that runs a module's ``main``, and what it printed last.

    :param options: what it finds in ``sys.argv``
    :raises OSError: when the system starts no more processes
    """

    def __init__(self, module: str, environment: dict[str, str], *options: str) -> None:
        self.process = subprocess.Popen(
            python_command(module, *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal goes to the first of all processes alone
        )
        self._last = b""
        self._reader = threading.Thread(target=self._read, name="plumbline-printed", daemon=True)
        self._reader.start()

    def hand(self, number: int) -> None:
        """Tell it what `listen` waits for."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"%d\n" % number)
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # it has died; its exit code says how

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        """End it, if it has not, and free what it held here."""
        self.process.kill()
        self.process.wait()
        self._reader.join(2)
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            return  # something that was never read

    def printed(self) -> str:
        """What it printed last, once it has ended."""
        self._reader.join(2)
        return self._last.decode("utf-8", "replace")

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        with stream:
            while chunk := os.read(stream.fileno(), 4096):
                self._last = (self._last + chunk)[-KEPT:]
                with suppress(OSError, ValueError):  # a closed terminal must not stop the reading
                    sys.stderr.write(chunk.decode("utf-8", "replace"))


def live_with_parent() -> None:
    """In such a process, first of all: signals that go to everybody are not for it, its parent's end is."""
    faulthandler.enable()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # When memory runs out, the kernel takes this process and not the studio.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")


def listen() -> "channels.SimpleQueue[int]":
    """Where numbers from the parent arrive. A thread keeps listening for the end of the input."""
    numbers: channels.SimpleQueue[int] = channels.SimpleQueue()
    # A library that asks a question on the terminal must find none.
    asked = os.fdopen(os.dup(0), encoding="ascii")
    with open(os.devnull, encoding="ascii") as nothing:
        os.dup2(nothing.fileno(), 0)

    def hear() -> None:
        for line in asked:
            numbers.put(int(line))
        os._exit(ORPHANED)

    threading.Thread(target=hear, name="plumbline-parent", daemon=True).start()
    return numbers


def how_it_ended(code: int) -> str:
    """A process's exit code in words: ``was killed (SIGKILL, probably out of memory)``."""
    if code >= 0:
        return f"ended by itself (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return "was killed (SIGKILL, probably out of memory)"
    return f"was ended ({name})" if name in ("SIGTERM", "SIGINT", "SIGHUP") else f"crashed ({name})"
