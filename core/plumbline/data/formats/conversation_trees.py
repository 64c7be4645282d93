"""Conversation trees (a prompt with ranked replies, as OASST publishes them): the best path of each."""

from typing import Any

from plumbline.data.errors import RowError, kind_of
from plumbline.data.readers.limits import MAX_DEPTH
from plumbline.data.rows import Message

REPLIES = ("replies", "children")
_WORDS = ("text", "content", "value")
_NAMES = {"prompter": "user", "human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def is_tree(value: Any) -> bool:
    """Whether a value is a message with its replies in it."""
    return (
        isinstance(value, dict)
        and any(isinstance(value.get(name), list) for name in REPLIES)
        and any(isinstance(value.get(name), str) for name in _WORDS)
    )


def best_path(value: Any, column: str) -> tuple[list[Message], int]:
    """The messages from the root along the best reply of each, to its last answer, and how many others
    there are on the way.

    The best is that of the lowest rank, where there are ranks; else the first. Deleted ones are left out.

    :raises RowError: when it is no tree, or has no answer
    """
    if not is_tree(value):
        raise RowError(f"{column} is {kind_of(value)}, expected a message with its replies")
    messages: list[Message] = []
    others = 0
    node: Any = value
    while node is not None:
        named = node.get("role") or node.get("author") or ("assistant" if len(messages) % 2 else "user")
        role = _NAMES.get(str(named).lower(), str(named))
        text = next((node[name] for name in _WORDS if isinstance(node.get(name), str)), None)
        if role not in ("user", "assistant", "system") or text is None:
            raise RowError(
                f"{column} has a message of {str(named)[:40]!r} without a text, or with no known role"
            )
        messages.append({"role": role, "content": text})
        if len(messages) > MAX_DEPTH**2:
            raise RowError(f"{column} is longer than {MAX_DEPTH**2} messages")
        listed: list[Any] = next((node[name] for name in REPLIES if isinstance(node.get(name), list)), [])
        replies = [reply for reply in listed if isinstance(reply, dict) and not reply.get("deleted")]
        others += max(0, len(replies) - 1)
        node = min(replies, key=_rank, default=None)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise RowError(f"{column} has no reply, so there is nothing to learn")
    return messages, others


def _rank(reply: dict[str, Any]) -> float:
    rank: Any = reply.get("rank")
    return float(rank) if isinstance(rank, (int, float)) else float("inf")
