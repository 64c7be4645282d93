"""The process that does one job. `core.jobs.supervisor` starts it and gives it the job's id.

The end of its input means that the studio is gone: it then ends at once, so that nothing trains unowned.
"""

import os
import sys

from core.errors import message_of
from core.jobs import mode, process, queue, worker
from core.models import stack


def main() -> None:
    """Wait for a job's id, do the job, end.

    With ``--ready`` among the arguments torch and all that trains is imported while it waits.
    """
    process.live_with_parent()
    jobs = process.listen()
    mode.use("process")
    if "--ready" in sys.argv:
        _get_ready()
    job_id = jobs.get()
    worker.perform(worker.Job(queue.get(job_id)))
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to tidy up, and threads of libraries must not keep a job's memory any longer.
    os._exit(0)


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
