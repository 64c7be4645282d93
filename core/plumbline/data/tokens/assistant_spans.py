"""Where in a rendered conversation the assistant speaks, for templates that do not mark it.

Only the template knows, so it is asked: it writes the conversation up to a turn and with it, and the
difference is the turn. Where it writes a turn differently once others follow,
`plumbline.data.tokens.content_spans` says which characters are the turn's.
"""

import json
import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy

from plumbline.data.rows import Message
from plumbline.data.tokens import content_spans
from plumbline.data.tokens.content_spans import Trace
from plumbline.errors import StudioError

Span = tuple[int, int]
REASONING, WORDS = "reasoning", "words beside a tool call"  # what a template may leave out of a turn


class Write(Protocol):
    """What a template writes. :raises StudioError: when it refuses the messages"""

    def __call__(self, messages: list[Message], prompt: bool = False) -> str: ...


@dataclass(frozen=True)
class Turns:
    """One conversation and its template.

    :param text: the whole conversation as the template writes it
    :param control: a pattern for any of the tokenizer's control tokens
    :param literals: of what the template looks for in texts
    """

    messages: list[Message]
    text: str
    write: Write
    control: re.Pattern[str]
    literals: re.Pattern[str]

    def spans(self, turn: int) -> list[Span]:
        """From the end of the header that asks for the answer to the end of the turn.

        Most turns are one piece. A template may put a tool's result between a call and the words beside it.
        Whitespace after the end-of-turn token belongs to the next turn.

        :raises StudioError: when the template loses the turn
        """
        shown = self._trace.text if self._trace else self.text
        is_last = turn == len(self.messages) - 1
        before = self._attempt(self._shown[:turn], prompt=True) if turn else ""
        after = shown if is_last else self._attempt(self._shown[: turn + 1])
        if before and after.startswith(before) and shown.startswith(after):
            spans = [(len(before), max(len(before), self._turn_end(after)))]
        elif self._trace is None:
            raise lost("rewrites what is said, so that an assistant turn cannot be found in it")
        else:
            spans = self._pieces(self._trace, turn, before, after)
        answer = "".join(self.text[start:end] for start, end in spans).strip()
        if _has_something(self.messages[turn]) and (not answer or self.control.fullmatch(answer)):
            raise lost("drops or rewrites an assistant turn")
        return spans

    def left_out(self, turn: int, spans: list[Span]) -> list[str]:
        """What of a turn is not in its spans: its reasoning, or its words beside a tool call.

        :raises StudioError: when that is a tool call, or what it answers
        """
        message = self.messages[turn]
        spoken_text = "".join(self.text[start:end] for start, end in spans)
        missing = set(self._missing(turn, spans, spoken_text))
        calls = message.get("tool_calls") or []
        for number, call in enumerate(calls):
            if {("name", number), ("call", number)} & missing or not _scalars_in(call, spoken_text):
                which = f"{called(call)}, {number + 1} of {len(calls)}" if len(calls) > 1 else called(call)
                raise lost(f"leaves out a tool call of the assistant ({which})", len(calls) > 1)
        kinds = {kind for kind, _ in missing}
        if "content" in kinds and not calls:
            raise lost("drops or rewrites an assistant turn")
        return [name for kind, name in (("reasoning", REASONING), ("content", WORDS)) if kind in kinds]

    def _missing(self, turn: int, spans: list[Span], spoken_text: str) -> Iterator[tuple[str, int]]:
        """Kind and number of the turn's parts that are not whole in its spans."""
        if self._trace is None:
            yield from _not_found(self.messages[turn], spoken_text)
            return
        inside = numpy.zeros(len(self._trace.origin), bool)
        for start, end in spans:
            inside[start:end] = True
        origin = self._trace.origin[inside]
        present = numpy.bincount(origin[origin >= 0], minlength=len(self._trace.parts))
        for number, part in enumerate(self._trace.parts):
            if part.turn == turn and present[number] < self._trace.put[part]:
                yield part.kind, part.call

    @cached_property
    def _trace(self) -> Trace | None:
        return content_spans.trace(self.messages, self.text, self.literals, self._attempt)

    @property
    def _shown(self) -> list[Message]:
        return self._trace.messages if self._trace else self.messages

    def _pieces(self, trace: Trace, turn: int, before: str, after: str) -> list[Span]:
        """The turn's stretches between what others say, with its header's end and what closes each.

        :param before: what is written up to the turn, to ask for it
        :param after: what is written up to its end
        """
        turns = trace.turns(trace.origin)
        own = numpy.flatnonzero(turns == turn)
        if not len(own):
            return []
        others = numpy.flatnonzero((turns >= 0) & (turns != turn))
        others_before = numpy.searchsorted(others, own)  # how many of the others stand before
        alone = numpy.flatnonzero(trace.turns(trace.read(after)) == turn)
        spans: list[Span] = []
        ends = [*numpy.flatnonzero(numpy.diff(others_before)).tolist(), len(own) - 1]
        for number, last in enumerate(ends):
            first = 0 if number == 0 else ends[number - 1] + 1
            start = int(own[first])
            if number == 0:
                start = self._start(
                    trace,
                    turn,
                    before,
                    int(others[others_before[0] - 1]) + 1 if others_before[0] else 0,
                    start,
                )
            end = int(own[last]) + 1
            tail = trace.text[
                end : int(others[others_before[last]]) if others_before[last] < len(others) else None
            ]
            if len(alone) == len(own):
                stop = alone[last + 1] if last + 1 < len(alone) else self._turn_end(after)
                closing = after[alone[last] + 1 : stop]
            else:  # it is written differently alone: only how it ends is known
                closing = after[alone[-1] + 1 : self._turn_end(after)] if len(alone) else ""
            spans.append((start, end + self._closed(closing, tail)))
        return spans

    def _start(self, trace: Trace, turn: int, before: str, previous: int, first: int) -> int:
        """Where the header ends that stands between what was said before and the turn's first character."""
        gap = trace.text[previous:first]
        if before:
            content_places = numpy.flatnonzero(trace.read(before) >= 0)
            asked = before[int(content_places[-1]) + 1 if len(content_places) else 0 :]
            if gap.startswith(asked):
                return previous + len(asked)
            header = before.removeprefix(self._attempt(trace.messages[:turn]))
        else:
            # Nothing precedes the turn: its header is what asking for an answer adds to a question.
            question = [{"role": "user", "content": "?"}]
            header = self._attempt(question, prompt=True).removeprefix(self._attempt(question))
        # As much of the header as stands there: it may ask for a thought that the turn does not have.
        for length in range(len(header), 0, -1):
            if length == len(header) or header[length - 1] in ">]\n":
                at = gap.rfind(header[:length])
                if at >= 0:
                    return previous + at + length
        return first

    def _closed(self, closing: str, tail: str) -> int:
        """How many characters of ``tail`` close the turn.

        As the last turn it may end differently (another token, or one more): then what both share up to
        a control token, or the token that stands in its place.
        """
        shared = os.path.commonprefix([closing, tail])
        if shared == closing:
            return len(closing)
        *_, last = [0, *(token.end() for token in self.control.finditer(shared))]
        if last:
            return last
        following = self.control.search(tail)
        if following and (
            closing.startswith(tail[: following.start()]) or not tail[: following.start()].strip()
        ):
            return following.end()
        return 0

    def _turn_end(self, text: str) -> int:
        stripped = text.rstrip()
        ends = [token.end() for token in self.control.finditer(stripped[-100:])]
        return len(stripped) if ends and ends[-1] == len(stripped[-100:]) else len(text)

    def _attempt(self, messages: list[Message], prompt: bool = False) -> str:
        try:
            return self.write(messages, prompt)
        except StudioError:
            return ""  # a part of a conversation may be one that the template refuses


