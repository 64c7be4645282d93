"""What a job is called, in words for people."""

from typing import Any

from core.store import datasets

_NAMES = {"evaluate": "the evaluation", "merge": "the merge", "adapter": "the export"}


def subject(job: dict[str, Any]) -> str:
    """``run 3``, ``the merge of run 3``, or ``the check of my-data``."""
    if job["kind"] == "check":
        return f"the check of {dataset_name(job)}"
    run = f"run {job['run_id']}"
    return run if job["kind"] == "train" else f"{_NAMES[job['kind']]} of {run}"


def dataset_name(job: dict[str, Any]) -> str:
    """The name of the dataset that a check belongs to."""
    found = (row["name"] for row in datasets.listed() if row["id"] == job["dataset_id"])
    return next(found, "a deleted dataset")
