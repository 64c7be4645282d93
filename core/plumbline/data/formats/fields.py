"""Parts of a record, as a mapping names them: texts, classes, what was asked, and the answer."""

import re
from typing import Any

from plumbline.config.mapping import Mapping, constant, fill, lookup
from plumbline.data.errors import RowError, kind_of
from plumbline.data.formats.cell_values import value_in
from plumbline.data.formats.columns import ROLE_NAMES, verdict_in
from plumbline.data.formats.conversations import content_of, message, messages_of, tools_of
from plumbline.data.formats.detect import turns_of
from plumbline.data.rows import Message


def text_at(record: dict[str, Any], path: str) -> str:
    value = lookup(record, path)
    if type(value) is list and value and type(value[0]) is str:
        value = value[0]  # several right answers: the first
    if type(value) is not str:
        if value is None and path.split(".")[0] not in record:
            raise RowError(f"has no {path}; it has {', '.join(list(record)[:6]) or 'no columns'}")
        what = "an empty list" if value == [] else kind_of(value)
        raise RowError(f"{path} is {what}, expected a text")
    return value


def part_text(record: dict[str, Any], field: str) -> str:
    """A field of the mapping for this record. In a template a missing column is empty."""
    if (text := constant(field)) is not None:
        return text
    if "{" not in field or field in record:
        return text_at(record, field)
    return fill(field, lambda name: _place(record, name))


def _place(record: dict[str, Any], path: str) -> str:
    """The text for a place in a template; a list of texts is paragraphs."""
    value = lookup(record, path)
    if type(value) is list and all(type(part) is str for part in value):
        return "\n\n".join(value)
    return "" if value is None else text_at(record, path)


def plain_text(value: float) -> str:
    """A number or truth value as JSON spells it."""
    return str(value).lower()


def label_text(value: Any, column: str) -> str:
    """A class as text: a text, a whole number or a truth value, exactly as it stands; several of them."""
    if type(value) is str:
        return value
    if type(value) is list and value:
        return ", ".join(label_text(part, column) for part in value)
    if type(value) is int or type(value) is bool:
        return plain_text(value)
    raise RowError(f"{column} is {kind_of(value)}, expected a text")


def system_turns(record: dict[str, Any], mapping: Mapping) -> list[Message]:
    """What the system says, as one message; none where the record leaves it empty.

    A column may hold a message with its text in parts.
    """
    field = mapping.system
    written = not field or "{" in field and field not in record or constant(field) is not None
    value = None if written else lookup(record, field)
    if not field or (not written and not value):
        return []
    text = content_of(value, field) if type(value) is dict else part_text(record, field)
    return [message("system", text)] if text.strip() else []


_OBJECTS = re.compile(r"\s*(?:\[\s*)?\{")


def is_written_talk(value: Any) -> bool:
    """Whether a text spells a message or a list of them: JSON, or as Python prints it."""
    if type(value) is not str or not _OBJECTS.match(value):
        return False
    parsed = value_in(value)
    turns = [parsed] if type(parsed) is dict else parsed
    return bool(turns) and type(turns) is list and all(_is_message(turn) for turn in turns)


def _is_message(turn: Any) -> bool:
    named = type(turn) is dict and any(type(turn.get(name)) is str for name in ROLE_NAMES)
    return named and bool(turn.keys() & {"content", "value", "text", "tool_calls"})


def has_others(record: dict[str, Any], path: str) -> bool:
    """Whether a list on the way to a field holds other values than its first, which is taken."""
    value: Any = record.get(path)
    for part in [] if path in record else path.split("."):
        if type(value) is list:
            value = value[0] if value else None
        elif value is None:
            value = record
        value = value.get(part) if type(value) is dict else None
    return type(value) is list and any(type(each) is str and each != value[0] for each in value)


def tools_in(record: dict[str, Any], mapping: Mapping) -> list[Any]:
    tools = record.get(mapping.tools) if mapping.tools else None
    return tools_of(tools, mapping.tools) if tools else []


def verdict(value: Any, column: str) -> bool:
    """Whether an answer is good: a truth value, or one of the words that stand for one."""
    good = verdict_in(value)
    if good is None:
        shown = f"{value!r:.40}" if type(value) in (str, int, float) else kind_of(value)
        raise RowError(
            f"{column} is {shown}, expected true or false, good or bad, 1 or 0",
            "Name the column with the verdict in a mapping (desirable)",
        )
    return good


def turns_before(record: dict[str, Any], mapping: Mapping) -> list[Message]:
    """Everything before the answer; answers in it are shown and not learned."""
    messages = system_turns(record, mapping)
    if mapping.history and record.get(mapping.history):
        messages += messages_of(record[mapping.history], mapping.history, mapping.roles)
    prompt = mapping.prompt
    value = lookup(record, prompt) if "{" not in prompt else None
    if (isinstance(value, (list, dict)) and turns_of(value)) or is_written_talk(value):
        before = messages_of(value, prompt, mapping.roles)
        if before[0]["role"] == "system":  # what a row says itself goes before what all are given
            messages = [turn for turn in messages if turn["role"] != "system"]
        return messages + [
            turn | {"learn": False} if turn["role"] == "assistant" else turn for turn in before
        ]
    text = part_text(record, prompt)
    return [*messages, message("user", text)]


def answer_turns(record: dict[str, Any], field: str, roles: dict[str, str]) -> list[Message]:
    """An answer column as turns: a text, one message, or a list of them."""
    value = lookup(record, field)
    if is_written_talk(value):
        turns = messages_of(value, field, roles)
    elif isinstance(value, dict) and ("role" in value or "from" in value):
        turns = messages_of([value], field, roles)
    elif isinstance(value, list) and turns_of(value) and type(value[0]) is dict:
        turns = messages_of(value, field, roles)
    elif type(value) in (int, bool):  # exactly as they stand
        turns = [message("assistant", label_text(value, field))]
    elif type(value) is float:
        raise RowError(f"{field} is a number, expected a text", "Write it in quotes")
    else:
        turns = [message("assistant", part_text(record, field))]
    for turn in turns:
        if turn["role"] == "assistant" and not turn["content"].strip() and not turn.get("tool_calls"):
            raise RowError(f"{field} is empty, so there is nothing to learn")
    return turns
