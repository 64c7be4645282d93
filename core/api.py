"""Plumbline from Python: each function does one job and returns when it has ended.

from core import api, config
run = api.train(config.preset("starter"))
print(api.evaluate(run)["adapter"]["perplexity"])
print(api.merge(run))
"""

from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.data import datasets, importing
from core.data.files import Source
from core.data.importing import Options
from core.errors import StudioError
from core.home import export_folder
from core.jobs import queue
from core.jobs.wait import until_ended
from core.jobs.worker import recover
from core.store import datasets as dataset_store
from core.store import evaluations, runs


def train(recipe: RunConfig, data: Path | None = None) -> int:
    """Train a new run. :returns: its id

    :param data: a file to import and train on, in place of the recipe's dataset
    :raises StudioError: when the run does not complete
    """
    run_id = add(recipe, data)
    _finish(queue.enqueue("train", run_id))
    return run_id


def add(recipe: RunConfig, data: Path | None = None, leave_out: bool = False) -> int:
    """Store a run without starting it. :returns: its id

    :param leave_out: import the good rows of ``data`` although some are bad
    """
    datasets.ensure_samples()
    if data is not None:
        options = Options(mapping=recipe.data.mapping, leave_out=leave_out)
        added = dataset_store.get(importing.add([Source(data, data.name)], options=options))
        section = recipe.data.model_copy(update={"dataset": added["name"], "mix": ()})
        recipe = recipe.model_copy(update={"data": section})
    return runs.add(recipe, dataset_store.by_name(recipe.data.parts[0].dataset)["id"])


def resume(run_id: int) -> None:
    """Go on with a stopped, interrupted or failed run."""
    recover()
    _finish(queue.resume_run(run_id))


def evaluate(run_id: int) -> dict[str, Any]:
    """Compare a run's adapter with its base. :returns: the result, as the Evaluate tab shows it"""
    runs.get(run_id)
    _finish(queue.enqueue("evaluate", run_id))
    found = evaluations.latest(run_id)
    assert found is not None
    return found["result"]


def merge(run_id: int) -> Path:
    """Merge a run's adapter into its 16-bit base. :returns: the model's folder"""
    runs.get(run_id)
    job = _finish(queue.enqueue("merge", run_id))
    return export_folder(job["id"]) / job["result"]["folder"]


def _finish(job_id: int) -> dict[str, Any]:
    job = until_ended(job_id)
    if job["state"] != "completed":
        raise StudioError(f"{job['kind']} of run {job['run_id']}", job["error"] or f"was {job['state']}")
    return job
