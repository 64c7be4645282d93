"""How any job's progress looks: words, a bar, and what went wrong."""

from typing import Any

from plumbline_studio.messages import bar, box, escape


def progress(job: dict[str, Any] | None, name: str) -> str:
    """:param job: a job of the queue, or None when there was none yet"""
    if job is None or job["state"] == "completed":
        return ""
    if job["state"] in ("failed", "interrupted"):
        return box("bad", f"{name}: {job['error'] or job['state']}")
    if job["state"] == "stopped":
        return box("warning", f"{name} was stopped.")
    return f'<div class="pl-card">{escape(job["phase"] or job["state"])}{bar(job["progress"] or 0)}</div>'
