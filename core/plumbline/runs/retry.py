"""A run that ran out of memory, started again with the smaller plan that plumbline.planner.smaller left."""

from dataclasses import dataclass
from typing import Any

from plumbline.checkpoints import folders
from plumbline.checkpoints.identity import WITHOUT_EFFECT
from plumbline.config import schema
from plumbline.errors import StudioError
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.store.database import writing
from plumbline.store.records import RunRow


@dataclass(frozen=True)
class SmallerPlan:
    """What a run that ran out of memory can start again with.

    :param settings: those that change, by key
    :param step: of the checkpoint that the same run goes on from; None where a new run begins, because
        none was kept or the settings change what is learned
    """

    job_id: int
    settings: dict[str, Any]
    step: int | None


def offered(run_id: int) -> SmallerPlan | None:
    """The smaller plan of a run whose last training failed for lack of memory, or None."""
    job = queue.latest(run_id, "train")
    settings = (job["result"] or {}).get("suggestion") if job and job["state"] == "failed" else None
    if job is None or not settings:
        return None
    folder = run_folder(run_id, create=False) / "checkpoints"
    checkpoints = folders.listed(folder) if _without_effect(settings) else []
    return SmallerPlan(job["id"], settings, folders.step_of(checkpoints[-1]) if checkpoints else None)


def start(run_id: int) -> int:
    """Queue a run again with its smaller plan. :returns: its id, or that of the run in its place

    The later stages of a rank schedule come after it. A second click gets the run of the first.

    :raises StudioError: when it has no smaller plan
    """
    with writing():
        plan = offered(run_id)
        if plan is None:
            job = queue.latest(run_id, "train")
            if job is not None and job["state"] not in queue.ENDED:
                return run_id
            raise StudioError(f"run {run_id}", "has no smaller plan to start again with", "Start a new run.")
        token = f"smaller-{plan.job_id}"
        for job in queue.with_token(token):
            return queue.run_of(job)
        config = schema.changed(runs.recipe(run_id), plan.settings)
        if plan.step is not None:
            runs.update(run_id, recipe=schema.dumps(config))
            queue.enqueue("train", run_id, token, resume=True)
            _queue_later_stages(run_id)
            return run_id
        new = _in_its_place(runs.get(run_id), config, plan.settings)
        queue.enqueue("train", new, token)
        for stage in _later_stages(run_id):
            runs.update(stage["id"], parent=new)
        _queue_later_stages(new)
        return new


def _later_stages(run_id: int) -> list[RunRow]:
    """The runs of a rank schedule that wait for a run, or failed because it did; not those taken back."""
    stages = (stage for stage in runs.children(run_id) if stage["relation"] == "rank")
    return [stage for stage in stages if not stage["step"] and stage["state"] in ("queued", "failed")]


def _queue_later_stages(run_id: int) -> None:
    """Queue them, and those that wait for them, behind the run that they wait for."""
    for stage in _later_stages(run_id):
        job = queue.latest(stage["id"], "train")
        if job is not None and job["state"] == "queued":
            queue.stop(job["id"])
        queue.enqueue("train", stage["id"])
        _queue_later_stages(stage["id"])


def _in_its_place(run: RunRow, config: schema.RunConfig, settings: dict[str, Any]) -> int:
    """A run that begins where another one began."""
    relation = run["relation"]
    if relation == "reproduction" and not _without_effect(settings):
        relation = None
    parent = run["parent"] if relation else None
    if parent is not None and not runs.exists(parent):
        fix = f"Branch from a step of run {run['id']}, or start a new run."
        raise StudioError(f"run {parent}", f"was deleted, and run {run['id']} began with it", fix)
    new = runs.add(config, run["dataset_id"], parent, run["parent_step"] if relation else None, relation)
    runs.event(f"run {run['id']} ran out of memory; this is it with the smaller plan", new)
    return new


def _without_effect(settings: dict[str, Any]) -> bool:
    """Whether a run's checkpoint stays its own with other values of these."""
    return set(settings) <= WITHOUT_EFFECT
