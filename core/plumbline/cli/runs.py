"""Runs that there are: listed, shown, evaluated, exported, deleted."""

import argparse
import json
from collections.abc import Iterator
from typing import Any, get_args

from plumbline.checkpoints import summary
from plumbline.cli.parser import json_option, run_argument, whole
from plumbline.cli.terminal import agreed, clipped, entry, say, say_json, table, watch
from plumbline.config import schema
from plumbline.config.method import current_method
from plumbline.planner import figures
from plumbline.program import command
from plumbline.store.records import RunRow

GUTTER = 20
METHODS = get_args(schema.MethodSection.model_fields["name"].annotation)
# Those of plumbline.jobs.queue, which is not imported before a verb needs it.
STATES = ("queued", "preparing", "running", "stopping", "completed", "stopped", "failed", "interrupted")


def add_verbs(verbs: Any) -> None:
    made = verbs.add_parser("runs", help="list runs, the newest first")
    made.add_argument("text", nargs="?", default="", metavar="TEXT", help="in a run's name, or its base's")
    made.add_argument("--state", choices=STATES, help="runs that stand so")
    made.add_argument("--dataset", default="", metavar="NAME", help="runs that learn from it, in a mix too")
    made.add_argument(
        "--method",
        type=current_method,
        choices=METHODS,
        help="how they learn",
    )
    made.add_argument("--newest", type=whole(1), metavar="N", help="this many at most")
    json_option(made)
    made.set_defaults(do=runs)

    made = verbs.add_parser("show", help="one run: how it stands, its forecast beside its outcome")
    run_argument(made)
    json_option(made)
    made.set_defaults(do=show)

    made = verbs.add_parser("evaluate", help="compare a run's adapter with its base")
    run_argument(made)
    made.add_argument(
        "--rows", default="", metavar="N", help="held-out rows at most, a sample that stands for all; or all"
    )
    json_option(made)
    made.set_defaults(do=evaluate)

    for name, text in (
        ("merge", "merge a run's adapter into its 16-bit base"),
        ("export", "zip a run's adapter"),
    ):
        made = verbs.add_parser(name, help=text)
        run_argument(made)
        made.set_defaults(do=export)

    made = verbs.add_parser("delete", help="delete a run with its checkpoints, evaluations and exports")
    run_argument(made)
    made.add_argument("--yes", action="store_true", help="without asking")
    made.set_defaults(do=delete)


def runs(arguments: argparse.Namespace) -> int:
    from plumbline.worker.worker import recover

    recover()
    listed = list(_matching(arguments))
    if arguments.json:
        return say_json([_as_json(run, recipe) for run, recipe in listed])
    if not listed:
        asked = arguments.text or arguments.state or arguments.dataset or arguments.method
        say("No run is like that." if asked else f"No runs yet. Start one: {command('quickstart')}")
        return 0
    say(f"{'run':>4}  {'state':<12}{'step':>12}  {'held-out':>8}  {'base':<24}{'name'}")
    for run, _ in listed:
        step = f"{run['step'] or 0}/{run['total_steps'] or '?'}"
        loss = f"{run['eval_loss']:.3f}" if run["eval_loss"] is not None else "-"
        say(f"{run['id']:>4}  {run['state']:<12}{step:>12}  {loss:>8}  {run['base']:<24}{run['name']}")
        if run["error"]:
            say(f"      {run['error']}")
    return 0


def _matching(arguments: argparse.Namespace) -> Iterator[tuple[RunRow, schema.RunConfig]]:
    """Runs with their recipes, the newest first, as the options ask for them."""
    from plumbline.store import datasets, runs

    dataset = datasets.by_name(arguments.dataset) if arguments.dataset else None
    text, count = arguments.text.casefold(), 0
    for run in runs.listed(limit=-1):
        if count == arguments.newest:
            return
        if text not in f"{run['name']} {run['base']}".casefold():
            continue
        if arguments.state and run["state"] != arguments.state:
            continue
        recipe = runs.recipe(run["id"])
        if arguments.method and recipe.method.name != arguments.method:
            continue
        if dataset and not {part.dataset for part in recipe.data.parts} & set(datasets.called(dataset)):
            continue
        count += 1
        yield run, recipe


_FIELDS = (
    ("id", "name", "state", "base", "step", "total_steps", "loss", "eval_loss", "base_eval_loss")
    + ("best_eval_loss", "best_step", "parent", "parent_step", "relation", "error")
    + ("created_at", "started_at", "finished_at")
)


