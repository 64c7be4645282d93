"""Who serves a workspace: one studio, and nobody while the database is made anew.

File locks say so; the kernel frees them when a process dies, so a killed studio leaves nothing behind.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from plumbline.errors import StudioError
from plumbline.files import write_whole
from plumbline.home import home


@contextmanager
def studio() -> Iterator[Callable[[str], None]]:
    """Be the workspace's studio meanwhile. Gives a function that notes the address, for others to name.

    :raises StudioError: when another one is, with its process, its address and since when it runs
    """
    with _held("studio.lock", _other_studio):
        began = time.time()

        def note(address: str) -> None:
            write_whole(_place(), json.dumps({"pid": os.getpid(), "address": address, "since": began}))

        note("")
        try:
            yield note
        finally:
            _place().unlink(missing_ok=True)


@contextmanager
def nobody() -> Iterator[None]:
    """Have the workspace for this process meanwhile: no studio, and nobody who does jobs.

    :raises StudioError: when one of them is at work
    """
    with ExitStack() as stack:
        stack.enter_context(_held("studio.lock", _other_studio))
        what = StudioError(f"workspace {home()}", "has a job that is being worked on", "Wait for its end.")
        stack.enter_context(_held("worker.lock", lambda: what))
        yield


@contextmanager
def _held(name: str, refusal: Callable[[], StudioError]) -> Iterator[None]:
    lock = FileLock(home() / name, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise refusal() from None
    try:
        yield
    finally:
        lock.release()


def _place() -> Path:
    # Not the lock's own file: whoever tries to take the lock empties that one.
    return home() / "studio.json"


def _other_studio() -> StudioError:
    try:
        owner: dict[str, Any] = json.loads(_place().read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner["since"]))
        at = f" at {owner['address']}" if owner["address"] else ""
        who = f"process {owner['pid']}{at}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return StudioError(
        f"workspace {home()}",
        f"is served by a studio already: {who}",
        "Use that one, end it, or name another workspace with PLUMBLINE_HOME.",
    )
