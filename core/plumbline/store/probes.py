"""Forecasts that were measured, by the recipe and the device that they were measured for."""

import hashlib
import json
import time
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.store import datasets
from plumbline.store.database import database
from plumbline.version import __version__

# What changes neither memory nor time, so that a probe holds good when it is edited.
_IRRELEVANT: Any = {
    "name": True,
    "lora": {"alpha"},
    "data": {"mapping", "day"},
    "training": {
        "learning_rate",
        "lr_scheduler_type",
        "warmup_ratio",
        "weight_decay",
        "max_grad_norm",
        "seed",
        "logging_steps",
        "price_per_hour",
    },
}


def key(config: RunConfig) -> str:
    """A digest of all that a probe's result depends on but the device: settings, data, this version.

    :raises StudioError: when a dataset does not exist
    """
    parts = {
        "settings": config.model_dump(mode="json", exclude=_IRRELEVANT),
        "data": [datasets.by_name(part.dataset)["sha256"] for part in config.data.parts],
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def add(recipe: str, device: str, forecast: str) -> None:
    """Keep a measured forecast; an older one of the same recipe and device is replaced.

    :param recipe: its `key`
    :param forecast: as JSON
    """
    row = {"recipe": recipe, "device": device, "forecast": forecast, "created_at": time.time()}
    database().table("probes").insert(row, replace=True)


def find(recipe: str, device: str) -> str | None:
    """The forecast that was measured, as JSON, or None.

    :param recipe: its `key`
    """
    for row in database().table("probes").rows_where("recipe = ? and device = ?", [recipe, device]):
        return row["forecast"]
    return None
