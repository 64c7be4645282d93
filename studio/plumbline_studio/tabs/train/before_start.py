"""The "Before you start" panel: what would be learned, what it would take, what was chosen, what is wrong."""

from plumbline.config.schema import RunConfig
from plumbline.distributed.launch_commands import commands
from plumbline.models.hardware import Choice
from plumbline.planner.figures import label, of_forecast
from plumbline.planner.overview import Outlook
from plumbline_studio.messages import MARKS, escape
from plumbline_studio.messages import figures as listed


def panel(inside: str) -> str:
    return f'<div class="pl-card"><h3>Before you start</h3>{inside}</div>'


def inside(found: Outlook) -> str:
    checks = "".join(
        f'<p class="pl-check pl-{check.level}">{MARKS[check.level]} {escape(check.text)}</p>'
        for check in found.checks
    )
    parts = [listed(found.figures)]
    if found.forecast is not None:
        how = "measured here" if found.forecast.probed else "forecast"
        parts += [_heading("What it takes", how), listed(of_forecast(found.forecast))]
    parts += [_heading("How it is done"), _reasons(found.decisions)]
    return "".join(parts) + checks


def machines(config: RunConfig) -> str:
    """What each of several machines is to be told; empty for one, where nothing is."""
    if config.machines.num_machines == 1:
        return ""
    _, *others = commands(config, ["train", "recipe.yaml"])
    told = "".join(
        f'<div class="pl-muted">Machine {number}</div>'
        f'<code class="pl-command" tabindex="0">{_words(command)}</code>'
        for number, command in enumerate(others, start=2)
    )
    return (
        _heading("On each machine", "one click selects a command")
        + '<p class="pl-check">Machine 1 is this one: press Start. It gives the others recipe and rows; they '
        "need Plumbline and the base model. Begin them all within ten minutes.</p>"
        + f'<div class="pl-commands">{told}</div>'
    )


def _words(command: str) -> str:
    """A command that is folded between its words alone, and not behind the dashes of an option."""
    return " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))


def _heading(title: str, remark: str = "") -> str:
    return f'<h4>{escape(title)} <span class="pl-muted">{escape(remark)}</span></h4>'


def _reasons(decisions: dict[str, Choice]) -> str:
    cells = "".join(
        f"<dt>{escape(label(name))}</dt>"
        f'<dd>{escape(choice.value)}: <span class="pl-muted">{escape(choice.why)}</span></dd>'
        for name, choice in decisions.items()
    )
    return f'<dl class="pl-figures pl-reasons">{cells}</dl>'
