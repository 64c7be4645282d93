"""The verb ``check``: the first steps of a run's recipe by our engine and by TRL's, side by side."""

import argparse

from plumbline.cli.terminal import say, table, watch
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.training import against_trl


def options(parser: argparse.ArgumentParser) -> None:
    count = against_trl.STEPS
    parser.add_argument("--steps", type=int, default=count, help=f"of each of three trainings ({count})")


def check(arguments: argparse.Namespace) -> int:
    """:returns: 0 when the curves agree, 1 when they do not, or the job did not complete"""
    if arguments.steps < 2:
        raise StudioError("--steps", "must be 2 or more", "Nothing is learned before the first step.")
    job_id = against_trl.start(arguments.run, arguments.steps)
    if watch(job_id)["state"] != "completed":
        return 1
    result = queue.get(job_id)["result"]
    curves = zip(result["ours"], result["trl"], result["other_seed"], strict=True)
    rows = [[str(step), *(f"{loss:.5f}" for loss in losses)] for step, losses in enumerate(curves, 1)]
    table(["step", "Plumbline", "TRL", "TRL, next seed"], rows, numbers=(0, 1, 2, 3))
    say(against_trl.sentence(result))
    return 0 if result["agrees"] else 1
