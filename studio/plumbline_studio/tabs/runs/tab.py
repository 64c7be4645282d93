"""Runs: watch the chosen run, stop, resume or delete it, let others come from it, and pick another."""

import json
import time
from typing import Any

import gradio as gr

from plumbline.checkpoints.summary import verdicts
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.planner.figures import COMPARED, compared, duration
from plumbline.runs.lineage import agreement, origin
from plumbline.store import runs
from plumbline_studio import plots
from plumbline_studio.live import Page, View
from plumbline_studio.messages import bar, box, empty, escape, facts, figures, guarded, table
from plumbline_studio.tabs.runs import delete as deleting
from plumbline_studio.tabs.runs import lineage, reference

COLUMNS = ["run", "name", "from", "state", "step", "base", "held-out loss", "best", "time"]


def build(page: Page) -> None:
    head = gr.HTML(empty("No run yet. Press Start on the Train tab."), elem_id="run-head")
    with gr.Row(elem_classes=["pl-actions", "pl-stacked"]):
        stop = gr.Button(
            "Stop", variant="stop", size="sm", interactive=False, elem_id="stop", scale=0, min_width=160
        )
        resume = gr.Button("Resume", size="sm", interactive=False, elem_id="resume", scale=0, min_width=160)
        delete = gr.Button("Delete", size="sm", interactive=False, elem_id="delete", scale=0, min_width=160)
        check = gr.Button(
            "Check against TRL", size="sm", interactive=False, elem_id="check-trl", scale=0, min_width=180
        )
        paused = gr.Checkbox(
            False,
            label="Pause live updates (keeps your zoom)",
            container=False,
            scale=1,
            elem_id="paused",
        )
    deleting.build(page, delete)
    reference.build(page, check)
    lineage.smaller(page)
    lineage.build(page)
    with gr.Row():
        loss = gr.Plot(show_label=False, visible=False, elem_id="loss-plot")
        perplexity = gr.Plot(show_label=False, visible=False, elem_id="perplexity-plot")
    with gr.Accordion("Learning rate, gradient, speed, memory", open=False):
        with gr.Row():
            rate = gr.Plot(show_label=False)
            gradient = gr.Plot(show_label=False)
        with gr.Row():
            speed = gr.Plot(show_label=False)
            memory = gr.Plot(show_label=False)
        points = gr.HTML()
    forecast = gr.HTML(visible=False, elem_id="forecast-outcome")
    with gr.Row(elem_classes="pl-stacked"):
        with gr.Accordion("Log", open=True):
            log = gr.HTML()
        with gr.Accordion("Recipe and decisions", open=False):
            decisions = gr.HTML()
            recipe = gr.Code(language="yaml", interactive=False, show_label=False)
    gr.Markdown("#### All runs")
    listing = gr.Dataframe(
        headers=COLUMNS,
        interactive=False,
        show_search="filter",
        column_widths=["6%", "20%", "13%", "13%", "10%", "11%", "9%", "9%", "9%"],
        wrap=True,
        elem_id="runs-table",
        show_label=False,
    )
    page.paused = paused
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def choose(event: gr.SelectData) -> Any:
        return int(event.row_value[0])

    listing.select(choose, None, page.run, concurrency_limit=None, **quiet)
    page.actions.append(stop.click(guarded(_stop), page.run, None, **quiet))
    page.actions.append(resume.click(guarded(_resume), page.run, None, **quiet))

    page.views += [
        View([head], _state, lambda run_id: [_head(run_id)]),
        View([stop, resume], _buttons_state, _buttons),
        View([loss, perplexity], _drawn, _main_figures, pausable=True),
        View([rate, gradient, speed, memory, points], _drawn, _small_figures, pausable=True),
        View([forecast], _expected, lambda run_id: [_forecast(run_id)]),
        View([log], lambda run_id: [e["id"] for e in _events(run_id)], lambda run_id: [_log(run_id)]),
        View([decisions, recipe], lambda run_id: run_id and (run_id, runs.decisions(run_id)), _recipe),
        View([listing], _listing, lambda run_id: [_listing(run_id)]),
    ]


def _stop(run_id: int | None) -> None:
    if run_id is not None:
        queue.stop_run(run_id)


def _resume(run_id: int | None) -> None:
    if run_id is not None:
        queue.resume_run(run_id)


def _buttons_state(run_id: int | None) -> Any:
    return None if run_id is None else runs.get(run_id)["state"]


def _buttons(run_id: int | None) -> list[Any]:
    state = _buttons_state(run_id)
    stoppable = state in ("queued", "preparing", "running")
    return [
        gr.Button("Stopping…" if state == "stopping" else "Stop and save", interactive=stoppable),
        gr.Button("Resume", interactive=state in ("stopped", "interrupted", "failed")),
    ]


def _state(run_id: int | None) -> Any:
    if run_id is None:
        return None
    run = runs.get(run_id)
    shown = [run[key] for key in ("id", "state", "phase", "step", "eval_loss", "error")]
    return shown, run["parent"] is not None and runs.exists(run["parent"])


