"""A run as a job of a scheduler: a folder that another machine can compute it from.

It holds the job file, the recipe, and the rows of every dataset; the job makes its workspace in there. The
first machine imports the rows, then every machine starts the same command.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plumbline.config import schema
from plumbline.config.schema import RunConfig
from plumbline.data.formats.mapping_parser import mapping_of
from plumbline.distributed.launch_commands import PROGRAM, launcher
from plumbline.errors import StudioError
from plumbline.home import folder, run_folder
from plumbline.models.load import STARTER, is_shared_id
from plumbline.runs import bundle
from plumbline.store import runs
from plumbline.version import __version__

FOLDER, RECIPE, WORKSPACE = "submit", "recipe.yaml", "workspace"
CPUS = 4  # of Slurm for each GPU
NOTICE = 300  # seconds before the end of its time in which a job writes a checkpoint
TOKEN = "HF_TOKEN"
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_PARTITION = re.compile(r"\w[\w.,-]*")
_ACCELERATOR = re.compile(r"([A-Za-z0-9][\w.-]*)(?::([1-9]\d?))?")


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as such."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


@dataclass(frozen=True)
class Job:
    """What is written for a scheduler, and what hands it in.

    :param script: name and text of the job file
    :param command: run in the job's folder
    """

    run_id: int
    script: tuple[str, str]
    recipe: RunConfig
    parcels: list[bundle.Parcel]
    command: list[str]

    @property
    def place(self) -> str:
        """The job's folder in the workspace."""
        return f"runs/{self.run_id}/{FOLDER}"

    @property
    def folder(self) -> Path:
        return run_folder(self.run_id) / FOLDER

    @property
    def files(self) -> list[str]:
        """What the folder will hold, relative to it."""
        rows = [name for parcel in self.parcels for name in (*parcel.files.values(), parcel.mapping)]
        return [self.script[0], RECIPE, *rows]


def slurm(run_id: int, changes: dict[str, Any] | None = None, time: str = "", partition: str = "") -> Job:
    """:param changes: settings of the section machines, by key

    :param time: most that the job may take, as sbatch reads it; empty leaves it to the partition
    :raises StudioError: when the run cannot be a job, or an option is not one of sbatch's
    """
    if time and not _TIME.fullmatch(time):
        raise StudioError("--time", f"{time!r:.40} is no time of Slurm's", "Write 2-12:00:00, or minutes.")
    if partition and not _PARTITION.fullmatch(partition):
        raise StudioError("--partition", f"{partition!r:.40} is no name of one", "See sinfo for yours.")
    config, parcels = _carried(run_id, changes or {})
    gpus = config.machines.gpus
    if gpus is None:
        raise StudioError("machines.gpus", "must say how many GPUs a machine has", "Add --machines.gpus 8.")
    options = {
        "job-name": f"plumbline-{run_id}",
        "nodes": config.machines.num_machines,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus,
        "cpus-per-task": CPUS * gpus,
        "output": "%x-%j.log",
        "signal": f"TERM@{NOTICE}",
        "time": time,
        "partition": partition,
    }
    # Expanded on each machine, where srun says which one it is.
    command = "exec " + launcher(config, '"$SLURM_NODEID"', '"$FIRST"') + ' "$@"'
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in options.items() if value),
        "# The run that did not end goes on with: sbatch job.sh resume 1",
        "set -euo pipefail",
        f'export PLUMBLINE_HOME="$PWD/{WORKSPACE}"',
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={NOTICE}  # until a launcher ends what saves a checkpoint",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun no longer takes it from sbatch',
        "if [ $# -eq 0 ]; then",
        *_imports(parcels),
        f"  set -- train {RECIPE}",
        "fi",
        'mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'export FIRST="${NODES[0]}"',
        f'srun --kill-on-bad-exit=1 bash -c {shlex.quote(command)} {PROGRAM} "$@"',
    ]
    return Job(run_id, ("job.sh", "\n".join(lines) + "\n"), config, parcels, ["sbatch", "job.sh"])


