"""Wait for a job, and raise what ended it."""

from plumbline.errors import StudioError
from plumbline.jobs.job_names import dataset_name, recipe_name
from plumbline.store.records import JobRow
from plumbline.worker.wait import until_ended


def finish(job_id: int) -> JobRow:
    """The job as it completed. :raises StudioError: when it ended otherwise, with its reason"""
    job = until_ended(job_id)
    if job["state"] != "completed":
        raise StudioError(f"{job['kind']} of {_owner(job)}", job["error"] or f"was {job['state']}")
    return job


def _owner(job: JobRow) -> str:
    if job["kind"] == "check":
        return dataset_name(job)
    return recipe_name(job) if job["kind"] == "probe" else f"run {job['run_id']}"
