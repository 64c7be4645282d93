"""Checks that an answer passes or not: what learning from one's own answers is steered by."""

import re
from collections.abc import Callable

import orjson

from plumbline.config.method import MethodSection
from plumbline.evaluation.score import exact_match

Check = Callable[[str, str], float]


def check_of(method: MethodSection) -> Check:
    """The check of a recipe: from an answer and its row's answer to 1.0 (passed) or 0.0."""
    if method.check == "exact":
        return exact_match
    if method.check == "contains":
        return lambda answer, reference: float(bool(reference.strip()) and reference.strip() in answer)
    if method.check == "json":
        return lambda answer, reference: float(_is_json(answer))
    pattern = re.compile(method.pattern)
    return lambda answer, reference: float(bool(pattern.search(answer)))


def _is_json(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), (dict, list))
    except orjson.JSONDecodeError:
        return False
