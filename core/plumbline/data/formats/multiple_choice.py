"""Multiple-choice records to rows: the question with its lettered choices, the right one as the answer."""

import re
from typing import Any

from plumbline.config.mapping import Mapping, lookup, places
from plumbline.data.errors import RowError, kind_of
from plumbline.data.formats.conversations import message
from plumbline.data.formats.fields import text_at, turns_before
from plumbline.data.rows import Row

_LETTERED = re.compile(r"\(?([A-Z0-9])[).:] ?")


def chosen_row(record: dict[str, Any], mapping: Mapping, value: Any) -> Row:
    """A multiple-choice question: its choices with letters after it, the right one as the answer."""
    choices = lookup(record, mapping.choices) if "{" not in mapping.choices else None
    names = choices.get("label") if type(choices) is dict else None
    texts = choices.get("text") if type(choices) is dict else choices
    if "{" in mapping.choices:
        texts = [text_at(record, name) for name in places(mapping.choices)]
    if type(texts) is not list or not texts or not all(type(text) is str for text in texts):
        raise RowError(f"{mapping.choices} is {kind_of(choices)}, expected a list of texts")
    marks = [_LETTERED.match(text) for text in texts]
    if all(marks):
        names, texts = zip(*((m[1], m.string[m.end() :]) for m in marks if m), strict=True)
    if not isinstance(names, (list, tuple)) or len(names) != len(texts):
        names = [chr(65 + number) for number in range(len(texts))]
    lines = [f"{name}. {text}" for name, text in zip(names, texts, strict=True)]
    right = _right(value, list(names), list(texts))
    if right is None:
        raise RowError(f"{mapping.answer} is {value!r:.40}, which is none of the choices")
    before = turns_before(record, mapping)
    before[-1] = message("user", "\n".join([before[-1]["content"] + "\n", *lines]))
    return {"messages": [*before, message("assistant", lines[right])]}


def _right(value: Any, names: list[str], texts: list[str]) -> int | None:
    """Which choice an answer names: by its letter, its text, or its number from 0."""
    for known in (names, texts):
        if value in known:
            return known.index(value)
    if type(value) is str and value.strip().strip("()").upper() in names:
        return names.index(value.strip().strip("()").upper())
    number = int(value) if type(value) is int or (type(value) is str and value.isdigit()) else -1
    return number if 0 <= number < len(texts) else None
