"""The process that does one job. `core.jobs.supervisor` starts it and gives it the job's id.

The end of its input means that the studio is gone: it then ends at once, so that nothing trains unowned.
"""

import os
import sys

from core.errors import message_of
from core.jobs import commands, mode, process, queue, worker
from core.models import stack
from core.store import runs
from core.training import follow, world


def main() -> None:
    """Wait for a job's id, do the job, end.

    With ``--ready`` among the arguments torch and all that trains is imported while it waits. With
    ``--launched`` comes the id of a job that an earlier process of this one's has taken.
    """
    process.live_with_parent()
    mode.use("process")
    if "--launched" in sys.argv:
        rank, _ = world.place()
        if rank:
            os._exit(follow.serve())
        job = worker.Job(queue.get(int(sys.argv[-1])))
    else:
        jobs = process.listen()
        if "--ready" in sys.argv:
            _get_ready()
        job = worker.Job(queue.get(jobs.get()))
        if job.kind == "train" and runs.recipe(job.run_id).machines.hosts > 1:
            _launch(job)
    worker.perform(job)
    world.dismiss()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to tidy up, and threads of libraries must not keep a job's memory any longer.
    os._exit(0)


def _launch(job: worker.Job) -> None:
    """Become the launcher of this machine, whose first process does the job."""
    config = runs.recipe(job.run_id)
    for number, command in enumerate(commands.commands(config, ["resume", str(job.run_id)])[1:], 2):
        job.event(f"on machine {number} run: {command}")
    job.report(f"waiting for {config.machines.hosts - 1} more machine{'s'[: config.machines.hosts - 2]}")
    told = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    os.execve(sys.executable, commands.launch_here(config, job.id), told)


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


if __name__ == "__main__":
    main()
