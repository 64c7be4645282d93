"""Work the queue in this process, or wait for the process that does, until one job has ended."""

import time
from collections.abc import Callable
from typing import Any

from core.jobs import queue
from core.jobs.worker import Worker


def until_ended(job_id: int, look: Callable[[dict[str, Any]], None] = lambda job: None) -> dict[str, Any]:
    """:param look: called with the job about four times a second

    Ctrl-C asks the job to stop at its next safe point; a second one is passed on.

    :returns: the job as it ended
    """
    worker = Worker()
    worker.start()
    interrupted = False
    try:
        while (job := queue.get(job_id))["state"] not in queue.ENDED:
            look(job)
            try:
                time.sleep(0.25)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                queue.stop(job_id)
        look(job)
        return job
    finally:
        worker.close()
        if not interrupted or queue.get(job_id)["state"] in queue.ENDED:
            worker.join()
