"""Evaluate: base against adapter on the held-out rows, in words, in figures, row by row."""

from typing import Any

import gradio as gr

from plumbline.errors import StudioError
from plumbline.evaluation import report
from plumbline.evaluation.compare import refuse_without_adapter, rows_wanted, sentence, tells_apart
from plumbline.jobs import queue
from plumbline.store import evaluations, runs
from plumbline_studio.live import Page, View
from plumbline_studio.messages import empty, escape, folded, guarded, table
from plumbline_studio.tabs.jobs import progress


def build(page: Page) -> None:
    with gr.Row():
        button = gr.Button("Evaluate", variant="primary", interactive=False, elem_id="evaluate", scale=1)
        limit = gr.Textbox(
            label="Rows",
            placeholder="as in the recipe",
            info="Held-out rows to answer, a sample that stands for all; a number, or all",
            elem_id="evaluate-limit",
            scale=1,
        )
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
    page.actions.append(button.click(guarded(_start), [page.run, limit], None, **quiet))
    page.views += [
        View([button], _may, lambda run_id: [_button(run_id)]),
        View([status], _job, lambda run_id: [progress(_job(run_id), "Evaluation")]),
        View([result, rows], _latest_id, lambda run_id: _result(run_id)),
    ]


def _start(run_id: int | None, limit: str) -> None:
    if run_id is None:
        return
    refuse_without_adapter(run_id)
    queue.enqueue_once("evaluate", run_id, rows=rows_wanted(limit))


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
    result = found["result"]
    notes = report.notes(result)
    if tells_apart(result):
        notes = ["In brackets above: 95 % interval, paired bootstrap over rows.", *notes]
    recall = report.recall(result)
    html = (
        f'<div class="pl-card"><h3>{escape(sentence(result))}</h3>'
        f"{table([report.rows_of(result), 'base', 'adapter'], report.figures(result))}"
        + "".join(f'<p class="pl-muted">{escape(note)}</p>' for note in notes)
        + (
            folded(f"Recall of {len(recall)} labels", table(["label", "rows", *report.SIDES], recall))
            if recall
            else ""
        )
        + "</div>"
    )
    cut = {side: set(result[side].get("cut", [])) for side in report.SIDES}
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
