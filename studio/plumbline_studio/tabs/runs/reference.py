"""Check a run against TRL: the button, how far the check is, and what it has found."""

from typing import Any

import gradio as gr

from plumbline.jobs import queue
from plumbline.training import against_trl
from plumbline_studio.live import Page, View
from plumbline_studio.messages import box, guarded
from plumbline_studio.tabs.jobs import progress


def build(page: Page, button: gr.Button) -> None:
    shown = gr.HTML(elem_id="against-trl")
    click = button.click(guarded(_start), page.run, None, show_progress="hidden", api_visibility="private")
    page.actions.append(click)
    page.views.append(View([shown, button], _state, _result))


def _start(run_id: int | None) -> None:
    if run_id is not None:
        against_trl.start(run_id)


def _job(run_id: int | None) -> dict[str, Any] | None:
    return None if run_id is None else queue.latest(run_id, against_trl.KIND)


def _state(run_id: int | None) -> Any:
    job = _job(run_id)
    return run_id, job and [job[key] for key in ("id", "state", "phase", "progress")]


def _result(run_id: int | None) -> list[Any]:
    job = _job(run_id)
    waits = job is not None and job["state"] not in queue.ENDED
    button = gr.Button(interactive=run_id is not None and not waits)
    if job is None or job["state"] != "completed":
        return [progress(job, "The check against TRL"), button]
    result = job["result"]
    return [box("good" if result["agrees"] else "bad", against_trl.sentence(result)), button]
