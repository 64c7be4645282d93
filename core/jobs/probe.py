"""The job that measures a recipe before it is started: two steps at the worst length.

The forecast that it makes of them is kept for the recipe and this device: the same recipe has it at once.
"""

import os
import platform
from typing import Any

from core.config import RunConfig, dumps, loads
from core.jobs import queue
from core.jobs.worker import Job
from core.models import hardware
from core.store import probes


def start(config: RunConfig, token: str | None = None) -> int:
    """Queue a measurement of a recipe. :returns: the job's id

    :param token: names one click; a second click with the same token gets the same job back
    :raises StudioError: when a dataset of the recipe does not exist
    """
    return queue.enqueue(
        "probe", None, token, name=config.display_name, key=probes.key(config), recipe=dumps(config)
    )


def probe(job: Job) -> dict[str, Any]:
    """Do the job. :returns: the measured forecast as JSON, under ``forecast``

    :raises StudioError: when the recipe cannot be measured, as when it needs more memory than there is
    :raises StopRequested: when the user pressed Stop
    """
    from core.training.probe import measure

    config = loads(job.payload["recipe"], f"recipe {job.payload['name']}")
    job.report("preparing the measurement", 0.0)
    job.running()
    # What was measured is kept for the rows that were there when it began.
    recipe = probes.key(config)
    found = measure(config, job).to_json()
    job.check_stop()
    probes.add(recipe, device_name(), found)
    job.report("measured", 1.0)
    return {"forecast": found}


def known(config: RunConfig) -> str | None:
    """What was measured for a recipe on this device, as JSON, or None.

    :raises StudioError: when a dataset of the recipe does not exist
    """
    return probes.find(probes.key(config), device_name())


def device_name() -> str:
    """What a measurement holds good for: the GPU's name, or the processor's kind and its cores."""
    device = hardware.device()
    return device.why if device.value == "cuda" else f"{platform.machine()} with {os.cpu_count()} cores"
