"""What a recipe would take, and what a run was expected to take and took, as text."""

import argparse
import json
from pathlib import Path

from plumbline.checkpoints import summary
from plumbline.cli import settings
from plumbline.cli.terminal import entry, say, table, watch
from plumbline.config import schema
from plumbline.distributed.launch_commands import commands
from plumbline.planner import figures

MARKS = {"good": "ok", "warning": "note", "bad": "STOP"}


def forecast_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a recipe file, or the name of a preset")
    parser.add_argument(
        "--probe", action="store_true", help="measure it first: two steps at the worst length, about 20 s"
    )
    parser.add_argument("--price", metavar="X", help="what the machine costs an hour, in any currency")


def forecast(arguments: argparse.Namespace) -> int:
    """:returns: 1 when the run could not be started, or its measurement failed"""
    from plumbline.data.selection import datasets
    from plumbline.planner.overview import outlook
    from plumbline.worker import measure

    recipe = settings.recipe(arguments)
    if arguments.price is not None:
        raw = recipe.model_dump()
        raw["training"]["price_per_hour"] = arguments.price
        recipe = schema.validated(raw, "--price")
    datasets.ensure_samples()
    if arguments.probe and watch(measure.start(recipe))["state"] != "completed":
        return 1
    found = outlook(recipe)
    say(recipe.display_name)
    for name, text in found.figures:
        _line(name, text)
    if found.forecast is not None:
        say("", f"What it takes ({'measured here' if found.forecast.probed else 'forecast'})")
        for name, text in figures.of_forecast(found.forecast):
            _line(name, text)
    say("", "How it is done")
    for name, choice in found.decisions.items():
        _line(figures.label(name), f"{choice.value} ({choice.why})")
    say("")
    for check in found.checks:
        _line(MARKS[check.level], check.text)
    if recipe.machines.hosts > 1:
        given = [f"--{key}={text}" for key, text in settings.given(arguments).items()]
        say("", "The command of each machine; the first does the job")
        say(*commands(recipe, ["train", str(arguments.recipe), *given]))
    return 1 if found.blocked else 0


def show(arguments: argparse.Namespace) -> int:
    from plumbline.store import runs
    from plumbline.worker.worker import recover

    recover()
    run = runs.get(arguments.run)
    say(f"run {run['id']}: {run['name']}")
    _line("State", run["state"] + (f": {run['error']}" if run["error"] else ""))
    _line("Step", f"{run['step'] or 0} of {run['total_steps'] or '?'}")
    if run["eval_loss"] is not None:
        base = "" if run["base_eval_loss"] is None else f", base {run['base_eval_loss']:.3f}"
        _line("Held-out loss", f"{run['eval_loss']:.3f}{base}")
    for told in summary.verdicts(json.loads(run["summary"] or "{}")):
        _line(MARKS["warning"], told)
    for name, choice in runs.decisions(run["id"]).items():
        _line(figures.label(name), f"{choice['value']} ({choice['why']})")
    if (both := runs.forecast_and_outcome(run["id"])) is not None:
        forecast, outcome = both
        say("", "Forecast and outcome" + (", measured before Start" if forecast.get("probed") else ""))
        table(figures.COMPARED, figures.compared(forecast, outcome), numbers=(1, 2, 3))
    return 0


def _line(name: str, text: str) -> None:
    entry(name, text, gutter=20)
