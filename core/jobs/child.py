"""The process that does one job. `core.jobs.supervisor` starts it and writes to its standard input.

The first line there is the job's id. The end of the input means that the studio is gone: this process
then ends at once, so that nothing trains unowned.
"""

import faulthandler
import os
import queue as channels
import signal
import sys
import threading
from contextlib import suppress

from core.errors import message_of
from core.jobs import queue, worker
from core.models import stack

ORPHANED = 70  # the exit code that nobody is left to read


def main() -> None:
    """Wait for a job's id, do the job, end.

    With ``--ready`` among the arguments torch and all that trains is imported while it waits.
    """
    _outlive_signals()
    _die_with_parent()
    jobs = _listen()
    if "--ready" in sys.argv:
        _get_ready()
    job_id = jobs.get()
    worker.perform(worker.Job(queue.get(job_id)))
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to tidy up, and threads of libraries must not keep a job's memory any longer.
    os._exit(0)


def _outlive_signals() -> None:
    """A service manager or terminal signals every process of the studio; the studio tells this one."""
    faulthandler.enable()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _die_with_parent() -> None:
    """On Linux the kernel ends this process with its parent, whatever it is doing then."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # When memory runs out, the kernel takes the job and not the studio.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")


def _listen() -> "channels.SimpleQueue[int]":
    """Where the job's id arrives. A thread keeps listening for the end of the input."""
    found: channels.SimpleQueue[int] = channels.SimpleQueue()
    # A library that asks a question on the terminal must find none.
    asked = os.fdopen(os.dup(0), encoding="ascii")
    with open(os.devnull, encoding="ascii") as nothing:
        os.dup2(nothing.fileno(), 0)

    def listen() -> None:
        for line in asked:
            found.put(int(line))
        os._exit(ORPHANED)

    threading.Thread(target=listen, name="plumbline-parent", daemon=True).start()
    return found


def _get_ready() -> None:
    try:
        stack.ready()
        import torch

        from core.training import run  # noqa: F401

        if not torch.cuda.is_available():
            # bitsandbytes asks every GPU what it can do: a process that waits would hold memory there.
            from core.training import trainer  # noqa: F401
    except Exception as error:
        # The job that needs it will say the same to its user.
        message_of(error)
