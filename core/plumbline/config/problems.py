"""What pydantic finds wrong with a setting, as a phrase that follows the setting's name."""

import json
import math
from typing import Any

_LIMITS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


def phrase(item: Any) -> str:
    """:param item: one of pydantic's ``ValidationError.errors()``"""
    kind, got, context = item["type"], item.get("input"), item.get("ctx", {})
    shown = f", got {json.dumps(got, default=str)[:60]}"
    if kind == "extra_forbidden":
        return "is not a known setting"
    if kind == "two_names":
        return two_names(context["other"], context["first"], context["second"])
    if kind == "missing":
        return "is missing"
    for key, words in _LIMITS.items():
        if key in context and kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
            return f"must be {words} {context[key]:,.10g}{shown}"
    if kind == "finite_number" or (isinstance(got, float) and not math.isfinite(got)):
        return f"must be a finite number{shown}"
    if kind.startswith("float"):
        return f"must be a number{shown}"
    if kind.startswith("int"):
        return f"must be a whole number{shown}"
    if kind.startswith("bool"):
        return f"must be true or false{shown}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}{shown}"
    said = item["msg"].removeprefix("Value error, ")
    return f"{said[0].lower()}{said[1:]}{shown}"


def two_names(other: str, first: Any, second: Any) -> str:
    """What is wrong when a setting has one value under its name and another under another name."""
    shown = [json.dumps(value, default=str)[:60] for value in (first, second)]
    return f"is {shown[0]}, and {shown[1]} under its other name {other}; give one of the two"
