"""Work the queue in this process, or wait for the process that does, until one job has ended."""

import signal
import sqlite3
import time
from collections.abc import Callable

from plumbline.jobs import mode, queue, signals
from plumbline.store.database import is_held
from plumbline.store.records import JobRow
from plumbline.worker.worker import Worker


def until_ended(job_id: int, look: Callable[[JobRow], None] = lambda job: None) -> JobRow:
    """:param look: called with the job about four times a second

    Ctrl-C asks the job to save its state and stop at its next safe point; SIGTERM does so too, but the job
    is interrupted then, and stays queued when it was. A second signal ends this process at once.

    :returns: the job as it ended
    :raises KeyboardInterrupt: at the second signal
    """
    asked: list[int] = []

    def note(number: int) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    worker = Worker(mode.of_commands())
    worker.start()
    has_asked = False
    with signals.caught(note):
        try:
            while (job := queue.get(job_id))["state"] not in queue.ENDED:
                look(job)
                if asked and not has_asked:
                    worker.close()
                    has_asked = _asked(queue.stop if asked[0] == signal.SIGINT else queue.end, job_id)
                elif has_asked and job["state"] == "queued":
                    break
                time.sleep(0.25)
            look(job)
            return job
        finally:
            worker.close()
            if not asked or queue.get(job_id)["state"] in queue.ENDED:
                worker.join()


def _asked(ask: Callable[[int], None], job_id: int) -> bool:
    """Ask a job to end; False while another program holds the database."""
    try:
        ask(job_id)
    except sqlite3.OperationalError as error:
        if not is_held(error):
            raise
        return False
    return True
