"""Marks of turns that are shown and not learned, in the spellings that other tools read.

`weight` (OpenAI, Mistral), `train` and `training` (axolotl), `loss` (XTuner, ms-swift), `loss_mask` and
more. A mark is yes or no: what weighs a turn by half, or leaves out a part of it, is refused by name.
"""

import re
from typing import Any

from plumbline.data.errors import RowError
from plumbline.data.rows import Message

_LEARNED = (
    *("weight", "loss_weight", "loss", "compute_loss", "calculate_loss", "loss_mask", "supervise"),
    *("train", "training", "trainable", "is_trainable", "should_train", "train_on", "train_mask"),
    *("learn", "learned", "learnable"),
)
_HIDDEN = ("masked", "is_masked", "no_loss", "no_train", "skip_loss", "not_trained")
_DETAILS = ("training_detail", "train_detail")  # axolotl's: spans of characters
_LISTS = (*_LEARNED, "loss_masks", "weights", "train_masks", "trainables", "losses")
_YES_NO = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False}
_YES_NO["no"] = False
_LIKE = re.compile(r"(?i)(^|_)(train|learn|loss|mask|masked|weight|supervis)|(train|loss|mask|weight)$")


def is_learned(turn: dict[str, Any], path: str) -> bool | None:
    """What a turn's marks say; None when it has none.

    :raises RowError: at a mark that is neither yes nor no, and at two that contradict each other
    """
    marks: dict[str, bool] = {}
    for name in turn.keys() & _KNOWN:
        value = turn[name]
        if value is None:
            continue
        if name in _DETAILS:
            value = _of_parts(value, f"{path}.{name}")
        marked = _yes_or_no(value, f"{path}.{name}")
        marks[name] = not marked if name in _HIDDEN else marked
    if len(set(marks.values())) > 1:
        names = " and ".join(sorted(marks))
        raise RowError(f"{path} is marked as learned and as not learned ({names})", "Keep one of the marks")
    return next(iter(marks.values()), None)


def unread(turn: dict[str, Any]) -> list[str]:
    """Keys of a turn that look like marks and are none that is known."""
    others = turn.keys() - _USUAL
    return sorted(name[:40] for name in others - _KNOWN if _LIKE.search(name)) if others else []


_KNOWN = frozenset((*_LEARNED, *_HIDDEN, *_DETAILS))
_USUAL = frozenset(("role", "content", "from", "value", "name", "tool_calls", "tool_call_id"))


def by_list(record: dict[str, Any], messages: list[Message], but: str) -> None:
    """Take over a list of marks that stands beside the turns: one a turn, or one an answer.

    :param but: the column of the turns
    :raises RowError: when it has another length, or marks that are neither yes nor no
    """
    for name in record.keys() & {*_LISTS, *_HIDDEN}:
        marks = record[name]
        if type(marks) is not list or name == but:
            continue
        answers = [turn for turn in messages if turn["role"] == "assistant"]
        turns = messages if len(marks) == len(messages) else answers
        if len(marks) != len(turns):
            what = f"{name} has {len(marks)} marks, and there are {len(messages)} turns"
            raise RowError(
                f"{what} ({len(answers)} of the assistant)", "Give one mark a turn, or one an answer"
            )
        for number, (turn, mark) in enumerate(zip(turns, marks, strict=True)):
            marked = _yes_or_no(mark, f"{name}[{number}]")
            if turn["role"] == "assistant" and marked == (name in _HIDDEN):
                turn["learn"] = False


def _yes_or_no(value: Any, path: str) -> bool:
    if type(value) is list and value:
        parts = [_yes_or_no(part, f"{path}[{number}]") for number, part in enumerate(value)]
        if len(set(parts)) > 1:
            raise RowError(f"{path} leaves out a part of a turn", "Mark whole turns: true or false")
        return parts[0]
    known = _YES_NO.get(str(value).strip().lower())
    if known is None or type(value) not in (bool, int, float, str):
        raise RowError(
            f"{path} is {value!r:.40}, and a turn is learned whole or not at all",
            "Make it 1 or 0, or give the column another name if it is no mark",
        )
    return known


def _of_parts(value: Any, path: str) -> Any:
    parts = value if type(value) is list else [value]
    return [part.get("train", True) if type(part) is dict else part for part in parts] or True
