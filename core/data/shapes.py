"""Records to rows: recognise the columns and turn every record into a conversation or a text.

A row is ``{"messages": [{"role", "content"}, ...]}`` or ``{"text": ...}``; ``label`` and
``group`` are kept beside it where the dataset has them.
"""

from collections.abc import Callable, Iterable
from typing import Any

from core.data.read import Problem, Record
from core.errors import StudioError

ROLES = ("system", "user", "assistant", "tool")
SHAPES = ("messages", "prompt/completion", "instruction/input/output", "text/label", "text")


class RowError(Exception):
    """This record cannot become a row; the text follows the line number."""


def recognise(columns: Iterable[str], name: str) -> str:
    """The shape that these columns make.

    :raises StudioError: when none of the known ones, with what was found and what is known
    """
    found = set(columns)
    if "messages" in found:
        return "messages"
    if {"prompt", "completion"} <= found:
        return "prompt/completion"
    if {"instruction", "output"} <= found:
        return "instruction/input/output"
    if {"text", "label"} <= found:
        return "text/label"
    if "text" in found:
        return "text"
    listed = ", ".join(sorted(found)) or "none"
    raise StudioError(
        name,
        f"has columns that are not known: {listed}",
        f"Rename them to one of these: {'; '.join(SHAPES)}.",
    )


def convert(records: list[Record], name: str) -> tuple[str, list[dict[str, Any]], list[Problem]]:
    """Every record as a row, and why some could not be.

    :returns: shape, rows, problems
    :raises StudioError: when the columns are of no known shape
    """
    shape = recognise(records[0].value, name)
    row_of = _CONVERTERS[shape]
    rows, problems = [], []
    for record in records:
        try:
            row = row_of(record.value)
        except RowError as error:
            problems.append(Problem(record.line, str(error)))
        else:
            for key in ("label", "group"):
                if record.value.get(key) is not None:
                    row[key] = str(record.value[key])
            rows.append(row)
    return shape, rows, problems


def _messages(value: dict[str, Any]) -> dict[str, Any]:
    turns = value.get("messages")
    if not isinstance(turns, list) or not turns:
        raise RowError("has no messages")
    clean = []
    for number, turn in enumerate(turns):
        place = f"messages[{number}]"
        if not isinstance(turn, dict):
            raise RowError(f"{place} is not an object with role and content")
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise RowError(f"{place}.role is {role!r}, expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise RowError(f"{place}.content is not a text")
        clean.append({"role": role, "content": content})
    answers = [turn["content"] for turn in clean if turn["role"] == "assistant"]
    if not answers:
        raise RowError("has no assistant turn, so there is nothing to learn")
    if not all(answer.strip() for answer in answers):
        raise RowError("has an assistant turn that is empty")
    return {"messages": clean}


def _text_of(value: dict[str, Any], key: str) -> str:
    content = value.get(key)
    if not isinstance(content, str):
        raise RowError(f"{key} is not a text")
    return content


def _exchange(question: str, answer: str, field: str) -> dict[str, Any]:
    if not answer.strip():
        raise RowError(f"{field} is empty, so there is nothing to learn")
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _prompt_completion(value: dict[str, Any]) -> dict[str, Any]:
    return _exchange(_text_of(value, "prompt"), _text_of(value, "completion"), "completion")


def _instruction(value: dict[str, Any]) -> dict[str, Any]:
    question = _text_of(value, "instruction")
    if value.get("input"):
        question += "\n\n" + _text_of(value, "input")
    return _exchange(question, _text_of(value, "output"), "output")


def _labelled(value: dict[str, Any]) -> dict[str, Any]:
    label = value["label"]
    return _exchange(_text_of(value, "text"), "" if label is None else str(label), "label")


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    text = _text_of(value, "text")
    if not text.strip():
        raise RowError("text is empty")
    return {"text": text}


_CONVERTERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "messages": _messages,
    "prompt/completion": _prompt_completion,
    "instruction/input/output": _instruction,
    "text/label": _labelled,
    "text": _plain,
}
