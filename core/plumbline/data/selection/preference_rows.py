"""Rows that hold a judgement: better and worse answers, or an answer and whether it is good.

Only the judged answer is in the loss. What the assistant said before it is prompt.
"""

from collections.abc import Sequence

from plumbline.data.rows import Row
from plumbline.errors import StudioError

WANTED = {
    "dpo": ("rejected", "pairs of a better and a worse answer"),
    "orpo": ("rejected", "pairs of a better and a worse answer"),
    "kto": ("desirable", "answers with a verdict (desirable: true or false)"),
    "pretraining": ("text", "plain texts"),
    "grpo": ("messages", "questions with answers"),
}


def methods_for(row: Row) -> tuple[str, ...]:
    """The methods that learn from rows like this one; the one that is made for them comes first."""
    if "rejected" in row:
        return "dpo", "orpo", "sft", "grpo"
    if "desirable" in row:
        return "kto", "sft", "grpo"
    return ("pretraining",) if "text" in row else ("sft", "grpo")


def fitting(row: Row, method: str) -> str:
    """A method as it was chosen, if it is one for rows like this; else the one that is made for them.

    Supervised is what nobody chose: pairs and verdicts have methods of their own.
    """
    known = methods_for(row)
    return method if method in known and method != "sft" else known[0]


def check_fits(row: Row, method: str, dataset: str) -> None:
    """:raises StudioError: when a dataset's rows lack what a method learns from"""
    if method in WANTED and WANTED[method][0] not in row:
        _, words = WANTED[method]
        raise StudioError(
            "method.name",
            f"{method} learns from {words}, which dataset {dataset!r} does not have",
            f"Set the method to {methods_for(row)[0]}, or choose another dataset.",
        )


def both(row: Row) -> tuple[Row, Row]:
    """A pair as two conversations with the same prompt: the better answer's, and the worse one's."""
    asked = _asked(row)
    rest = {name: value for name, value in row.items() if name not in ("messages", "rejected", "asked")}
    chosen = row["messages"][len(asked) :]
    return {**rest, "messages": [*asked, *chosen]}, {**rest, "messages": [*asked, *row["rejected"]]}


def preference_of(row: Row, answered: Row) -> tuple[Row, Row, bool]:
    """A judged conversation, its prompt with another row's answer, and whether its answer is good.

    The second is what Kahneman-Tversky optimisation measures the drift from the reference with
    (Ethayarajh et al., 2024).
    """
    asked = _asked(row)
    rest = {name: value for name, value in row.items() if name not in ("messages", "desirable", "asked")}
    own, other = row["messages"][len(asked) :], answered["messages"][len(_asked(answered)) :]
    return (
        {**rest, "messages": [*asked, *own]},
        {**rest, "messages": [*asked, *other]},
        row["desirable"] is not False,
    )


def asked_and_answer(row: Row) -> tuple[list[Row], str]:
    """A conversation up to its answer, and the answer's text."""
    asked = _asked(row)
    return asked, row["messages"][len(asked)]["content"] or ""


def _asked(row: Row) -> list[Row]:
    """The prompt: everything before the judged answer, which is the last turn unless the row says more."""
    messages: Sequence[Row] = row["messages"]
    asked = messages[: row.get("asked", len(messages) - 1)]
    return [{**turn, "learn": False} if turn["role"] == "assistant" else turn for turn in asked]
