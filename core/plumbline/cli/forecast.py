"""``plumbline forecast``: what a recipe would take."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plumbline.cli import settings
from plumbline.cli.parser import json_option
from plumbline.cli.terminal import entry, say, say_json, watch
from plumbline.config import schema
from plumbline.distributed.launch_commands import commands
from plumbline.planner import figures

MARKS = {"good": "ok", "warning": "note", "bad": "STOP"}


def add_verbs(verbs: Any) -> None:
    parser = verbs.add_parser("forecast", help="what a recipe would take: memory, time, disk, cost, and why")
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a recipe file, or the name of a preset")
    parser.add_argument(
        "--probe", action="store_true", help="measure it first: two steps at the worst length, about 20 s"
    )
    parser.add_argument("--price", metavar="X", help="what the machine costs an hour, in any currency")
    json_option(parser)
    settings.add_flags(parser)
    parser.set_defaults(do=forecast, samples=True)


def forecast(arguments: argparse.Namespace) -> int:
    """:returns: 1 when the run could not be started, or its measurement failed"""
    from plumbline.planner.overview import outlook
    from plumbline.worker import measure

    recipe = settings.recipe(arguments)
    if arguments.price is not None:
        raw = recipe.model_dump()
        raw["training"]["price_per_hour"] = arguments.price
        recipe = schema.validated(raw, "--price")
    if arguments.probe and watch(measure.start(recipe))["state"] != "completed":
        return 1
    found = outlook(recipe)
    machines: list[str] = []
    if recipe.machines.num_machines > 1:
        given = [f"--{key}={text}" for key, text in settings.given(arguments).items()]
        machines = commands(recipe, ["train", str(arguments.recipe), *given])
    if arguments.json:
        say_json(
            {
                "name": recipe.display_name,
                "may_start": not found.blocked,
                "figures": dict(found.figures),
                "forecast": found.forecast and _as_json(found.forecast),
                "decisions": {name: choice._asdict() for name, choice in found.decisions.items()},
                "checks": [asdict(check) for check in found.checks],
                "commands": machines,
            }
        )
        return 1 if found.blocked else 0
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
    if machines:
        say("", "The command of each machine; the first does the job", *machines)
    return 1 if found.blocked else 0


def _as_json(found: Any) -> dict[str, Any]:
    """The forecast's figures, in seconds, GiB and the price's currency; its choices stand apart."""
    figures = json.loads(found.to_json())
    return {name: value for name, value in figures.items() if name != "plan"}


def _line(name: str, text: str) -> None:
    entry(name, text, gutter=20)
