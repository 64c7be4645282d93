"""The process that does one job. `plumbline.worker.supervisor` starts it and gives it the job's id.

The end of its input means that the studio is gone: it then ends at once, so that nothing trains unowned.
"""

import os
import sys

from plumbline import environment, error_log
from plumbline.distributed import launch_commands, process_group
from plumbline.errors import message_of
from plumbline.jobs import mode, process, queue
from plumbline.jobs.job import Job
from plumbline.models import stack
from plumbline.python_process import search_path
from plumbline.store import runs
from plumbline.worker import follower, worker


def main() -> None:
    """Wait for a job's id, do the job, end.

    With ``--ready`` among the arguments torch and all that trains is imported while it waits. With
    ``--launched`` comes the id of a job that an earlier process of this one's has taken.
    """
    environment.set_defaults()
    environment.quiet_libraries()
    error_log.attach()
    process.live_with_parent()
    mode.use("process")
    if "--launched" in sys.argv:
        rank, _ = process_group.rank_and_size()
        if rank:
            os._exit(follower.serve())
        job = Job(queue.get(int(sys.argv[-1])))
    else:
        jobs = process.listen()
        if "--ready" in sys.argv:
            _get_ready()
        job = Job(queue.get(jobs.get()))
        if job.kind == "train" and runs.recipe(job.run_id).machines.num_machines > 1:
            _launch(job)
    worker.perform(job)
    process_group.dismiss()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to tidy up, and threads of libraries must not keep a job's memory any longer.
    os._exit(0)


def _launch(job: Job) -> None:
    """Become the launcher of this machine, whose first process does the job."""
    config = runs.recipe(job.run_id)
    for number, command in enumerate(launch_commands.commands(config, ["resume", str(job.run_id)])[1:], 2):
        job.event(f"on machine {number} run: {command}")
    others = config.machines.num_machines - 1
    job.report(f"waiting for {others} more machine{'s' if others > 1 else ''}")
    environment = os.environ | {"PYTHONPATH": search_path(os.pathsep), "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, launch_commands.launch_here(config, job.id), environment)


def _get_ready() -> None:
    try:
        stack.ready()
        import torch

        from plumbline.training import run  # noqa: F401

        if not torch.cuda.is_available():
            # bitsandbytes asks every GPU what it can do: a process that waits would hold memory there.
            from plumbline.training.loop import trainer  # noqa: F401
    except Exception as error:
        # The job that needs it will say the same to its user.
        message_of(error)


if __name__ == "__main__":
    main()
