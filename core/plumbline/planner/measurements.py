"""Forecasts that were measured on this device."""

import os
import platform

from plumbline.config.schema import RunConfig
from plumbline.models import hardware
from plumbline.store import probes


def known(config: RunConfig) -> str | None:
    """What was measured for a recipe on this device, as JSON, or None.

    :raises StudioError: when a dataset of the recipe does not exist
    """
    return probes.find(probes.key(config), device_name())


def device_name() -> str:
    """What a measurement holds good for: the GPU's name, or the processor's kind and its cores."""
    device = hardware.device()
    return device.why if device.value == "cuda" else f"{platform.machine()} with {os.cpu_count()} cores"
