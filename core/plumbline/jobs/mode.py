"""Where jobs are done: in a process for each, which the worker's thread supervises, or in that thread."""

import os
import sys

from plumbline.distributed import gpus, process_group
from plumbline.errors import StudioError
from plumbline.models.hardware import GIB, Choice

MODES = ("auto", "process", "thread")
PROCESS_GIB = 2.0  # free memory from which a second Python with torch (about 0.4 GiB) does no harm


_used: str | None = None


def use(mode: str) -> None:
    """Note where this process does jobs."""
    global _used
    _used = mode


def in_processes() -> bool:
    """Whether jobs of this process are done in processes of their own, or would be."""
    return (_used or choose(wanted()).value) == "process"


def of_commands() -> str:
    """Where a command or a Python program does its jobs: in itself, unless a run may start more processes."""
    if process_group.rank_and_size()[1] > 1:
        return "thread"  # a launcher has started this process as one of several
    if wanted() != "auto":
        return choose(wanted()).value
    return "process" if gpus.count_without_torch() > 1 else "thread"


def wanted() -> str:
    """What PLUMBLINE_WORKER says; ``auto`` without it."""
    return os.environ.get("PLUMBLINE_WORKER") or "auto"


def choose(mode: str) -> Choice:
    """Where jobs are done, and why.

    :param mode: ``auto``, ``process`` or ``thread``
    :raises StudioError: when it is none of them
    """
    if mode not in MODES:
        raise StudioError("--worker or PLUMBLINE_WORKER", f"must be {', '.join(MODES)}, got {mode!r}")
    if mode != "auto":
        return Choice(mode, "set by --worker or PLUMBLINE_WORKER")
    if not sys.executable:
        return Choice("thread", "this Python does not know its own program")
    free = free_bytes() / GIB
    if free < PROCESS_GIB:
        return Choice("thread", f"a process of its own needs {PROCESS_GIB:g} GiB, {free:.1f} are free")
    return Choice("process", "a crash ends a job and not the studio, and memory goes back")


def free_bytes() -> int:
    """Memory that is free here: the machine's, or the container's limit when that is less."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:
        return free
    return min(free, int(limit)) if limit.isdecimal() else free
