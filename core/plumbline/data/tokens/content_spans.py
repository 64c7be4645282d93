"""Which characters of a rendered conversation come from which part of which turn.

The conversation is written once more with a stand-in for each character that somebody says. Where a
template writes the same but for these, each of them tells the turn and the part that it comes from,
wherever the template has put it and whatever it has put around it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy

from plumbline.data.rows import Message

REASONING = ("reasoning_content", "thinking", "reasoning")
# Rare ideographs: letters that print as they are, have no case, and are nothing to any template.
_LETTERS = (
    *((0x20000, 0x2A6DF), (0x2A700, 0x2B738), (0x2B740, 0x2B81D), (0x2B820, 0x2CEA1)),
    *((0x2CEB0, 0x2EBE0), (0x30000, 0x3134A)),
)
_PRIVATE = (
    0xF0000  # from here on, a control token that the row quotes; see `plumbline.data.tokens.chat_template`
)
_ESCAPED = frozenset("\"\\'<>&")  # what JSON and HTML write otherwise
_THOUGHT = re.compile(
    r"\A((?:(?!<think>).)*?)</think>|<think>(.*?)</think>"
    r"|\[THINK\](.*?)\[/THINK\]|<\|channel>thought\n(.*?)<channel\|>",
    re.DOTALL,
)
_LEVELS = 3


class Part(NamedTuple):
    """A part of what a turn holds. ``kind``: content, reasoning, name or call (a call's arguments)."""

    turn: int
    kind: str
    call: int = 0


@dataclass(frozen=True)
class Trace:
    """A conversation in stand-ins.

    :param messages: with stand-ins
    :param text: what the template writes of these; as long as the plain text, character for character
    :param origin: for each character of ``text`` the number of its part; -1 where the template wrote it
    :param put: how many stand-ins each part has
    """

    messages: list[Message]
    text: str
    origin: Any
    parts: list[Part]
    put: Counter[Part]
    alphabet: "_Alphabet"

    def turns(self, origin: Any) -> Any:
        """For each character the number of its turn; -1 where the template wrote it."""
        table = numpy.array([*(part.turn for part in self.parts), -1])
        return table[origin]

    def read(self, text: str) -> Any:
        """``origin`` of another text that the template has written of such messages."""
        return self.alphabet.read(text)[0]


def trace(messages: list[Message], text: str, literals: re.Pattern[str], write: Any) -> Trace | None:
    """Follow a conversation through its template; None when it writes something else for stand-ins.

    :param text: what the template writes of the messages
    :param literals: what it looks for in texts, which therefore stays
    :param write: what it writes of others, empty when it refuses them
    """
    for level in range(_LEVELS):
        alphabet = _Alphabet(set(text))
        changed = [
            _standing_in(turn, message, alphabet, literals, level) for turn, message in enumerate(messages)
        ]
        shown = write(changed)
        if len(shown) == len(text):
            origin, written = alphabet.read(shown)
            if numpy.array_equal(written, _codes(text)):
                return Trace(changed, shown, origin, alphabet.parts, alphabet.put, alphabet)
    return None


@lru_cache(maxsize=16)
def literals(template: str) -> re.Pattern[str]:
    """The tags and phrases in a template's source: it may look for them in what is said."""
    from jinja2 import Environment

    strings = (value[1:-1] for _, kind, value in Environment().lex(template) if kind == "string")
    strings_written = {string.replace("\\n", "\n").strip() for string in strings}
    phrases = (
        phrase for phrase in strings_written if 2 < len(phrase) <= 60 and not re.fullmatch(r"[\w.]+", phrase)
    )
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)", re.IGNORECASE)


class _Alphabet:
    """Stand-ins: each for one character of one part."""

    def __init__(self, used: set[str]) -> None:
        self.parts: list[Part] = []
        self.put: Counter[Part] = Counter()
        self._free = (code for first, last in _LETTERS for code in range(first, last + 1))
        if not used.isdisjoint(_letters()):
            self._free = (code for code in self._free if chr(code) not in used)
        self._codes: list[int] = []
        self._plain: list[int] = []
        self._part: list[int] = []
        self._tables: dict[Part, dict[int, int]] = {}

    def know(self, part: Part, characters: set[str]) -> None:
        """Give a part its stand-ins, in the order of its characters: templates may sort by them.

        Where there are no more of them, the rest stands for itself.
        """
        if part not in self._tables:
            self.parts.append(part)
        plain = list(map(ord, sorted(sorted(characters), key=str.lower)))
        codes = list(islice(self._free, len(plain)))
        self._tables[part] = dict(zip(plain, codes, strict=False))
        self._codes += codes
        self._plain += plain[: len(codes)]
        self._part += [self.parts.index(part)] * len(codes)

    def write(self, part: Part, text: str) -> str:
        table = self._tables[part]
        self.put[part] += sum(map(table.__contains__, map(ord, text)))
        return text.translate(table)

    def read(self, text: str) -> tuple[Any, Any]:
        """For each character the number of its part or -1, and the code of what it stands for."""
        codes = _codes(text)
        if not self._codes:
            return numpy.full(len(codes), -1), codes
        known = numpy.array(self._codes, numpy.uint32)
        at = numpy.minimum(numpy.searchsorted(known, codes), len(known) - 1)
        hit = known[at] == codes
        origin = numpy.where(hit, numpy.array(self._part)[at], -1)
        for number, part in enumerate(self.parts):
            if part.kind == "name":  # a function's name may stand in its result again
                again = numpy.flatnonzero(origin == number)[self.put[part] :]
                origin[again] = -1
        return origin, numpy.where(hit, numpy.array(self._plain, numpy.uint32)[at], codes)