def _as_json(run: RunRow, recipe: schema.RunConfig) -> dict[str, Any]:
    """Times are seconds since 1970, losses nats per token."""
    learned = {"method": recipe.method.name, "datasets": [part.dataset for part in recipe.data.parts]}
    columns = dict(run)
    return {name: columns[name] for name in _FIELDS} | learned


def show(arguments: argparse.Namespace) -> int:
    from plumbline.store import evaluations, runs
    from plumbline.worker.worker import recover

    recover()
    run = runs.get(arguments.run)
    told = summary.verdicts(json.loads(run["summary"] or "{}"))
    decisions, both = runs.decisions(run["id"]), runs.forecast_and_outcome(run["id"])
    if arguments.json:
        recipe, evaluation = runs.recipe(run["id"]), evaluations.latest(run["id"])
        forecast, outcome = both or (json.loads(run["forecast"] or "null"), None)
        return say_json(
            _as_json(run, recipe)
            | {"notes": told, "decisions": decisions, "forecast": forecast, "outcome": outcome}
            | {"evaluation": evaluation and evaluation["result"], "recipe": recipe.model_dump(mode="json")}
        )
    say(f"run {run['id']}: {run['name']}")
    _line("State", run["state"] + (f": {run['error']}" if run["error"] else ""))
    _line("Step", f"{run['step'] or 0} of {run['total_steps'] or '?'}")
    if run["eval_loss"] is not None:
        base = "" if run["base_eval_loss"] is None else f", base {run['base_eval_loss']:.3f}"
        _line("Held-out loss", f"{run['eval_loss']:.3f}{base}")
    for text in told:
        _line("note", text)
    for name, choice in decisions.items():
        _line(figures.label(name), f"{choice['value']} ({choice['why']})")
    if both is not None:
        forecast, outcome = both
        say("", "Forecast and outcome" + (", measured before Start" if forecast.get("probed") else ""))
        table(figures.COMPARED, figures.compared(forecast, outcome), numbers=(1, 2, 3))
    return 0


def _line(name: str, text: str) -> None:
    entry(name, text, GUTTER)


def do(kind: Any, run_id: int, **payload: Any) -> str:
    """Queue a job of a run and watch it. :returns: the state that it ended in"""
    from plumbline.jobs import queue

    return str(watch(queue.enqueue(kind, run_id, **payload))["state"])


def evaluate(arguments: argparse.Namespace) -> int:
    from plumbline.evaluation.compare import rows_wanted, sentence
    from plumbline.store import evaluations, runs

    runs.get(arguments.run)
    if do("evaluate", arguments.run, rows=rows_wanted(arguments.rows)) != "completed":
        return 1
    if arguments.json:
        evaluation = evaluations.latest(arguments.run)
        assert evaluation is not None
        rows = [
            {name: value for name, value in row.items() if name not in ("id", "evaluation_id")}
            for row in evaluations.answers(evaluation["id"])
        ]
        return say_json({"run": arguments.run, "result": evaluation["result"], "answers": rows})
    say("", sentence(print_evaluation(arguments.run)))
    return 0


def print_evaluation(run_id: int) -> dict[str, Any]:
    """Print a run's newest evaluation. :returns: its result"""
    from plumbline.evaluation import report
    from plumbline.store import evaluations

    evaluation = evaluations.latest(run_id)
    assert evaluation is not None
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
    return result


def export(arguments: argparse.Namespace) -> int:
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
    say(str(export_folder(job_id) / made["file"]))
    say_refusals(made)
    if "bases" in made.get("parity", {}):
        say(f"{bases.sentence(made['parity']['bases'])}.")
    return 0


def say_refusals(made: dict[str, Any]) -> None:
    """:param made: the result of an export"""
    for sentence in made.get("refusals", []):
        say(f"Note: {sentence}")


def delete(arguments: argparse.Namespace) -> int:
    from plumbline.runs import delete as removal
    from plumbline.worker.worker import recover

    recover()
    if not arguments.yes:
        say(removal.contents(arguments.run).sentence)
        if not agreed("delete", f"Delete run {arguments.run}? [y/N] "):
            say("Kept.")
            return 1
    removal.remove(arguments.run)
    say(f"Deleted run {arguments.run}.")
    return 0
