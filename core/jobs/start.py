"""From a recipe to queued runs: one, or with a rank schedule one for every rank."""

from core.config import RunConfig
from core.jobs import queue
from core.store import runs


def store(config: RunConfig, dataset_id: int) -> list[int]:
    """Store a recipe's runs; each begins with what the one before has learned. :returns: their ids"""
    found: list[int] = []
    for stage in stages(config):
        before = found[-1] if found else None
        found.append(runs.add(stage, dataset_id, before, None, "rank" if before else None))
    return found


def start(config: RunConfig, dataset_id: int, token: str) -> int:
    """Store a recipe's runs and queue them. :returns: the id of the first

    :param token: names one click; a second click with the same token gets the same run back
    """
    for job in queue.with_token(token):
        return job["run_id"]
    found = store(config, dataset_id)
    for number, run_id in enumerate(found):
        queue.enqueue("train", run_id, token=token if number == 0 else None)
    return found[0]


def stages(config: RunConfig) -> list[RunConfig]:
    """The runs that a recipe with a rank schedule stands for: the same strength of adapter at every rank."""
    found = []
    for rank in config.lora.rank_schedule or (config.lora.r,):
        alpha = config.lora.alpha * rank / config.lora.r
        lora = config.lora.model_copy(update={"r": rank, "alpha": alpha, "rank_schedule": ()})
        name = f"{config.name} r{rank}"[:80] if config.name and config.lora.rank_schedule else config.name
        found.append(config.model_copy(update={"lora": lora, "name": name}))
    return found
