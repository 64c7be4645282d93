"""What a job is called, in words for people."""

import json

from plumbline.store import datasets
from plumbline.store.records import JobRow

_NAMES = {
    "evaluate": "the evaluation",
    "merge": "the merge",
    "adapter": "the export",
    "reference": "the check against TRL",
}


def subject(job: JobRow) -> str:
    """``run 3``, ``the merge of run 3``, ``the check of my-data`` or ``the measurement of my-data-r16``."""
    if job["kind"] == "check":
        return f"the check of {dataset_name(job)}"
    if job["kind"] == "probe":
        return f"the measurement of {recipe_name(job)}"
    run = f"run {job['run_id']}"
    return run if job["kind"] == "train" else f"{_NAMES[job['kind']]} of {run}"


def dataset_name(job: JobRow) -> str:
    """The name of the dataset that a check belongs to."""
    names = (row["name"] for row in datasets.listed() if row["id"] == job["dataset_id"])
    return next(names, "a deleted dataset")


def recipe_name(job: JobRow) -> str:
    """The name of the recipe that a probe measures. :param job: as the queue gives it, or as it is stored"""
    payload = job["payload"]
    return (json.loads(payload) if isinstance(payload, str) else payload)["name"]
