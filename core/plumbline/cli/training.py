"""The verbs that train: quickstart, train, resume, branch, reproduce and check."""

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from plumbline.cli import runs as cli_runs
from plumbline.cli import settings, studio
from plumbline.cli.parser import json_option, run_argument, whole
from plumbline.cli.terminal import say, say_json, table, watch
from plumbline.config import schema
from plumbline.errors import StudioError


def add_verbs(verbs: Any) -> None:
    made = verbs.add_parser(
        "quickstart", help="train the starter on a sample, compare it with its base, open the studio"
    )
    made.add_argument("--headless", action="store_true", help="end instead of opening the studio")
    studio.serving_options(made)
    made.set_defaults(do=quickstart, trains=True)

    made = verbs.add_parser("train", help="train from a YAML recipe")
    made.add_argument("recipe", metavar="RECIPE", type=Path, help="a recipe file, or the name of a preset")
    made.add_argument(
        "--data", action="append", metavar="FILE", help="a data file to import and train on; may come again"
    )
    made.add_argument("--leave-bad-rows-out", action="store_true", help="train on the rows that are good")
    settings.add_flags(made)
    made.set_defaults(do=train, trains=True)

    made = verbs.add_parser("resume", help="go on with a stopped, interrupted or failed run")
    run_argument(made)
    made.set_defaults(do=resume, trains=True)

    made = verbs.add_parser("branch", help="go on from a step of a run with other settings, as a new run")
    run_argument(made)
    made.add_argument(
        "--step", type=whole(0), metavar="N", help="a step that was kept; the last when not given"
    )
    settings.add_flags(made)
    made.set_defaults(do=branch, trains=True)

    made = verbs.add_parser("reproduce", help="train a run again, and say whether the curves agree")
    run_argument(made)
    made.set_defaults(do=reproduce, trains=True)

    made = verbs.add_parser("check", help="train the first steps with TRL too, and say whether they agree")
    run_argument(made)
    made.add_argument(
        "--steps", type=whole(2), metavar="N", default=20, help="of each of three trainings (20)"
    )
    json_option(made)
    made.set_defaults(do=check)


def quickstart(arguments: argparse.Namespace) -> int:
    from plumbline import api
    from plumbline.evaluation.compare import sentence

    recipe = schema.preset("starter")
    (run_id,) = api.add(recipe)
    say(f"Run {run_id}: QLoRA on the embedded starter model, dataset {recipe.data.dataset}.")
    began = time.monotonic()
    if cli_runs.do("train", run_id) != "completed" or cli_runs.do("evaluate", run_id) != "completed":
        return 1
    result = cli_runs.print_evaluation(run_id)
    say("", sentence(result))
    say(f"Base weights unchanged. Training and evaluation took {time.monotonic() - began:.0f} s.")
    return 0 if arguments.headless else studio.serve(arguments, run_id)


def train(arguments: argparse.Namespace) -> int:
    from plumbline import api
    from plumbline.data.selection import dropped_content, mix, split_labels
    from plumbline.runs import start
    from plumbline.store import runs

    recipe = settings.recipe(arguments)
    stored = api.add(recipe, arguments.data, arguments.leave_bad_rows_out)
    config = runs.recipe(stored[0])
    with contextlib.suppress(StudioError):  # the run will say it
        for level, text in split_labels.lines(mix.choose(config.data), config.data):
            say(f"{'note: ' if level == 'warning' else ''}{text}")
        for text in dropped_content.warnings(config):
            say(f"note: {text}")
    for run_id, job_id in zip(stored, start.queued(stored), strict=True):
        say(f"Run {run_id}: {runs.get(run_id)['name']}")
        if watch(job_id)["state"] != "completed":
            return 1
    return 0


def resume(arguments: argparse.Namespace) -> int:
    from plumbline.jobs import queue
    from plumbline.worker.worker import recover

    recover()
    return 0 if watch(queue.resume_run(arguments.run))["state"] == "completed" else 1


def branch(arguments: argparse.Namespace) -> int:
    from plumbline.runs import start
    from plumbline.store import runs

    changes = dict(settings.given(arguments))
    run_id = start.branch(arguments.run, arguments.step, changes, uuid4().hex)
    row = runs.get(run_id)
    say(f"Run {run_id}: {row['name']}, from step {row['parent_step']} of run {row['parent']}")
    if (steps := runs.recipe(run_id).training.max_steps) is not None:
        say(f"It makes {steps:,} steps.")
    return 0 if _trained(run_id) else 1


def reproduce(arguments: argparse.Namespace) -> int:
    from plumbline.runs import lineage, start

    run_id = start.reproduce(arguments.run, uuid4().hex)
    say(f"Run {run_id}: run {arguments.run} again")
    if not _trained(run_id):
        return 1
    found = lineage.agreement(run_id)
    say(found.sentence)
    return 0 if found.agrees else 1


def check(arguments: argparse.Namespace) -> int:
    """:returns: 0 when the curves agree, 1 when they do not, or the job did not complete"""
    from plumbline.jobs import queue
    from plumbline.training import against_trl

    job_id = against_trl.start(arguments.run, arguments.steps)
    if watch(job_id)["state"] != "completed":
        return 1
    result = queue.get(job_id)["result"]
    if arguments.json:
        say_json(result)
        return 0 if result["agrees"] else 1
    curves = zip(result["ours"], result["trl"], result["other_seed"], strict=True)
    rows = [[str(step), *(f"{loss:.5f}" for loss in losses)] for step, losses in enumerate(curves, 1)]
    table(["step", "Plumbline", "TRL", "TRL, next seed"], rows, numbers=(0, 1, 2, 3))
    say(against_trl.sentence(result))
    return 0 if result["agrees"] else 1


def _trained(run_id: int) -> bool:
    """Watch the training of a run that was queued. :returns: whether it completed"""
    from plumbline.jobs import queue

    job = queue.latest(run_id, "train")
    return job is not None and watch(job["id"])["state"] == "completed"
