"""``plumbline submit``: a run as a job of Slurm or SkyPilot."""

import argparse
from typing import Any

from plumbline.cli import settings
from plumbline.cli.parser import run_argument
from plumbline.cli.terminal import say
from plumbline.errors import StudioError


def add_verbs(verbs: Any) -> None:
    parser = verbs.add_parser("submit", help="a run as a job of Slurm or SkyPilot")
    run_argument(parser)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--slurm", action="store_true", help="write a job for sbatch")
    kind.add_argument("--skypilot", action="store_true", help="write a job for sky launch")
    parser.add_argument("--dry-run", action="store_true", help="print the job file, and write nothing")
    parser.add_argument("--time", default="", metavar="T", help="Slurm: most it may take, like 2-12:00:00")
    parser.add_argument("--partition", default="", metavar="NAME", help="Slurm: where it is to wait")
    parser.add_argument(
        "--accelerator", default="", metavar="GPU:N", help="SkyPilot: what each machine has, like H100:8"
    )
    parser.add_argument(
        "--package",
        default="",
        metavar="REQUIREMENT",
        help="SkyPilot: what pip installs Plumbline from; else this version from the index",
    )
    settings.add_flags(parser, "machines")
    parser.set_defaults(do=submit)


def submit(arguments: argparse.Namespace) -> int:
    """:returns: what the scheduler's program ended with"""
    from plumbline.runs import submit as jobs

    others = ("accelerator", "package") if arguments.slurm else ("time", "partition")
    for name in others:
        if getattr(arguments, name):
            kind = "SkyPilot" if arguments.slurm else "Slurm"
            raise StudioError(f"--{name}", f"is an option of {kind}'s", "Leave it out.")
    changes = dict(settings.given(arguments))
    if arguments.slurm:
        job = jobs.slurm(arguments.run, changes, arguments.time, arguments.partition)
    else:
        job = jobs.skypilot(arguments.run, changes, arguments.accelerator, arguments.package)
    if arguments.dry_run:
        # What is not the job file is a comment in both kinds, so that the whole can be kept as one.
        say(job.script[1].rstrip("\n"), "", f"# Nothing is written. In the workspace's {job.place} would be:")
        say(*(f"#   {name}" for name in job.files), f"# and then run there: {' '.join(job.command)}")
        return 0
    code = jobs.submit_job(job)
    say(f"In {job.folder}, where the job makes its workspace.")
    return code
