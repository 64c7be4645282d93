"""Values that stand in a text: JSON, or what Python prints of lists and objects, as pandas writes it."""

import ast
import re
from typing import Any

import orjson

from plumbline.data.readers.limits import MAX_DEPTH

LARGEST = 1024**2  # characters in Python's spelling; its parser takes a hundred times as much memory
# All that such a text may hold. Nothing here repeats inside of a repetition, so it is read in one pass.
_TOKEN = re.compile(
    r"""\s+|array\(|,\s*dtype=\w+|\)|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d[\d.]*(?:[eE][-+]?\d+)?|True|False|None|[\[\]{},:]""",
    re.DOTALL,
)


def value_in(text: str) -> Any:
    """The list or object that a text spells, whole; None when it spells none."""
    start = text.lstrip()[:1]
    if start not in ("[", "{") and not text.lstrip().startswith("array("):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _python(text)


def _python(text: str) -> Any:
    """As `ast.literal_eval`, which deep nesting and long chains of signs could bring down."""
    if len(text) > LARGEST:
        return None
    tokens: list[str] = []
    at = depth = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at, token = match.end(), match[0]
        if token.isspace() or token in ("array(", ")") or "dtype=" in token:
            continue
        depth += (token in ("[", "{")) - (token in ("]", "}"))
        if depth > MAX_DEPTH:
            return None
        if tokens and token == "{" and tokens[-1] == "}":
            tokens.append(",")  # numpy prints none between the objects of an array
        tokens.append(token)
    try:
        return ast.literal_eval(" ".join(tokens))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
