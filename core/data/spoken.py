"""Where in a rendered conversation the assistant speaks, for templates that do not mark it.

Only the template knows, so every question is put to it: it writes the conversation without a turn, or
with a stand-in for one, and the difference is the answer.
"""

import os.path
import re
from dataclasses import dataclass
from typing import Any, Protocol

from core.errors import StudioError

Message = dict[str, Any]
Span = tuple[int, int]

_JSON_EDGES = "{}[]\"' "  # what may stand between a tool call's arguments and the template's own text


class Write(Protocol):
    """What a template writes. :raises StudioError: when it refuses the messages"""

    def __call__(self, messages: list[Message], prompt: bool = False) -> str: ...


@dataclass(frozen=True)
class Turns:
    """One conversation, its template, and the tokenizer's control tokens (a pattern for any of them)."""

    messages: list[Message]
    write: Write
    control: re.Pattern[str]

    def span(self, turn: int, text: str) -> Span:
        """From the end of the header that asks for the answer to the end of the turn.

        Whitespace after the end-of-turn token belongs to the next turn.

        :param text: the whole conversation as the template writes it
        :raises StudioError: when the template loses the turn
        """
        is_last = turn == len(self.messages) - 1
        before = self._attempt(self.messages[:turn], prompt=True) if turn else ""
        after = text if is_last else self._attempt(self.messages[: turn + 1])
        if before and after.startswith(before) and text.startswith(after):
            span = len(before), max(len(before), self._turn_end(after))
        else:
            span = self._rewritten(turn, text, before)
        said = text[slice(*span)].strip()
        if _has_something(self.messages[turn]) and (not said or self.control.fullmatch(said)):
            raise lost("drops an assistant turn")
        return span

    def _rewritten(self, turn: int, text: str, before: str) -> Span:
        """For a template that writes a turn differently once others follow.

        A stand-in for the answer shows what surrounds it; the real text in between is the answer.
        """
        mark = _unused(text)
        replaced, least, most = _stand_in(self.messages[turn], mark)
        shown = self._attempt(self._with({turn: replaced}))
        if not least <= shown.count(mark) <= most:
            raise lost("drops or rewrites an assistant turn")
        head, tail = shown[: shown.index(mark)], shown.rpartition(mark)[2]
        if self._calls(turn):
            head, tail = head.rstrip(_JSON_EDGES), tail.lstrip(_JSON_EDGES)
        end = len(text) - len(tail)
        if not (text.startswith(head) and text.endswith(tail) and len(head) <= end):
            raise lost("drops or rewrites an assistant turn")
        return self._start(turn, head, before, mark), self._end(turn, text, end, mark)

    def _start(self, turn: int, head: str, before: str, mark: str) -> int:
        """Where the header ends in ``head``, which is all that precedes the answer."""
        if before and head.startswith(before):
            return len(before)
        between, header = self._opening(head, mark) if turn == 0 else self._between(turn, mark)
        if between.startswith(header) and head.endswith(between):
            return len(head) - len(between) + len(header)
        return len(head)

    def _opening(self, head: str, mark: str) -> tuple[str, str]:
        """Nothing precedes the turn: its header is what asking for an answer adds to a question."""
        question = [{"role": "user", "content": mark}]
        header = self._attempt(question, prompt=True).removeprefix(self._attempt(question))
        found = header and mark not in header and header in head
        return (header + head.rpartition(header)[2], header) if found else ("", "")

    def _between(self, turn: int, mark: str) -> tuple[str, str]:
        """What the template writes between the message before and the turn, and to ask for the turn."""
        other = mark.swapcase()
        earlier = {turn - 1: _stand_in(self.messages[turn - 1], other)[0]}
        both = {**earlier, turn: _stand_in(self.messages[turn], mark)[0]}
        shown = self._attempt(self._with(both)).partition(mark)[0]
        asked = self._attempt(self._with(earlier)[:turn], prompt=True)
        if other not in shown or other not in asked:
            return "", ""
        between = shown.rpartition(other)[2]
        return between.rstrip(_JSON_EDGES) if self._calls(turn) else between, asked.rpartition(other)[2]

    def _end(self, turn: int, text: str, end: int, mark: str) -> int:
        """Where the end-of-turn token ends; ``end`` is where the answer itself does."""
        replaced = _stand_in(self.messages[turn], mark)[0]
        alone = self._attempt([*self.messages[:turn], replaced])
        closing = alone[: self._turn_end(alone)].rpartition(mark)[2]
        if self._calls(turn):
            closing = closing.lstrip(_JSON_EDGES)
        shared = os.path.commonprefix([closing, text[end:]])
        if shared == closing:
            return end + len(closing)
        # As the last turn it ends differently (another token, or one more): what they share, or the
        # token that stands there.
        *_, last = [0, *(found.end() for found in self.control.finditer(shared))]
        following = re.compile(rf"\s*(?:{self.control.pattern})").match(text, end)
        return end + last if last else following.end() if following else end

    def _turn_end(self, text: str) -> int:
        stripped = text.rstrip()
        ends = [found.end() for found in self.control.finditer(stripped[-100:])]
        return len(stripped) if ends and ends[-1] == len(stripped[-100:]) else len(text)

    def _calls(self, turn: int) -> bool:
        return bool(self.messages[turn].get("tool_calls"))

    def _with(self, replaced: dict[int, Message]) -> list[Message]:
        return [replaced.get(number, message) for number, message in enumerate(self.messages)]

    def _attempt(self, messages: list[Message], prompt: bool = False) -> str:
        try:
            return self.write(messages, prompt)
        except StudioError:
            return ""  # a part of a conversation may be one that the template refuses


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer that follows a question.

    :param lead: everything between question and answer; its last ``learned`` characters are learned
    :param closing: what is learned after the answer
    """

    lead: str
    learned: int
    closing: str

    def find(self, said: str, text: str, start: int) -> Span | None:
        """The span of the first such answer from ``start``, or None."""
        at = text.find(self.lead + said + self.closing, start)
        if at < 0:
            return None
        begin = at + len(self.lead)
        return begin - self.learned, begin + len(said) + len(self.closing)


def frames(write: Write, control: re.Pattern[str]) -> tuple[Frame, Frame] | None:
    """The frames of an answer in the middle and at the end, from one conversation of stand-ins.

    Where a text shows them literally, the answers need not be asked for one by one: `Turns.span` writes
    the conversation anew for each. None when the template refuses the stand-ins or has no fixed frame.
    """
    said = [f"standin{word}" for word in ("one", "two", "three", "four")]
    messages = [
        {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(said)
    ]
    try:
        text = write(messages)
        turns = Turns(messages, write, control)
        found = [_frame(text, said[turn - 1], said[turn], turns.span(turn, text)) for turn in (1, 3)]
    except StudioError:
        return None
    middle, last = found
    return (middle, last) if middle and last else None


def _frame(text: str, question: str, answer: str, span: Span) -> Frame | None:
    if text.count(question) != 1 or text.count(answer) != 1:
        return None
    before, at = text.index(question) + len(question), text.index(answer)
    end = at + len(answer)
    if not before <= span[0] <= at or span[1] < end or before == at:
        return None
    return Frame(text[before:at], at - span[0], text[end : span[1]])


def framed(turns: Turns, text: str, wanted: list[int], known: tuple[Frame, Frame] | None) -> list[Span]:
    """The spans of these turns: by their frames where the text shows them, else one by one.

    :raises StudioError: when the template loses a turn
    """
    answers = [turn for turn, message in enumerate(turns.messages) if message["role"] == "assistant"]
    # A question that spells a frame out would be taken for an answer.
    sure = known is not None and all(text.count(frame.lead) <= len(answers) for frame in known)
    spans: list[Span] = []
    start = 0
    for turn in answers:
        frame = (
            known[turn == len(turns.messages) - 1]
            if known and sure and _is_plain(turns.messages, turn)
            else None
        )
        span = frame.find(turns.messages[turn]["content"], text, start) if frame else None
        if span is None and turn in wanted:
            span = turns.span(turn, text)
        # Past a turn that was not looked for, equal answers could be mistaken for one another.
        sure = sure and span is not None
        start = span[1] if span else start
        if span and turn in wanted:
            spans.append(span)
    return spans


def _is_plain(messages: list[Message], turn: int) -> bool:
    """Whether a turn answers a question and holds nothing but its text."""
    message = messages[turn]
    asked = turn > 0 and messages[turn - 1]["role"] == "user"
    return asked and bool(message["content"]) and message.keys() <= {"role", "content", "learn"}


def lost(what: str) -> StudioError:
    return StudioError("chat template", what, "Choose another base model, or mask that turn.")


def called(call: dict[str, Any]) -> str:
    """The name of the function that a tool call calls."""
    return str(call.get("function", call).get("name", ""))


def is_bare_call(message: Message) -> bool:
    """True for a turn that calls tools and says nothing."""
    return bool(message.get("tool_calls")) and not (message.get("content") or "").strip()


def _has_something(message: Message) -> bool:
    return bool(message.get("tool_calls") or (message.get("content") or "").strip())


def _unused(text: str) -> str:
    mark = "standin"
    while mark in text or mark.swapcase() in text:
        mark += "x"
    return mark


def _stand_in(message: Message, mark: str) -> tuple[Message, int, int]:
    """The message with ``mark`` for what it says, and how often a template may show it.

    Templates may drop what is said beside a tool call, but never its arguments.
    """
    if not message.get("tool_calls"):
        return {**message, "content": mark}, 1, 1
    calls = [_call_stand_in(call, mark) for call in message["tool_calls"]]
    shown = str(calls).count(mark)
    if is_bare_call(message):
        return {**message, "tool_calls": calls}, shown, shown
    return {**message, "tool_calls": calls, "content": mark}, shown, shown + 1


def _call_stand_in(call: dict[str, Any], mark: str) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments") or {mark: mark}
    arguments = mark if isinstance(arguments, str) else dict.fromkeys(arguments, mark)
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function
