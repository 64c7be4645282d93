"""The command line: the same verbs as the tabs, over the same queue and store.

`main` is given the function that serves the studio, because core knows no user interface: it takes the
address, the port, the run to open, and where jobs are done.
"""

import argparse
import contextlib
import io
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from plumbline.cli import arguments as cli_order
from plumbline.cli import check as cli_check
from plumbline.cli import data, doctor, settings
from plumbline.cli import forecast as cli_forecast
from plumbline.cli import submit as cli_submit
from plumbline.cli.terminal import clipped, safe, say, table, watch
from plumbline.config import schema
from plumbline.distributed import process_group
from plumbline.errors import StudioError, system_sentence
from plumbline.jobs import mode
from plumbline.store.opening import UnusableDatabase

Serve = Callable[[str, int, int | None, str], None]


def main(argv: list[str], serve: Serve) -> int:
    """:returns: the exit code: 0 well, 1 a job failed or was stopped, 2 wrong use"""
    parser = _parser()
    arguments = parser.parse_args(cli_order.verb_first(argv, parser))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can
    rank, _ = process_group.rank_and_size()
    if rank:
        return _follow() if arguments.verb in _TRAINING else 0
    try:
        done = _done(arguments, serve)
        process_group.dismiss()
        return done
    except StudioError as error:
        return _refused(error.text)
    except BrokenPipeError:
        # The reader, such as head, has seen enough; Python must not complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, sqlite3.Error) as error:
        if (text := system_sentence(error)) is None:
            raise
        return _refused(text)
    except KeyboardInterrupt:
        return 130


def _done(arguments: argparse.Namespace, serve: Serve) -> int:
    verb = _VERBS[arguments.verb]
    try:
        return verb(arguments, serve)
    except UnusableDatabase as error:
        if not error.rebuilt or not doctor.offered(error):
            raise
        return verb(arguments, serve)


def _refused(text: str) -> int:
    print(f"error: {safe(text)}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plumbline", description="QLoRA fine-tuning that shows its work. Without a verb: the studio."
    )
    verbs = parser.add_subparsers(dest="verb")
    parser.set_defaults(verb="studio")
    for target in (parser, verbs.add_parser("studio", help="open the studio in a browser (the default)")):
        _serving_options(target)
    quickstart = verbs.add_parser(
        "quickstart", help="train the starter on a sample, compare it with its base, open the studio"
    )
    quickstart.add_argument("--headless", action="store_true", help="end instead of opening the studio")
    _serving_options(quickstart)
    train = verbs.add_parser("train", help="train from a YAML recipe")
    train.add_argument("recipe", type=Path, help="a recipe file, or the name of a preset")
    train.add_argument(
        "--data", action="append", metavar="FILE", help="a data file to import and train on; may come again"
    )
    train.add_argument("--leave-bad-rows-out", action="store_true", help="train on the rows that are good")
    forecast = verbs.add_parser(
        "forecast", help="what a recipe would take: memory, time, disk, cost, and why"
    )
    cli_forecast.forecast_options(forecast)
    for target in (train, forecast):
        settings.add_flags(target)
    data.add_parser(verbs)
    resume = verbs.add_parser("resume", help="go on with a stopped, interrupted or failed run")
    evaluate = verbs.add_parser("evaluate", help="compare a run's adapter with its base")
    evaluate.add_argument(
        "--rows", default="", metavar="N", help="held-out rows at most, a sample that stands for all; or all"
    )
    check = verbs.add_parser("check", help="train the first steps with TRL too, and say whether they agree")
    cli_check.options(check)
    merge = verbs.add_parser("merge", help="merge a run's adapter into its 16-bit base")
    export = verbs.add_parser("export", help="zip a run's adapter")
    show = verbs.add_parser("show", help="one run: how it stands, its forecast beside its outcome")
    branch = verbs.add_parser("branch", help="go on from a step of a run with other settings, as a new run")
    branch.add_argument("--step", type=int, help="a step that was kept; the last when not given")
    settings.add_flags(branch)
    again = verbs.add_parser("reproduce", help="train a run again, and say whether the curves agree")
    submit = verbs.add_parser("submit", help="a run as a job of Slurm or SkyPilot")
    cli_submit.options(submit)
    delete = verbs.add_parser("delete", help="delete a run with its checkpoints, evaluations and exports")
    delete.add_argument("--yes", action="store_true", help="without asking")
    for target in (resume, evaluate, check, merge, export, show, branch, again, submit, delete):
        target.add_argument("run", type=int, help="the run's number, as `runs` lists it")
    verbs.add_parser("runs", help="list all runs")
    doctor.options(
        verbs.add_parser("doctor", help="versions, device, compute type and why, free memory and disk")
    )
    verbs.add_parser("test", help="run every test (python launch.py test, from a checkout)")
    return parser


