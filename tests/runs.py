"""Helpers that make short real runs on the starter model."""

from typing import Any

from plumbline.config import schema
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.store import datasets, runs
from plumbline.worker.worker import work_on


def recipe(**sections: dict[str, Any]) -> schema.RunConfig:
    """The starter recipe, cut down to seconds: few rows, few steps; ``sections`` override it."""
    raw = schema.preset("starter").model_dump()
    short: dict[str, dict[str, Any]] = {
        "data": {"max_rows": 32},
        "training": {"max_steps": 4, "eval_steps": 2, "save_steps": 2},
        "evaluation": {"max_rows": 8, "batch": 8, "max_new_tokens": 12},
    }
    for part in (short, sections):
        for section, values in part.items():
            raw[section] = {**raw[section], **values}
    return schema.validated(raw)


def add(config: schema.RunConfig) -> int:
    return runs.add(config, datasets.by_name(config.data.dataset)["id"])


def do(kind: Any, run_id: int, **payload: Any) -> dict[str, Any]:
    """Queue a job, work on it here and now, and return it as it ended."""
    job_id = queue.enqueue(kind, run_id, **payload)
    work_on(Job(queue.get(job_id)))
    return queue.get(job_id)
