"""Evaluate: base against adapter on the held-out rows, in words, in figures, row by row."""

from typing import Any

import gradio as gr

from core.errors import StudioError
from core.evaluation.compare import refuse_without_adapter, sentence
from core.jobs import queue
from core.store import evaluations, runs
from studio.live import Page, View
from studio.messages import empty, escape, guarded, table
from studio.tabs.jobs import progress

FORMS = (
    ("exact_match", "exact match", "{:.1%}"),
    ("token_f1", "token F1", "{:.3f}"),
    ("loss", "held-out loss (nats per token)", "{:.4f}"),
    ("perplexity", "held-out perplexity", "{:.3f}"),
)


def build(page: Page) -> None:
    with gr.Row():
        button = gr.Button("Evaluate", variant="primary", interactive=False, elem_id="evaluate", scale=1)
        status = gr.HTML(elem_id="evaluate-status")
    result = gr.HTML(empty("Nothing evaluated yet."), elem_id="evaluate-result")
    rows = gr.Dataframe(
        headers=["asks", "reference", "base", "adapter", "base right", "adapter right"],
        interactive=False,
        wrap=True,
        max_chars=200,
        show_search="search",
        show_label=False,
        max_height=480,
        elem_id="evaluate-rows",
        column_widths=["31%", "18%", "18%", "18%", "7%", "8%"],
    )
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    page.actions.append(button.click(guarded(_start), page.run, None, **quiet))
    page.views += [
        View([button], _may, lambda run_id: [_button(run_id)]),
        View([status], _job, lambda run_id: [progress(_job(run_id), "Evaluation")]),
        View([result, rows], _latest_id, lambda run_id: _result(run_id)),
    ]


def _start(run_id: int | None) -> None:
    if run_id is None:
        return
    refuse_without_adapter(run_id)
    queue.enqueue_once("evaluate", run_id)


def _job(run_id: int | None) -> dict[str, Any] | None:
    return None if run_id is None else queue.latest(run_id, "evaluate")


def _may(run_id: int | None) -> tuple[str, bool]:
    if run_id is None:
        return "Train a run first", False
    try:
        refuse_without_adapter(run_id)
    except StudioError:
        return "Its adapter is not ready yet", False
    job = _job(run_id)
    if job is not None and job["state"] not in queue.ENDED:
        return "Evaluating…", False
    return f"Evaluate {runs.get(run_id)['name']}", True


def _button(run_id: int | None) -> Any:
    text, may = _may(run_id)
    return gr.Button(text, interactive=may)


def _latest_id(run_id: int | None) -> Any:
    found = None if run_id is None else evaluations.latest(run_id)
    return (run_id, found and found["id"])


def _result(run_id: int | None) -> list[Any]:
    found = None if run_id is None else evaluations.latest(run_id)
    if found is None:
        text = "Nothing evaluated yet. " + ("Press Evaluate." if run_id is not None else "Train a run first.")
        return [empty(text), []]
    base, adapter = found["result"]["base"], found["result"]["adapter"]
    figures = [
        [label, form.format(base[key]), form.format(adapter[key])]
        for key, label, form in FORMS
        if key in base
    ]
    # Evaluations of earlier versions did not count them.
    cut = {side: set(found["result"][side].get("cut", [])) for side in ("base", "adapter")}
    if any(cut.values()):
        figures.append(
            ["answers cut at the longest answer", *(str(len(cut[side])) for side in ("base", "adapter"))]
        )
    heading = f"{found['rows']} held-out rows"
    html = (
        f'<div class="pl-card"><h3>{escape(sentence(found["result"]))}</h3>'
        f"{table([heading, 'base', 'adapter'], figures)}"
        '<p class="pl-muted">In brackets above: 95 % interval, paired bootstrap over rows.</p></div>'
    )
    answers = [
        [
            row["prompt"],
            row["reference"],
            row["base_answer"],
            row["adapter_answer"],
            *(_right(row, side, cut[side]) for side in ("base", "adapter")),
        ]
        for row in evaluations.answers(found["id"])
    ]
    return [html, answers]


def _right(row: dict[str, Any], side: str, cut: set[int]) -> str:
    """:param cut: rows whose answer was ended by the limit of tokens"""
    return ("yes" if row[f"{side}_score"] else "no") + (" (cut)" if row["row"] in cut else "")
