"""Conversations of every spelling to messages with role and content.

Knows ``role``/``content``, ShareGPT's ``from``/``value``, pairs, alternating texts, content in parts,
and tool calls. Raises RowError with the turn and the field of what cannot be read.
"""

from typing import Any

import orjson

from plumbline.data.errors import RowError, kind_of
from plumbline.data.formats import turn_masks
from plumbline.data.formats.cell_values import value_in
from plumbline.data.formats.detect import PAIRS, turns_of
from plumbline.data.readers.limits import MAX_DEPTH
from plumbline.data.rows import Message, Row, ToolCall

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "call",
    "tool_call": "call",
}
# In ``messages`` only names with one meaning stand for others; the rest is asked.
SURE = {"developer": "system", "function": "tool", "model": "assistant"}
WORDS = ("content", "value", "text", "message", "parts")
# Types of a content's parts.
_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("reasoning", "thinking", "reasoning_text", "reasoning_content")


IN_TEXT = "hold a conversation written as a text; it is read as a conversation"


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def canonical(turns: list[Any]) -> bool:
    """Whether turns are what is stored: known roles, texts, an answer, no answer that is empty."""
    answered = False
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return False
        content, role = turn.get("content"), turn.get("role")
        if type(content) is not str or role not in ROLES:
            return False
        if role == "assistant":
            if not content or content.isspace():
                return False
            answered = True
    return answered


def messages_of(value: Any, column: str, roles: dict[str, str]) -> list[Message]:
    """A column's conversation as messages. :raises RowError: with the turn and field that is wrong"""
    turns = turns_of(value)
    if turns is None:
        raise RowError(
            f"{column} is {kind_of(value)}, expected a list of turns",
            "Name the column of the turns in a mapping",
        )
    if not turns:
        raise RowError(f"has no turns: {column} is an empty list")
    if type(turns[0]) is str:
        return [
            message("user" if number % 2 == 0 else "assistant", text_value(turn, f"{column}[{number}]"))
            for number, turn in enumerate(turns)
        ]
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        path = f"{column}[{number}]"
        if type(turn) is list and len(turn) == 2:
            asked, answered = text_value(turn[0], path), text_value(turn[1], path)
            messages += [message("user", asked), message("assistant", answered)]
        elif type(turn) is not dict:
            raise RowError(f"{path} is {kind_of(turn)}, expected an object with role and content")
        elif "role" in turn or "from" in turn or "speaker" in turn or "author" in turn:
            messages.append(_message(turn, path, roles))
        else:
            messages += _pair(turn, path)
    if type(value) is str:
        messages[0] = {**messages[0], "noted": [*messages[0].get("noted", ()), IN_TEXT]}
    return messages


def text_value(value: Any, path: str) -> str:
    """:raises RowError: when the value is not a text"""
    if type(value) is not str:
        raise RowError(f"{path} is {kind_of(value)}, expected a text")
    return value


def _pair(turn: dict[str, Any], path: str) -> list[Message]:
    for asks, answers in PAIRS:
        if asks in turn and answers in turn:
            return [
                message("user", text_value(turn[asks], f"{path}.{asks}")),
                message("assistant", text_value(turn[answers], f"{path}.{answers}")),
            ]
    raise RowError(f"{path} has no role")


def _message(turn: dict[str, Any], path: str, roles: dict[str, str]) -> Message:
    key = next(name for name in ("role", "from", "speaker", "author") if name in turn)
    named = turn[key]
    role = roles.get(named, named.lower()) if type(named) is str else None
    if role not in ROLES:
        role = (SURE if key == "role" else ALIASES).get(role or "")
    if role is None:
        hint = "; a mapping can say which it is" if type(named) is str else ""
        raise RowError(
            f"{path}.{key} is {named!r:.40}, expected one of system, user, assistant, tool{hint}",
            f"Say which role it is in the mapping (roles.{named:.40}=user)" if hint else "",
        )
    words = next((name for name in WORDS if turn.get(name) is not None), "content")
    content = turn.get(words)
    made: Message
    if role == "call":
        made = {"role": "assistant", "content": "", "tool_calls": calls_of(content, f"{path}.{words}")}
        return _marked(made, turn, path)
    text, reasoning = said_and_thought(turn, path)
    made = {"role": role, "content": text}
    if reasoning and role == "assistant":
        made["reasoning_content"] = reasoning
    if calls := turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None):
        made["tool_calls"] = calls_of(calls, f"{path}.tool_calls")
    for name in ("name", "tool_call_id"):
        if type(turn.get(name)) is str and role == "tool":
            made[name] = turn[name]
    for name in ("reasoning_content", "thinking", "reasoning"):
        if type(turn.get(name)) is str and role == "assistant" and turn[name]:
            made[name] = turn[name]
    return _marked(made, turn, path)


