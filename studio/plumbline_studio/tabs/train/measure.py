"""Measuring a recipe before Start: the button, its progress, and how it ended."""

from typing import Any

import gradio as gr

from plumbline.config.schema import RunConfig
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.jobs.job_names import recipe_name, subject
from plumbline.store import probes
from plumbline.worker import measure
from plumbline_studio.messages import bar, box, escape

TEXT = "Measure it (about 20 s)"


def start(config: RunConfig, token: str) -> None:
    """:raises StudioError: while another job waits or is worked on: it would be measured too"""
    job = _busy()
    if job is not None and not queue.with_token(token):
        raise StudioError("Measuring", f"would wait behind {subject(job)}", "Measure when that has ended.")
    measure.start(config, token)


def stop() -> None:
    job = _unfinished()
    if job is not None:
        queue.stop(job["id"])


def button(may: bool) -> Any:
    """:param may: whether the recipe can be measured"""
    job = _busy()
    if job is None:
        return gr.Button(TEXT, interactive=may)
    text = "Measuring…" if job["kind"] == "probe" else "Measure when the job has ended"
    return gr.Button(text, interactive=False)


def signature() -> Any:
    job = _unfinished()
    return job and (job["id"], job["state"], job["phase"], round(job["progress"] or 0, 2))


def shown() -> list[Any]:
    """How far a measurement is, and the button that ends it while there is one."""
    job = _unfinished()
    if job is None:
        return [gr.HTML(visible=False), gr.Button(visible=False)]
    text = f"Measuring {recipe_name(job)}: {job['phase'] or job['state']}"
    stopping = job["state"] == "stopping"
    label = "Stopping…" if stopping else "Stop measuring"
    card = f'<div class="pl-card" role="status">{escape(text)}{bar(job["progress"] or 0)}</div>'
    return [gr.HTML(card, visible=True), gr.Button(label, visible=True, interactive=not stopping)]


def moved() -> str:
    """Changes when a job starts or ends, and so what the page may do and knows."""
    job, newest = queue.active(), queue.latest_probe()
    return repr((job and job["id"], queue.waiting(), newest and (newest["id"], newest["state"])))


def failure(config: RunConfig) -> str:
    """Why the newest measurement brought nothing, when it was of this very recipe."""
    job = queue.latest_probe()
    if job is None or job["payload"]["key"] != probes.key(config):
        return ""
    if job["state"] == "stopped":
        return box("warning", "Measuring was stopped.")
    if job["state"] in ("failed", "interrupted"):
        return box("bad", f"Measuring brought nothing: {job['error']}")
    return ""


def _unfinished() -> dict[str, Any] | None:
    job = queue.latest_probe()
    return None if job is None or job["state"] in queue.ENDED else job


def _busy() -> dict[str, Any] | None:
    """The job that is worked on, or else the first that waits."""
    return queue.active() or queue.next_queued()
