"""Child processes that work parts of a large file, one a core; each runs `plumbline.data.importing.chunk`."""

import json
import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from plumbline.python_process import python_command

MOST_CHILDREN = 4


def cores() -> int:
    return min(os.cpu_count() or 1, MOST_CHILDREN)


@contextmanager
def children() -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that gives a task to a free child and waits for its answer."""
    command = python_command("plumbline.data.importing.chunk")
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(cores())
    ]
    free: queue.Queue[Any] = queue.Queue()
    for child in started:
        free.put(child)

    def work(task: dict[str, Any]) -> dict[str, Any]:
        child = free.get()
        try:
            child.stdin.write(json.dumps(task) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        finally:
            free.put(child)
        if not answer:
            raise RuntimeError(f"a process that reads the file ended with code {child.wait()}")
        return json.loads(answer)

    try:
        yield work
    finally:
        for child in started:
            child.kill()
            child.communicate()