def _marked(made: Message, turn: dict[str, Any], path: str) -> Message:
    """The message with its mark; ``noted`` is what the import tells of it, and is not stored."""
    learned = turn_masks.is_learned(turn, path)
    noted = [f"have {name!r} on a turn, which is not read" for name in turn_masks.unread(turn)]
    if made["role"] == "assistant" and learned is False:
        made["learn"] = False
    elif made["role"] != "assistant" and learned and turn.get("weight") is None:
        noted.append(f"mark a turn of the {made['role']} as learned; only answers are")
    if noted:
        made["noted"] = noted
    return made


def content_of(turn: dict[str, Any], path: str) -> str:
    """What a turn says. :raises RowError: when that is not text"""
    return said_and_thought(turn, path)[0]


def said_and_thought(turn: dict[str, Any], path: str) -> tuple[str, str]:
    """What a turn says, and what its parts of reasoning hold. :raises RowError: when that is not text"""
    name = next((name for name in WORDS if turn.get(name) is not None), "content")
    value, path = turn.get(name), f"{path}.{name}"
    if type(value) is str:
        return value, ""
    if value is None and (turn.get("tool_calls") or turn.get("function_call")):
        return "", ""
    if type(value) is list and value and all(type(part) is dict for part in value):
        texts: list[str] = []
        thoughts: list[str] = []
        for part in value:
            kind = part.get("type", "text")
            text = part.get("text", part.get("value"))
            if kind in _THOUGHTS:
                text = (
                    text if type(text) is str else next((part[key] for key in _THOUGHTS if key in part), None)
                )
            if kind not in (*_TEXTS, *_THOUGHTS) or type(text) is not str:
                kind = part.get("type") or next(iter(part), None)
                what = f"{path} holds a part of type {kind!r:.40}; only text is learned"
                raise RowError(what, "Rows with pictures, sound or results hold no answer to learn")
            (thoughts if kind in _THOUGHTS else texts).append(text)
        return "".join(texts), "\n\n".join(thoughts)
    if value is None and not set(WORDS) & turn.keys():
        raise RowError(f"{path} is missing")
    raise RowError(f"{path} is {kind_of(value)}, expected a text")


def calls_of(value: Any, path: str) -> list[ToolCall]:
    """Tool calls as templates expect them: a function with a name and its arguments as an object."""
    value = _parsed(value, path)
    calls = []
    for number, call in enumerate(value if type(value) is list else [value]):
        function = call.get("function", call) if type(call) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            raise RowError(f"{path}[{number}] has no function name")
        arguments = function.get("arguments", function.get("parameters", {}))
        if type(arguments) is str:
            arguments = _parsed(arguments, f"{path}[{number}].arguments") if arguments.strip() else {}
        _refuse_deep(arguments, path)
        made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if type(call.get("id")) is str:
            made["id"] = call["id"]
        calls.append(made)
    return calls


def _parsed(value: Any, path: str) -> Any:
    if type(value) is not str:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        if (parsed := value_in(value)) is not None:
            return parsed
        raise RowError(f"{path} is not valid JSON") from None


def tools_of(value: Any, column: str) -> list[Any]:
    """A column's tools as a list of functions. :raises RowError: when it holds none"""
    tools = _parsed(value, column)
    if type(tools) is not list or not all(type(tool) is dict for tool in tools):
        raise RowError(f"{column} is {kind_of(tools)}, expected a list of tools")
    _refuse_deep(tools, column)
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _refuse_deep(value: Any, path: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise RowError(f"{path} is nested deeper than {MAX_DEPTH}")
    for part in value.values() if type(value) is dict else value if type(value) is list else ():
        _refuse_deep(part, path, depth + 1)


def learnable(row: Row, column: str) -> Row:
    """:raises RowError: when the conversation has no answer, or one that is empty"""
    answers = [turn for turn in row["messages"] if turn["role"] == "assistant"]
    if not answers:
        raise RowError("has no assistant turn, so there is nothing to learn")
    for number, turn in enumerate(row["messages"]):
        if turn["role"] == "assistant" and not turn["content"].strip() and not turn.get("tool_calls"):
            raise RowError(f"{column}[{number}] is an assistant turn that is empty")
    if all(turn.get("learn") is False for turn in answers):
        raise RowError("has no assistant turn that is to be learned (all are marked as not learned)")
    return row
