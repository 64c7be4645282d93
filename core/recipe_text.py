"""Recipes as text: YAML or JSON into sections of plain values."""

from typing import Any

from core import outside
from core.errors import StudioError

MOST_BYTES = outside.LARGEST


def parsed(text: str, where: str) -> dict[str, Any]:
    """A recipe's sections. :raises StudioError: with the line that is wrong"""
    try:
        raw = outside.value_of(text) or {}
    except outside.Refused as refused:
        raise refused.at(where) from refused
    if not isinstance(raw, dict):
        raise StudioError(where, "must be a mapping of sections", "See assets/presets/default.yaml.")
    return raw
