"""Runs that one click makes: stored and queued in one transaction, and only once.

Every function takes a token, which names the click; a second click with it gets the same run back.
"""

from collections.abc import Callable
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.models import fit
from plumbline.runs import lineage
from plumbline.store import runs
from plumbline.store.database import writing


def store(config: RunConfig, dataset_id: int) -> list[int]:
    """Store a recipe's runs; each begins with what the one before has learned. :returns: their ids"""
    run_ids: list[int] = []
    for stage in stages(config):
        before = run_ids[-1] if run_ids else None
        run_ids.append(runs.add(stage, dataset_id, before, None, "rank" if before else None))
    return run_ids


def start(config: RunConfig, dataset_id: int, token: str, forecast: str | None = None) -> int:
    """Store a recipe's runs, one or with a rank schedule one for every rank, and queue them.

    :param forecast: what was shown for it, as JSON, which the run is held against
    :returns: the id of the first
    """

    def stored() -> list[int]:
        run_ids = store(config, dataset_id)
        if len(run_ids) == 1:  # a forecast is of one run
            runs.update(run_ids[0], forecast=forecast)
        return run_ids

    return _once(token, stored)


def branch(run_id: int, step: int | None, changes: dict[str, Any], token: str) -> int:
    """Store and queue a branch. :returns: its id

    :param step: one of `lineage.steps`; None means the last
    :param changes: settings by key
    :raises StudioError: when it cannot be, or would not fit; nothing is stored then
    """

    for job in queue.with_token(token):
        return queue.run_of(job)
    # Looked at before the transaction: it takes seconds, in which nobody else could write.
    planned = lineage.branch(run_id, step, changes)
    fit.check_fits(planned.config)
    return _once(token, lambda: [planned.store()])


def reproduce(run_id: int, token: str) -> int:
    """Store and queue a reproduction of a run that has ended. :returns: its id"""

    def stored() -> list[int]:
        if (state := runs.get(run_id)["state"]) not in queue.ENDED:
            raise StudioError(f"run {run_id}", f"is {state}", "Train it again when it has ended.")
        return [lineage.reproduce(run_id)]

    return _once(token, stored)


def queued(run_ids: list[int]) -> list[int]:
    """Queue stored runs, all or none, in their order. :returns: the ids of their jobs"""
    with writing():
        return [queue.enqueue("train", run_id) for run_id in run_ids]


def _once(token: str, stored: Callable[[], list[int]]) -> int:
    with writing():
        for job in queue.with_token(token):
            return queue.run_of(job)
        run_ids = stored()
        for number, run_id in enumerate(run_ids):
            queue.enqueue("train", run_id, token=token if number == 0 else None)
    return run_ids[0]


def stages(config: RunConfig) -> list[RunConfig]:
    """The runs that a recipe with a rank schedule stands for: the same strength of adapter at every rank."""
    configs = []
    for rank in config.lora.rank_schedule or (config.lora.r,):
        alpha = config.lora.alpha * rank / config.lora.r
        lora = config.lora.model_copy(update={"r": rank, "alpha": alpha, "rank_schedule": ()})
        name = config.name_with(f"r{rank}") if config.name and config.lora.rank_schedule else config.name
        configs.append(config.model_copy(update={"lora": lora, "name": name}))
    return configs