def skypilot(
    run_id: int, changes: dict[str, Any] | None = None, accelerator: str = "", package: str = ""
) -> Job:
    """:param changes: settings of the section machines, by key

    :param accelerator: what each machine has, as SkyPilot names it, like ``H100:8``
    :param package: what pip installs Plumbline from; empty means this version from the index
    :raises StudioError: when the run cannot be a job, or an option is not one of SkyPilot's
    """
    changes = dict(changes or {})
    match = _ACCELERATOR.fullmatch(accelerator)
    if match is None:
        what = f"{accelerator!r:.40} is no kind of GPU" if accelerator else "must name a kind of GPU"
        raise StudioError("--accelerator", what, "Write its name and how many a machine has, like H100:8.")
    requested = changes.get("machines.gpus") or runs.recipe(run_id).machines.gpus
    count = str(requested or match[2] or 1)
    if match[2] and match[2] != count:
        what = f"has {match[2]} GPUs a machine, and machines.gpus is {count}"
        raise StudioError(f"--accelerator {accelerator}", what, "Give the same number.")
    config, parcels = _carried(run_id, changes | {"machines.gpus": count})
    base = config.model.base
    if not is_shared_id(base):
        raise StudioError(
            "model.base", "is a folder, which a machine of a cloud does not have", "Name a Hub model."
        )
    command = launcher(config, '"$SKYPILOT_NODE_RANK"', '"$FIRST"')
    asked = base != STARTER and TOKEN in os.environ
    name = f"plumbline-{run_id}"
    task: dict[str, Any] = {
        "name": name,
        "num_nodes": config.machines.num_machines,
        "resources": {"accelerators": f"{match[1]}:{config.machines.gpus}"},
        "workdir": ".",
        "secrets": {TOKEN: None},
        "setup": f"pip install {shlex.quote(package or f'plumbline-studio=={__version__}')}",
        "run": "\n".join(
            [
                "set -euo pipefail",
                f'export PLUMBLINE_HOME="$PWD/{WORKSPACE}"',
                'FIRST=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")',
                'if [ "$SKYPILOT_NODE_RANK" = 0 ]; then',
                *_imports(parcels),
                "fi",
                f"exec {command} train {RECIPE}\n",
            ]
        ),
    }
    if not asked:
        del task["secrets"]
    text = f"# What was learned is then in sky_workdir/{WORKSPACE}; sky down {name} ends the machines.\n"
    text += yaml.dump(task, Dumper=_Readable, sort_keys=False, width=1000)
    secret = ["--secret", TOKEN] if asked else []
    return Job(
        run_id, ("job.yaml", text), config, parcels, ["sky", "launch", "-c", name, *secret, "job.yaml"]
    )


def _imports(parcels: list[bundle.Parcel]) -> list[str]:
    return [f"  {PROGRAM} {shlex.join(parcel.words)}" for parcel in parcels]


def _carried(run_id: int, changes: dict[str, Any]) -> tuple[RunConfig, list[bundle.Parcel]]:
    """A run's recipe as it is computed elsewhere, and its datasets.

    :raises StudioError: when it begins with what only this workspace has
    """
    run = runs.get(run_id)
    if run["relation"] in ("branch", "rank"):
        what = f"begins with the adapter of run {run['parent']}, which only this workspace has"
        raise StudioError(f"run {run_id}", what, "Train it here, or submit a run that begins by itself.")
    config = runs.recipe(run_id)
    changes = schema.by_current_names(changes)
    hosts = changes.get("machines.num_machines", config.machines.num_machines)
    # The schema wants an address of several; the job takes the one that its scheduler gives the first.
    address = "" if str(hosts) == "1" else "given-by-the-job"
    config = schema.changed(config, changes | {"machines.main_process_ip": address})
    base = config.model.base
    if not is_shared_id(base):  # a folder, which a job would look for from its own
        base = str(Path(base).expanduser().absolute())
    model = config.model.model_copy(update={"base": base})
    config = config.model_copy(update={"name": run["name"], "model": model})
    parcels = bundle.parcels(config)
    return bundle.renamed(config, parcels), parcels


def write(job: Job) -> Path:
    """Write the job's folder, whole or not at all; one that no job began in is replaced. :returns: it

    :raises StudioError: when a job has begun in an earlier one, whose workspace may be all there is of it
    """
    target = job.folder
    if (target / WORKSPACE).exists():
        what = "holds the workspace of a job that was begun"
        raise StudioError(str(target), what, "Move the folder away, then submit again.")
    staging = Path(tempfile.mkdtemp(prefix="submit-", dir=folder("staging")))
    made = staging / "new"
    try:
        made.mkdir()
        name, text = job.script
        (made / name).write_text(text, encoding="utf-8")
        (made / RECIPE).write_text(schema.dumps(job.recipe), encoding="utf-8")
        for parcel in job.parcels:
            bundle.write(parcel, made)
            mapping_of(made / parcel.mapping)  # refused here, not on the cluster
        if target.exists():
            target.rename(staging / "old")
        made.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def submit_job(job: Job) -> int:
    """Write the job's folder and give it to the scheduler. :returns: what that ended with

    :raises StudioError: when the scheduler's program is not on this machine; the folder is written then
    """
    written = write(job)
    program = job.command[0]
    if shutil.which(program) is None:
        fix = f"Run {shlex.join(job.command)} in {written}, on a machine that has it."
        raise StudioError(program, "is not on this machine, so the job is only written", fix)
    return subprocess.run(job.command, cwd=written).returncode
