"""Recipes as text: YAML or JSON into sections of plain values."""

from typing import Any

from plumbline import untrusted
from plumbline.errors import StudioError

MOST_BYTES = untrusted.LARGEST


def parsed(text: str, where: str) -> dict[str, Any]:
    """A recipe's sections. :raises StudioError: with the line that is wrong"""
    try:
        raw = untrusted.value_of(text) or {}
    except untrusted.Refused as refused:
        raise refused.at(where) from refused
    if not isinstance(raw, dict):
        raise StudioError(where, "must be a mapping of sections", "See assets/presets/default.yaml.")
    return raw
