"""The job that measures a recipe before it is started: two steps at the worst length.

The forecast that it makes of them is kept for the recipe and this device: the same recipe has it at once.
"""

from typing import Any

from plumbline.config.schema import RunConfig, dumps, loads
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.planner.measurements import device_name
from plumbline.store import probes


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
    from plumbline.planner.probe import measure

    config = loads(job.payload["recipe"], f"recipe {job.payload['name']}")
    job.report("preparing the measurement", 0.0)
    job.running()
    # What was measured is kept for the rows that were there when it began.
    recipe = probes.key(config)
    measured = measure(config, job).to_json()
    job.check_stop()
    probes.add(recipe, device_name(), measured)
    job.report("measured", 1.0)
    return {"forecast": measured}
