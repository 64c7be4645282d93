"""Delete the run that is shown, in two steps: what would go, then the button that does it."""

from typing import Any

import gradio as gr

from plumbline.jobs import queue
from plumbline.runs import delete as removal
from plumbline.store import runs
from plumbline_studio.held import Held
from plumbline_studio.live import Page, View
from plumbline_studio.messages import box, error_box, guarded


def build(page: Page, delete: gr.Button) -> None:
    """:param delete: the button that asks"""
    asked = Held()
    with gr.Column(visible=False, elem_id="delete-panel") as panel:
        text = gr.HTML()
        with gr.Row():
            sure = gr.Button(
                "Yes, delete it", variant="stop", size="sm", scale=0, min_width=160, elem_id="sure"
            )
            keep = gr.Button("Keep it", size="sm", scale=0, min_width=160)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def ask(run_id: int | None) -> list[Any]:
        if run_id is None:
            return [gr.skip(), gr.skip(), gr.skip(), None]
        told = box("warning", removal.contents(run_id).sentence)
        return [gr.Column(visible=True), told, gr.Button(f"Yes, delete run {run_id}"), run_id]

    def remove(run_id: int | None, wanted: int | None) -> list[Any]:
        """Only the run that was asked about, and only while it is the one that is shown."""
        if run_id is None or run_id != wanted:
            return [gr.skip(), gr.Column(visible=False), "", None]
        try:
            removal.remove(run_id)
        except Exception as error:
            return [gr.skip(), gr.skip(), error_box(error), wanted]
        gr.Info(f"Run {run_id} was deleted.")
        newest = next((row["id"] for row in runs.listed(1)), None)
        return [newest, gr.Column(visible=False), "", None]

    delete.click(guarded(ask), page.run, [panel, text, sure, asked], **quiet)
    keep.click(lambda: [gr.Column(visible=False), None], None, [panel, asked], queue=False, **quiet)
    page.actions.append(sure.click(remove, [page.run, asked], [page.run, panel, text, asked], **quiet))
    page.views.append(View([panel, delete], _signature, _shown))


def _signature(run_id: int | None) -> Any:
    job = None if run_id is None else queue.latest(run_id, "train")
    return run_id, job and job["state"]


def _shown(run_id: int | None) -> list[Any]:
    """Another run, or another state of it: the question is taken back."""
    _, state = _signature(run_id)
    may = run_id is not None and (state is None or state in queue.ENDED)
    text = "Delete" if may or run_id is None else "Delete (stop it first)"
    return [gr.Column(visible=False), gr.Button(text, interactive=may)]
