"""What starts a run on each of its machines: one command a machine, the same but for its rank.

accelerate's launcher reads ``accelerate config``'s answers, old ones too, for what a command leaves out,
so everything that it would take from there is said. Without a GPU its ``--cpu`` gives a process no rank;
``--multi_gpu`` starts the same processes on any machine, and they find out what they compute on.
"""

import shlex
import sys
from collections.abc import Sequence

from plumbline.config.schema import RunConfig
from plumbline.errors import RecipeError

PROGRAM = "plumbline"


def commands(config: RunConfig, what: Sequence[str]) -> list[str]:
    """The command of each machine, as a shell takes it; the first one's does the job.

    On one machine nothing has to be launched: the job starts a process for each GPU itself.

    :param what: the verb and what it is given, like ``["train", "recipe.yaml"]``
    :raises RecipeError: when the recipe does not say which machines these are
    """
    if conflicts := config.machines.conflicts():
        raise RecipeError(conflicts)
    hosts, address = config.machines.num_machines, shlex.quote(config.machines.main_process_ip)
    return [f"{launcher(config, str(rank), address)} {shlex.join(what)}" for rank in range(hosts)]


def launcher(config: RunConfig, rank: str, address: str) -> str:
    """A command up to its verb.

    :param rank: of the machine, from 0, and ``address`` of the first: words as a shell reads them
    """
    if config.machines.num_machines == 1:
        return PROGRAM
    return f"accelerate launch {_flags(config, rank, address)} --no_python {PROGRAM}"


def launch_here(config: RunConfig, job_id: int) -> list[str]:
    """What a job's process becomes to be the first of several machines. Not for a shell."""
    flags = _flags(config, "0", config.machines.main_process_ip).split()
    module = ["--module", "plumbline.worker.child", "--launched", str(job_id)]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, *module]


def _flags(config: RunConfig, rank: str, address: str) -> str:
    machines = config.machines
    processes = machines.num_machines * (machines.gpus or 1)
    return (
        f"--multi_gpu --num_machines {machines.num_machines} --num_processes {processes} "
        f"--machine_rank {rank} --main_process_ip {address} --main_process_port {machines.port} "
        f"--gpu_ids all --mixed_precision no --dynamo_backend no"
    )