def _head(run_id: int | None) -> str:
    if run_id is None:
        return empty("No run yet. Press Start on the Train tab.")
    run = runs.get(run_id)
    share = (run["step"] or 0) / (run["total_steps"] or 1)
    ended = run["state"] in queue.ENDED
    rows = [
        ("State", run["state"] if ended or not run["phase"] else f"{run['state']}: {run['phase']}"),
        ("Step", f"{run['step'] or 0} of {run['total_steps'] or '?'}"),
        ("Held-out loss", _loss_text(run)),
        ("Time left", "-" if ended else duration(run["seconds_left"])),
    ]
    named = " · ".join(filter(None, (f"run {run['id']}", _origin(run))))
    text = f'<div class="pl-card"><h3>{escape(run["name"])} <span class="pl-muted">{named}</span></h3>'
    text += bar(share) + facts(rows)
    if run["error"]:
        text += box("bad", run["error"])
    if run["summary"]:
        text += "".join(box("warning", told) for told in verdicts(json.loads(run["summary"])))
    if run["relation"] == "reproduction" and run["state"] == "completed":
        text += _agreement(run)
    return text + "</div>"


def _origin(run: dict[str, Any]) -> str:
    """Where a run comes from; empty when it begins with nothing. Of a stage, the rank before too."""
    text = origin(run, runs.numbers())
    if run["relation"] == "rank" and runs.exists(run["parent"]):
        return f"{text} (rank {runs.recipe(run['parent']).lora.r})"
    return text


def _agreement(run: dict[str, Any]) -> str:
    """Whether the curve of a reproduction is that of the run that it trained again."""
    try:
        found = agreement(run["id"])
    except StudioError:
        return box("warning", f"Run {run['parent']} was deleted: there is no curve to compare with.")
    return box("good" if found.agrees else "warning", found.sentence)


def _loss_text(run: dict[str, Any]) -> str:
    if run["eval_loss"] is None:
        return "-"
    base = "" if run["base_eval_loss"] is None else f", base {run['base_eval_loss']:.3f}"
    return f"{run['eval_loss']:.3f}{base}"


def _drawn(run_id: int | None) -> Any:
    return None if run_id is None else (run_id, runs.measured(run_id))


def _main_figures(run_id: int | None) -> list[Any]:
    points = [] if run_id is None else runs.metrics(run_id)
    if run_id is None or not points:
        return [gr.Plot(visible=False), gr.Plot(visible=False)]
    run = runs.get(run_id)
    method = runs.recipe(run_id).method
    if method.is_likelihood:
        beside = plots.perplexity(points, run["base_eval_loss"])
    else:
        beside = plots.rewards(points)
    return [
        gr.Plot(plots.loss(points, run["best_step"], of=method.loss_is), visible=True),
        gr.Plot(beside, visible=True),
    ]


def _small_figures(run_id: int | None) -> list[Any]:
    points = [] if run_id is None else runs.metrics(run_id)
    if not points:
        return [None, None, None, None, ""]
    return [
        plots.small(points, "learning_rate", "learning rate"),
        plots.small(points, "grad_norm", "gradient norm"),
        plots.small(points, "tokens_per_second", "tokens per second"),
        plots.small(points, "memory_gb", "memory (GiB)"),
        _points_table(points),
    ]


def _points_table(points: list[dict[str, Any]]) -> str:
    """The charts' numbers, for those who cannot see them: every held-out point."""
    rows = [
        [str(p["step"]), f"{p['eval_loss']:.4f}", "-" if p["loss"] is None else f"{p['loss']:.4f}"]
        for p in points
        if p["eval_loss"] is not None
    ]
    return table(["step", "held-out loss", "train loss"], rows)


def _expected(run_id: int | None) -> Any:
    return None if run_id is None else runs.forecast_and_outcome(run_id)


def _forecast(run_id: int | None) -> Any:
    """What the run was expected to take beside what it took, once both are known."""
    found = _expected(run_id)
    if found is None:
        return gr.HTML(visible=False)
    expected, outcome = found
    how = "measured before Start" if expected.get("probed") else "not measured before Start"
    card = (
        f'<div class="pl-card pl-narrow"><h3>Forecast and outcome <span class="pl-muted">{how}</span></h3>'
        f"{table(list(COMPARED), compared(expected, outcome))}</div>"
    )
    return gr.HTML(card, visible=True)


def _events(run_id: int | None) -> list[dict[str, Any]]:
    return [] if run_id is None else runs.events(run_id)


def _log(run_id: int | None) -> str:
    events = _events(run_id)
    if not events:
        return empty("Nothing has happened yet.")
    lines = (
        f"{time.strftime('%H:%M:%S', time.localtime(e['created_at']))}  {escape(e['text'])}" for e in events
    )
    return '<div class="pl-log">' + "\n".join(lines) + "</div>"


def _recipe(run_id: int | None) -> list[Any]:
    if run_id is None:
        return ["", ""]
    rows = [(name, f"{choice['value']}: {choice['why']}") for name, choice in runs.decisions(run_id).items()]
    return [figures(rows), runs.get(run_id)["recipe"]]


def _listing(run_id: int | None) -> list[list[Any]]:
    known = runs.numbers()
    return [
        [
            run["id"],
            run["name"],
            origin(run, known) or "-",
            run["state"],
            f"{run['step'] or 0} / {run['total_steps'] or '?'}",
            run["base"],
            "-" if run["eval_loss"] is None else f"{run['eval_loss']:.3f}",
            "-" if run["best_eval_loss"] is None else f"{run['best_eval_loss']:.3f}",
            duration(run["finished_at"] - run["started_at"])
            if run["finished_at"] and run["started_at"]
            else "-",
        ]
        for run in runs.listed(200)
    ]