def _serving_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        nargs="?",
        const="0.0.0.0",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="answer other machines too; needs PLUMBLINE_AUTH=user:password",
    )
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    parser.add_argument("--port", type=int, default=port, help=f"to listen on ({port})")
    parser.add_argument(
        "--worker",
        choices=mode.MODES,
        default=mode.wanted(),
        help="do jobs in processes of their own or in a thread of the studio's (PLUMBLINE_WORKER, or auto)",
    )


def _follow() -> int:
    """What a launcher starts beside the first process computes with it, and has no workspace."""
    from plumbline.jobs import process
    from plumbline.worker import follower

    process.live_with_parent()
    return follower.serve()


def _studio(arguments: argparse.Namespace, serve: Serve) -> int:
    serve(arguments.listen, arguments.port, None, arguments.worker)
    return 0


def _quickstart(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline import api
    from plumbline.evaluation.compare import sentence
    from plumbline.store import evaluations

    recipe = schema.preset("starter")
    (run_id,) = api.add(recipe)
    print(f"Run {run_id}: QLoRA on the embedded starter model, dataset {recipe.data.dataset}.")
    began = time.monotonic()
    if _do("train", run_id) != "completed" or _do("evaluate", run_id) != "completed":
        return 1
    evaluation = evaluations.latest(run_id)
    assert evaluation is not None
    _print_result(evaluation)
    print(f"\n{sentence(evaluation['result'])}")
    print(f"Base weights unchanged. Training and evaluation took {time.monotonic() - began:.0f} s.")
    if not arguments.headless:
        serve(arguments.listen, arguments.port, run_id, arguments.worker)
    return 0


def _print_result(evaluation: dict[str, Any]) -> None:
    from plumbline.evaluation import report
    from plumbline.store import evaluations

    result = evaluation["result"]
    say("")
    table([report.rows_of(result), *report.SIDES], report.figures(result), numbers=(1, 2))
    for note in report.notes(result):
        say(note)
    if recall := report.recall(result):
        say("", "Recall of each label")
        table(["label", "rows", *report.SIDES], recall, numbers=(1, 2, 3))
    cut = {f"{side}_answer": result[side].get("cut", []) for side in report.SIDES}
    listed = evaluations.answers(evaluation["id"])[:3]
    if listed:
        say("", "Some answers, those whose score changed most first")
    for row in listed:
        say("", f"  {clipped((row['prompt'].splitlines() or [''])[-1], 98)}")
        for name, answer in (
            ("reference", "reference"),
            ("base", "base_answer"),
            ("adapter", "adapter_answer"),
        ):
            ended = " (cut)" if row["row"] in cut.get(answer, []) else ""
            say(f"    {name + ':':<11}{clipped(row[answer], 85 - len(ended))}{ended}")


def _train(arguments: argparse.Namespace, serve: Serve) -> int:
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


def _branch(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline.runs import start
    from plumbline.store import runs

    changes = dict(settings.given(arguments))
    run_id = start.branch(arguments.run, arguments.step, changes, uuid4().hex)
    row = runs.get(run_id)
    say(f"Run {run_id}: {row['name']}, from step {row['parent_step']} of run {row['parent']}")
    if (steps := runs.recipe(run_id).training.max_steps) is not None:
        say(f"It makes {steps:,} steps.")
    return 0 if _trained(run_id) else 1


def _reproduce(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline.runs import lineage, start

    run_id = start.reproduce(arguments.run, uuid4().hex)
    say(f"Run {run_id}: run {arguments.run} again")
    if not _trained(run_id):
        return 1
    found = lineage.agreement(run_id)
    say(found.sentence)
    return 0 if found.agrees else 1


def _forecast(arguments: argparse.Namespace, serve: Serve) -> int:
    return cli_forecast.forecast(arguments)


def _show(arguments: argparse.Namespace, serve: Serve) -> int:
    return cli_forecast.show(arguments)


def _data(arguments: argparse.Namespace, serve: Serve) -> int:
    return data.run(arguments)


def _submit(arguments: argparse.Namespace, serve: Serve) -> int:
    return cli_submit.submit(arguments)


def _resume(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline.jobs import queue
    from plumbline.worker.worker import recover

    recover()
    return 0 if watch(queue.resume_run(arguments.run))["state"] == "completed" else 1


def _evaluate(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline.evaluation.compare import rows_wanted, sentence
    from plumbline.store import evaluations, runs

    runs.get(arguments.run)
    if _do("evaluate", arguments.run, rows=rows_wanted(arguments.rows)) != "completed":
        return 1
    evaluation = evaluations.latest(arguments.run)
    assert evaluation is not None
    _print_result(evaluation)
    print(f"\n{sentence(evaluation['result'])}")
    return 0


def _export(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline.export import bases
    from plumbline.home import export_folder
    from plumbline.jobs import queue
    from plumbline.store import runs

    runs.get(arguments.run)
    kind: queue.Kind = "merge" if arguments.verb == "merge" else "adapter"
    job_id = queue.enqueue(kind, arguments.run)
    if watch(job_id)["state"] != "completed":
        return 1
    made = queue.get(job_id)["result"]
    print(export_folder(job_id) / made["file"])
    say_refusals(made)
    if "bases" in made.get("parity", {}):
        say(f"{bases.sentence(made['parity']['bases'])}.")
    return 0


def say_refusals(made: dict[str, Any]) -> None:
    """:param made: the result of an export"""
    for sentence in made.get("refusals", []):
        say(f"Note: {sentence}")


def _runs(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline.store import runs
    from plumbline.worker.worker import recover

    recover()
    listed = runs.listed()
    if not listed:
        print("No runs yet. Start one: plumbline quickstart")
        return 0
    print(f"{'run':>4}  {'state':<12}{'step':>12}  {'held-out':>8}  {'base':<24}{'name'}")
    for run in listed:
        step = f"{run['step'] or 0}/{run['total_steps'] or '?'}"
        loss = f"{run['eval_loss']:.3f}" if run["eval_loss"] is not None else "-"
        say(f"{run['id']:>4}  {run['state']:<12}{step:>12}  {loss:>8}  {run['base']:<24}{run['name']}")
        if run["error"]:
            say(f"      {run['error']}")
    return 0


def _delete(arguments: argparse.Namespace, serve: Serve) -> int:
    from plumbline.runs import delete as removal
    from plumbline.worker.worker import recover

    recover()
    if not arguments.yes:
        say(removal.contents(arguments.run).sentence)
        if not data.agreed("delete", f"Delete run {arguments.run}? [y/N] "):
            say("Kept.")
            return 1
    removal.remove(arguments.run)
    say(f"Deleted run {arguments.run}.")
    return 0


def _doctor(arguments: argparse.Namespace, serve: Serve) -> int:
    return doctor.doctor(arguments)


def _test(arguments: argparse.Namespace, serve: Serve) -> int:
    raise StudioError("test", "needs a checkout of the source", "Run python launch.py test there.")


def _trained(run_id: int) -> bool:
    """Watch the training of a run that was queued. :returns: whether it completed"""
    from plumbline.jobs import queue

    job = queue.latest(run_id, "train")
    return job is not None and watch(job["id"])["state"] == "completed"


def _do(kind: Any, run_id: int, **payload: Any) -> str:
    from plumbline.jobs import queue

    return str(watch(queue.enqueue(kind, run_id, **payload))["state"])


_TRAINING = ("quickstart", "train", "resume", "branch", "reproduce")
_VERBS: dict[str, Callable[[argparse.Namespace, Serve], int]] = {
    "studio": _studio,
    "quickstart": _quickstart,
    "train": _train,
    "forecast": _forecast,
    "data": _data,
    "resume": _resume,
    "branch": _branch,
    "reproduce": _reproduce,
    "submit": _submit,
    "evaluate": _evaluate,
    "check": lambda arguments, serve: cli_check.check(arguments),
    "merge": _export,
    "export": _export,
    "runs": _runs,
    "show": _show,
    "delete": _delete,
    "doctor": _doctor,
    "test": _test,
}
