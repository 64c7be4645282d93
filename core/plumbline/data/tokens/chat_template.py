"""From a row to the text its chat template writes, and which characters of it are learned.

A template's own ``{% generation %}`` marks decide where it has them, else
`plumbline.data.tokens.assistant_spans` asks it.
Control tokens that a row merely quotes never become control tokens.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from plumbline.data.rows import Message, Row
from plumbline.data.tokens import content_spans, template_check, template_sandbox
from plumbline.data.tokens.assistant_spans import (
    Frame,
    Span,
    Turns,
    Write,
    framed,
    frames,
    is_bare_call,
    is_plain,
)
from plumbline.errors import StudioError

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_COMMENTS = re.compile(r"\{#.*?#\}", re.DOTALL)
_PLANES = (0xF0000, 0x100000)  # private-use characters, 65,534 in each


@dataclass(frozen=True)
class Rendered:
    """A row as text; ``spans`` are the characters that are learned.

    Control tokens that the row quotes stand in ``text`` as private-use characters, one for each of
    theirs; ``unescape`` (for ``str.translate``) gives them back, and is empty when there are none.
    ``before`` and ``after`` are tokens around the text. A chat template writes its own. ``left_out`` names
    what the template leaves out of the learned turns, once for each turn.
    """

    text: str
    spans: list[Span]
    unescape: dict[int, str]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()


def render(row: Row, tokenizer: Any) -> tuple[str, list[Span]]:
    """The row's text and its learned spans.

    :param row: ``messages`` (with ``tools``, ``desirable``) or ``text``
    :raises StudioError: when the template cannot render the row, or loses what is to be learned
    """
    rendered = Renderer(tokenizer).row(row)
    return rendered.text.translate(rendered.unescape), rendered.spans


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that text must not be able to spell, by id."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    contents = {**dict(named), **{number: token.content for number, token in added if token.special}}
    return {number: content for number, content in contents.items() if content.strip()}


class Renderer:
    """One tokenizer's template and control tokens, looked up once for many rows.

    :param day: the day that templates write which write a day, as in ``2026-12-01``; empty means today
    """

    def __init__(self, tokenizer: Any, day: str = "") -> None:
        self.tokenizer = tokenizer
        self._day = day
        self.control = control_tokens(tokenizer)
        longest_first = sorted(self.control.values(), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._templates: dict[bool, str] = {}
        self._frames: tuple[Frame, Frame] | None = None
        self._framed = False
        # What the tokenizer itself puts before text; and an end, which not all of them put.
        alone, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
        starts = (n for n in range(len(whole)) if whole[n : n + len(alone)] == alone)
        self._before = tuple(whole[: next(starts, 0)])
        self._after = (tokenizer.eos_token_id,)

    def check(self, row: Row) -> None:
        """:raises StudioError: when the template for such rows is missing or does not work"""
        if "messages" in row:
            self._template(row.get("tools"))

    def row(self, row: Row) -> Rendered:
        """:raises StudioError: when the template cannot render the row, or loses what is to be learned"""
        learned = row.get("desirable") is not False
        if "messages" not in row:
            text, unescape = self._escape_control_tokens(self._without_ends(row["text"]))
            spans = [(0, len(text))] if learned else []
            return Rendered(text, spans, unescape, self._before, self._after)
        escaped, unescape = self._escape_control_tokens([row["messages"], row.get("tools")])
        text, spans, left_out = self._conversation(escaped[0], escaped[1], learned)
        return Rendered(text, spans, unescape, left_out=left_out)

    def prompt(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> Rendered:
        """A conversation that the model is to continue; nothing of it is learned."""
        (messages, tools), unescape = self._escape_control_tokens([messages, tools])
        refusals: list[StudioError] = []
        for spelled in _spellings(_cleaned(messages)):
            try:
                text = self._write(spelled, tools, prompt=True)[0]
                turns = self._turns(spelled, tools, text)
                for turn in (turn for turn, message in enumerate(spelled) if message.get("tool_calls")):
                    turns.left_out(turn, [(0, len(text))])
                return Rendered(text, [], unescape)
            except StudioError as error:
                refusals.append(error)
        raise refusals[0]

    def text(self, text: str) -> Rendered:
        """A plain text that the model is to continue; nothing of it is learned."""
        text, unescape = self._escape_control_tokens(text)
        return Rendered(text, [], unescape, self._before)

    def _without_ends(self, text: str) -> str:
        # A text may bring the tokens that are put around it anyway.
        start = "".join(self.control.get(token, "") for token in self._before)
        return text.removeprefix(start).removesuffix(self.tokenizer.eos_token)

    def _conversation(
        self, messages: list[Message], tools: Any, learned: bool
    ) -> tuple[str, list[Span], tuple[str, ...]]:
        learned_turns = [
            turn
            for turn, message in enumerate(messages)
            if learned and message["role"] == "assistant" and message.get("learn") is not False
        ]
        refusals: list[StudioError] = []
        for spelled in _spellings(_cleaned(messages)):
            try:
                return self._learned(spelled, tools, learned_turns)
            except StudioError as error:
                refusals.append(error)
        raise refusals[0]

    def _learned(
        self, messages: list[Message], tools: Any, learned_turns: list[int]
    ) -> tuple[str, list[Span], tuple[str, ...]]:
        marked = _is_marked(self._template(tools))
        text, marks = self._write(messages, tools, marks=marked)
        turns = self._turns(messages, tools, text)
        if marked:
            return text, *_kept(marks, turns, learned_turns)
        return text, *framed(turns, learned_turns, self._framing(tools, turns.write))

    def _turns(self, whole: list[Message], tools: Any, text: str) -> Turns:
        def write(messages: list[Message], prompt: bool = False) -> str:
            return self._write(messages, tools, prompt)[0]

        return Turns(whole, text, write, self._control, content_spans.literals(self._template(tools)))

    def _write(
        self, messages: list[Message], tools: Any, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        """What the template writes and, when asked for, the spans that it marks itself."""
        special_tokens = self.tokenizer.special_tokens_map
        try:
            template = self._template(tools)
            return template_sandbox.written(
                template, messages, tools, special_tokens, prompt=prompt, marks=marks, day=self._day
            )
        except template_sandbox.Exceeded as exceeded:
            raise StudioError("chat template", str(exceeded), template_check.FIX) from exceeded
        except template_sandbox.Failed as failed:
            raise StudioError("chat template", f"cannot render this conversation: {failed}"[:300]) from failed

    def _template(self, tools: Any) -> str:
        """The template's source, checked before anything is rendered with it."""
        if bool(tools) not in self._templates:
            self._templates[bool(tools)] = template_check.check_template(self.tokenizer, bool(tools))
        return self._templates[bool(tools)]

    def _framing(self, tools: Any, write: Write) -> tuple[Frame, Frame] | None:
        """What the template writes around answers; with tools it may be another, so each row looks itself."""
        if tools:
            return None
        if not self._framed:
            self._frames, self._framed = frames(write, self._control), True
        return self._frames

    def _escape_control_tokens(self, value: Any) -> tuple[Any, dict[int, str]]:
        """The value with quoted control tokens as private-use characters, and the way back."""
        if not any(self._control.search(text) for text in _texts(value)):
            return value, {}
        used = max("".join(_texts(value)), default="")
        plane = _PLANES[_PLANES[0] <= ord(used) < _PLANES[1]]  # one that the row does not use itself
        alphabet = enumerate(sorted(set("".join(self.control.values()))), plane)
        unescape = dict(alphabet)
        private_use = {character: number for number, character in unescape.items()}

        def escape(text: str) -> str:
            return self._control.sub(
                lambda match: "".join(chr(private_use[character]) for character in match[0]), text
            )

        return _each_text(value, escape), unescape


