"""The job that looks for near-duplicates, as the Warnings pane starts, shows and ends it."""

from typing import Any

import gradio as gr

from plumbline.jobs import queue
from plumbline.store import datasets as store
from plumbline.worker import near_duplicates
from plumbline_studio.messages import box, error_box


def start(dataset_id: int | None) -> list[Any]:
    if all(one["id"] != dataset_id for one in store.listed()):
        return [box("warning", "Choose a dataset first."), gr.skip()]
    try:
        near_duplicates.start(dataset_id)
    except Exception as error:
        return [error_box(error), gr.skip()]
    return state()


def signature() -> Any:
    job = queue.latest_check()
    return job and (job["id"], job["state"], job["phase"], round(job["progress"] or 0, 2))


def text() -> str:
    """How the newest look for near-duplicates stands."""
    job = queue.latest_check()
    if job is None:
        return ""
    dataset = next((one for one in store.listed() if one["id"] == job["dataset_id"]), None)
    if dataset is None:
        return ""  # it was deleted since
    name = dataset["name"]
    if job["state"] == "completed":
        found = next((one["text"] for one in store.findings(dataset) if one["kind"] == "near"), "")
        return box("good", f"{name}: {found or 'no row nearly repeats another'}.")
    if job["state"] == "failed":
        return box("bad", f"{name}: {job['error']}")
    if job["state"] in queue.ENDED:
        return box("warning", f"{name}: the look for near-duplicates was {job['state']}")
    phase = job["phase"] or job["state"]
    return box("warning", f"{name}: looking for near-duplicates, {phase} ({job['progress'] or 0:.0%})")


def state() -> list[Any]:
    """How the look stands, and the button that ends it while there is one."""
    job = queue.latest_check()
    running = job is not None and job["state"] not in queue.ENDED
    return [text(), gr.Button(visible=running)]


def stop() -> list[Any]:
    job = queue.latest_check()
    if job is not None:
        queue.stop(job["id"])
    return state()