def _not_found(message: Message, text: str) -> Iterator[tuple[str, int]]:
    """Kind and number of the parts of a turn that a text does not hold as they are."""
    thoughts = [message[name] for name in content_spans.REASONING if message.get(name)][:1]
    if any(thought.strip() not in text for thought in thoughts):
        yield "reasoning", 0
    if (message.get("content") or "").strip() not in text:
        yield "content", 0
    for number, call in enumerate(message.get("tool_calls") or []):
        if called(call) not in text:
            yield "name", number


def _scalars_in(call: Message, text: str) -> bool:
    """Whether numbers, truths and nulls among a call's arguments stand in a text."""

    def scalars(value: Any) -> Iterator[Any]:
        if isinstance(value, (dict, list)):
            for each in value.values() if isinstance(value, dict) else value:
                yield from scalars(each)
        elif not isinstance(value, str):
            yield value

    arguments = call.get("function", call).get("arguments")
    return all(json.dumps(scalar) in text or str(scalar) in text for scalar in scalars(arguments or {}))


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer that follows a question.

    :param lead: everything between question and answer; its last ``learned`` characters are learned
    :param closing: what is learned after the answer
    """

    lead: str
    learned: int
    closing: str

    def find(self, answer: str, text: str, start: int) -> Span | None:
        """The span of the first such answer from ``start``, or None."""
        at = text.find(self.lead + answer + self.closing, start)
        if at < 0:
            return None
        begin = at + len(self.lead)
        return begin - self.learned, begin + len(answer) + len(self.closing)


def frames(write: Write, control: re.Pattern[str]) -> tuple[Frame, Frame] | None:
    """The frames of an answer in the middle and at the end, from one conversation of stand-ins.

    Where a text shows them literally, the answers need not be asked for one by one: `Turns.spans` writes
    the conversation anew for each. None when the template refuses the stand-ins or has no fixed frame.
    """
    stand_ins = [f"standin{word}" for word in ("one", "two", "three", "four")]
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": text}
        for number, text in enumerate(stand_ins)
    ]
    try:
        text = write(messages)
        turns = Turns(messages, text, write, control, re.compile("(?!)"))
        answer_frames = [
            _frame(text, stand_ins[turn - 1], stand_ins[turn], turns.spans(turn)) for turn in (1, 3)
        ]
    except StudioError:
        return None
    middle, last = answer_frames
    return (middle, last) if middle and last else None


def _frame(text: str, question: str, answer: str, spans: list[Span]) -> Frame | None:
    if len(spans) != 1 or text.count(question) != 1 or text.count(answer) != 1:
        return None
    (span,) = spans
    before, at = text.index(question) + len(question), text.index(answer)
    end = at + len(answer)
    if not before <= span[0] <= at or span[1] < end or before == at:
        return None
    return Frame(text[before:at], at - span[0], text[end : span[1]])


def framed(
    turns: Turns, learned_turns: list[int], known: tuple[Frame, Frame] | None
) -> tuple[list[Span], tuple[str, ...]]:
    """The spans of these turns, and what is left out of them; see `Turns.left_out`.

    By their frames where the text shows them, else one by one.

    :raises StudioError: when the template loses a turn
    """
    text = turns.text
    answers = [turn for turn, message in enumerate(turns.messages) if message["role"] == "assistant"]
    # A question that spells a frame out would be taken for an answer.
    sure = known is not None and all(text.count(frame.lead) <= len(answers) for frame in known)
    spans: list[Span] = []
    left_out: list[str] = []
    start = 0
    for turn in answers:
        frame = (
            known[turn == len(turns.messages) - 1]
            if known and sure and is_plain(turns.messages, turn)
            else None
        )
        span = frame.find(turns.messages[turn]["content"], text, start) if frame else None
        # Past a turn that was not looked for, equal answers could be mistaken for one another.
        sure = sure and (span is not None or turn in learned_turns)
        if turn not in learned_turns:
            turn_spans = [span] if span else []
        elif span is not None:
            turn_spans = [span]
            spans.append(span)
        else:
            turn_spans = turns.spans(turn)
            left_out += turns.left_out(turn, turn_spans)
            spans += turn_spans
            sure = sure and bool(turn_spans)
        start = turn_spans[-1][1] if turn_spans else start
    return spans, tuple(left_out)


def is_plain(messages: list[Message], turn: int) -> bool:
    """Whether a turn answers a question and holds nothing but its text."""
    message = messages[turn]
    asked = turn > 0 and messages[turn - 1]["role"] == "user"
    return asked and bool(message.get("content")) and message.keys() <= {"role", "content", "learn"}


def lost(what: str, several_calls: bool = False) -> StudioError:
    apart = "Give each call a turn of its own, with its result after it; or choose another base model."
    fix = apart if several_calls else "Choose another base model, or mask that turn."
    return StudioError("chat template", what, fix)


def called(call: dict[str, Any]) -> str:
    """The name of the function that a tool call calls."""
    return str(call.get("function", call).get("name", ""))


def is_bare_call(message: Message) -> bool:
    """True for a turn that calls tools and says nothing."""
    return bool(message.get("tool_calls")) and not (message.get("content") or "").strip()


def _has_something(message: Message) -> bool:
    return bool(message.get("tool_calls") or (message.get("content") or "").strip())