@lru_cache(maxsize=1)
def _letters() -> frozenset[str]:
    return frozenset(chr(code) for first, last in _LETTERS for code in range(first, last + 1))


def _codes(text: str) -> Any:
    return numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), numpy.uint32)


def _standing_in(
    turn: int, message: Message, alphabet: _Alphabet, literals: re.Pattern[str], level: int
) -> Message:
    """A message with stand-ins: fewer of them at a higher level, for templates that feel them."""
    if level == _LEVELS - 1 and message["role"] not in ("assistant", "tool"):
        return message
    changed = dict(message)

    def stand_in(kind: str, texts: list[str], call: int = 0) -> Iterator[str]:
        part = Part(turn, kind, call)
        pieces = [list(_pieces(text, literals)) for text in texts]
        characters = set("".join(piece for each in pieces for piece, is_literal in each if not is_literal))
        chosen = {character for character in characters if _stands(character, level)}
        if not chosen and level == 0:  # nothing but signs: then these
            pieces = [[(text, False)] for text in texts]
            chosen = {character for text in texts for character in text if not character.isspace()}
        alphabet.know(part, chosen)
        for each in pieces:
            yield "".join(piece if is_literal else alphabet.write(part, piece) for piece, is_literal in each)

    content = message.get("content")
    if isinstance(content, str):
        pieces = _thoughts(content) if message["role"] == "assistant" else [("content", content)]
        written = {
            kind: stand_in(kind, [text for piece_kind, text in pieces if piece_kind == kind])
            for kind in ("reasoning", "content")
        }
        changed["content"] = "".join(next(written[kind]) if kind else text for kind, text in pieces)
    for name in reversed(REASONING):
        if isinstance(message.get(name), str) and message[name]:
            alphabet.put[Part(turn, "reasoning", 1)] = 0  # one thought, however many names the row gives it
            (changed[name],) = stand_in("reasoning", [message[name]], 1)
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            _call_standing_in(call, number, stand_in, level)
            for number, call in enumerate(message["tool_calls"])
        ]
    return changed


def _call_standing_in(call: Message, number: int, stand_in: Any, level: int) -> Message:
    function = dict(call.get("function", call))
    if level == 0:
        (function["name"],) = stand_in("name", [function.get("name", "")], number)
    arguments = function.get("arguments")
    texts = list(_texts(arguments, level == 0))
    written = iter(list(stand_in("call", texts, number)))
    function["arguments"] = _with_texts(arguments, written, level == 0)
    return {**call, "function": function} if "function" in call else function


def _texts(value: Any, keys: bool) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            if keys:
                yield key
            yield from _texts(each, keys)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, keys)


def _with_texts(value: Any, written: Iterator[str], keys: bool) -> Any:
    """The value with other texts, in the order of `_texts`."""
    if isinstance(value, str):
        return next(written)
    if isinstance(value, dict):
        pairs = [
            (next(written) if keys else key, _with_texts(each, written, keys)) for key, each in value.items()
        ]
        return dict(pairs)
    return [_with_texts(each, written, keys) for each in value] if isinstance(value, list) else value


def _pieces(text: str, literals: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and whether each stays as it is."""
    last = 0
    for literal in literals.finditer(text):
        yield text[last : literal.start()], False
        yield literal[0], True
        last = literal.end()
    yield text[last:], False


def _thoughts(content: str) -> list[tuple[str, str]]:
    """An answer in pieces: ``reasoning`` and ``content``; the tags around thoughts are neither."""
    pieces, last = [], 0
    for thought in _THOUGHT.finditer(content):
        number = thought.lastindex or 1
        pieces += [
            ("content", content[last : thought.start()]),
            ("", content[thought.start() : thought.start(number)]),
            ("reasoning", thought[number]),
            ("", content[thought.end(number) : thought.end()]),
        ]
        last = thought.end()
    return [*pieces, ("content", content[last:])]


@lru_cache(maxsize=16_384)
def _stands(character: str, level: int) -> bool:
    if level:
        return character.isalnum()
    is_text = character.isprintable() or ord(character) >= _PRIVATE
    return is_text and not character.isspace() and character not in _ESCAPED
