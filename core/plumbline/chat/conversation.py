"""A conversation with a run: what is sent of it, and what becomes of a question that gets no answer.

Plain dicts and lists, so that a page may keep them where it likes. Base and adapter are asked the same
and answer differently, so each side has messages of its own. A message with a ``note`` was answered here.
"""

from typing import Any, TypedDict

from plumbline.chat.session import SIDES, Said
from plumbline.data.rows import Message
from plumbline.evaluation.generate import Task


class Talk(TypedDict):
    """One run's conversation.

    ``pending`` is the question that waits for its answer; it is None while nothing does.
    """

    system: str
    tools: list[dict[str, Any]] | None
    base: list[Message]
    adapter: list[Message]
    pending: str | None


def empty() -> Talk:
    return {"system": "", "tools": None, "base": [], "adapter": [], "pending": None}


def of_task(task: Task) -> tuple[Talk, str]:
    """A row's conversation up to its last question, and that question; empty when a tool spoke last."""
    turns = [dict(message) for message in task.messages]
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    question = ""
    if turns and turns[-1].keys() <= {"role", "content", "learn"} and turns[-1]["role"] == "user":
        question = turns.pop()["content"]
    return {**empty(), "system": system, "tools": task.tools, "base": turns, "adapter": list(turns)}, question


def may_ask(talk: Talk, question: str) -> bool:
    """Whether there is something to answer: a question, or a row whose last turn is a tool's."""
    return bool(question.strip()) or (bool(talk["base"]) and talk["base"][-1]["role"] != "assistant")


def asked(talk: Talk, question: str, system: str, role: str = "user") -> Talk:
    turn = [{"role": role, "content": question}] if question.strip() else []
    base, adapter = [*talk["base"], *turn], [*talk["adapter"], *turn]
    return {**talk, "system": system, "base": base, "adapter": adapter, "pending": question}


def answered(talk: Talk, replies: dict[str, Said]) -> Talk:
    """:param talk: as `asked` gave it"""
    role = "continuation" if talk["base"][-1]["role"] == "text" else "assistant"
    base, adapter = (
        [*turns, {"role": role, "content": replies[side].text, "note": replies[side].note}]
        for side, turns in zip(SIDES, (talk["base"], talk["adapter"]), strict=True)
    )
    return {**talk, "base": base, "adapter": adapter, "pending": None}


def taken_back(talk: Talk) -> tuple[Talk, str]:
    """The conversation without the question that waits, and that question; empty when none does."""
    question = talk["pending"]
    if question is None:
        return talk, ""
    turns = 1 if question.strip() else 0
    base, adapter = (side[: len(side) - turns] for side in (talk["base"], talk["adapter"]))
    return {**talk, "base": base, "adapter": adapter, "pending": None}, question


def sent(talk: Talk, side: str, alone: bool) -> Task:
    """What one side is asked.

    :param alone: without what was asked and answered here before
    """
    turns = talk["base"] if side == "base" else talk["adapter"]
    answers = [number for number, message in enumerate(turns) if "note" in message]
    recent = turns[answers[-1] + 1 :] if alone and answers else turns
    system = [{"role": "system", "content": talk["system"]}] if talk["system"].strip() else []
    plain = [{key: value for key, value in message.items() if key != "note"} for message in recent]
    return Task([*system, *plain], "", talk["tools"])