@lru_cache(maxsize=16)
def _is_marked(template: str) -> bool:
    return bool(_MARKS.search(_COMMENTS.sub("", template)))


def _kept(marks: list[Span], turns: Turns, learned_turns: list[int]) -> tuple[list[Span], tuple[str, ...]]:
    """The template's marks but those in turns that are not to be learned, and what is left out of them."""
    if not learned_turns:
        return [], ()
    masked = [
        span
        for turn, message in enumerate(turns.messages)
        if message["role"] == "assistant" and turn not in learned_turns
        for span in turns.spans(turn)
    ]
    learned_marks = [
        (start, end)
        for start, end in marks
        if start < end and not any(start < last and end > first for first, last in masked)
    ]
    if _all_there(learned_marks, turns, learned_turns):
        return learned_marks, ()
    return learned_marks, tuple(
        what for turn in learned_turns for what in turns.left_out(turn, learned_marks)
    )


def _all_there(marks: list[Span], turns: Turns, learned_turns: list[int]) -> bool:
    """Whether plain answers stand in the marks, word for word: a quick look that most rows pass."""
    marked_text, at = "".join(turns.text[start:end] for start, end in marks), 0
    for turn in learned_turns:
        if not is_plain(turns.messages, turn):
            return False
        answer = turns.messages[turn]["content"].strip()
        position = marked_text.find(answer, at)
        if position < 0:
            return False
        at = position + len(answer)
    return True


def _cleaned(messages: list[Message]) -> list[Message]:
    """As templates expect them: no keys of ours, and no key without a value."""

    def means_something(key: str, value: Any) -> bool:
        return key != "learn" and value is not None and (key != "tool_calls" or bool(value))

    return [{key: value for key, value in each.items() if means_something(key, value)} for each in messages]


def _spellings(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation, then with other words for "says nothing" beside a tool call.

    Some templates look for content that is missing, or None, or empty, before they write the call; some
    want its arguments as JSON text.
    """
    if not any(message.get("tool_calls") for message in messages):
        yield messages
        return
    for spelled in (messages, [_with_text_arguments(each) for each in messages]):
        yield spelled
        if any(is_bare_call(message) for message in spelled):
            yield [_without_content(each) if is_bare_call(each) else each for each in spelled]
            for nothing in ("", None):
                yield [{**each, "content": nothing} if is_bare_call(each) else each for each in spelled]


def _with_text_arguments(message: Message) -> Message:
    def changed(call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        function = {**function, "arguments": text}
        return {**call, "function": function} if "function" in call else function

    calls = message.get("tool_calls")
    return {**message, "tool_calls": [changed(call) for call in calls]} if calls else message


def _without_content(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "content"}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(each, change) for key, each in value.items()}
    return [_each_text(each, change) for each in value] if isinstance(value, (list, tuple)) else value
