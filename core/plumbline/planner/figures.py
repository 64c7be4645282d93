"""A forecast, and how it came out, as labels and texts; the page and the terminal show the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.planner.forecast import Forecast

COMPARED = ("", "forecast", "outcome", "error")
# What the time between Start and the end is made of.
PARTS = {
    "loading": "loading the base",
    "base": "measuring the base",
    "steps": "steps",
    "evaluations": "evaluations",
    "saving": "saving",
}


def of_forecast(forecast: Forecast) -> list[tuple[str, str]]:
    """What a run would take; its plan says why."""
    about = "" if forecast.probed else "about "
    rows = [
        ("Memory", f"{gib(forecast.peak_gib)} of {gib(forecast.free_gib)} GiB"),
        ("Time", f"{about}{duration(forecast.total_seconds)} ({seconds(forecast.seconds_per_step)} a step)"),
        ("Disk", f"{gib(forecast.disk_gib)} GiB"),
    ]
    if forecast.parts:
        times = [
            f"{name} {duration(forecast.parts[key])}"
            for key, name in PARTS.items()
            if forecast.parts[key] >= 1
        ]
        rows.insert(2, ("· of which", ", ".join(times)))
    return rows if forecast.cost is None else [*rows, ("Cost", f"{about}{forecast.cost:,.2f}")]


def label(name: str) -> str:
    """The name of a choice as a line begins with it; ``CPU`` stays."""
    return f"{name[:1].upper()}{name[1:]}"


def compared(forecast: dict[str, Any], outcome: dict[str, Any]) -> list[list[str]]:
    """Rows under `COMPARED`; the error is the forecast's, in percent of the outcome.

    :param forecast: a forecast's fields
    :param outcome: the same names, as measured; what is missing was not measured
    """
    expected = {name: forecast.get(name) for name, *_ in _COMPARED}
    measured = {name: outcome.get(name) for name, *_ in _COMPARED}
    rows: list[list[Any]] = [[label, expected[name], measured[name], form] for name, label, form in _COMPARED]
    rows[2:3] = _times(forecast, outcome)
    return [
        [label, *("-" if value is None else form(value) for value in (before, after)), _error(before, after)]
        for label, before, after, form in rows
    ]


def _times(forecast: dict[str, Any], outcome: dict[str, Any]) -> list[list[Any]]:
    """The total time and its parts: of the steps that were made, where a run ended before its last."""
    before, after = forecast.get("parts"), outcome.get("parts")
    if not before or not after:  # of an earlier version, which knew the steps' time alone; or not measured
        steps = after["steps"] if after else outcome.get("total_seconds")
        return [
            [
                "Time of the steps",
                before["steps"] if before else forecast.get("total_seconds"),
                steps,
                duration,
            ]
        ]
    made, planned = outcome["steps"], forecast["steps"]
    share = min(1.0, made / max(1, planned))
    lasting = {name: before[name] * (1.0 if name in ("loading", "base") else share) for name in PARTS}
    label = "Total time" if share == 1 else f"Total time, {made:,} of {planned:,} steps"
    rows = [[label, sum(lasting.values()), sum(after.values()), duration]]
    return rows + [[f"· {text}", lasting[name], after[name], seconds] for name, text in PARTS.items()]


def _error(expected: float | None, measured: float | None) -> str:
    if expected is None or not measured:
        return "-"
    percent = round(100 * (expected - measured) / measured)
    return f"{percent:+d} %" if percent else "0 %"


def perplexity(loss: float) -> float:
    """exp of a loss in nats per token; infinite past the largest number.

    :param loss: a mean negative log-likelihood; other losses have no perplexity
    """
    return math.exp(loss) if loss < 700 else math.inf


def gib(value: float) -> str:
    """A figure in GiB without its unit: two digits below 1, one after the point above."""
    return f"{value:.1f}" if value >= 0.95 or value < 0.005 else f"{value:.2f}"


def seconds(value: float) -> str:
    """The length of a step: about two digits."""
    if value >= 9.95:
        return duration(value)
    return f"{value:.1f} s" if value >= 0.95 else f"{value:.2g} s"


def duration(value: float | None) -> str:
    """Seconds as ``45 s``, ``12 min`` or ``3.5 h``."""
    if value is None:
        return "-"
    if value < 90:
        return f"{value:.0f} s"
    if value < 5400:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


_COMPARED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("peak_gib", "Peak memory", lambda value: f"{gib(value)} GiB"),
    ("seconds_per_step", "Time a step", seconds),
    ("total_seconds", "Total time", duration),
    ("disk_gib", "Disk", lambda value: f"{gib(value)} GiB"),
)
