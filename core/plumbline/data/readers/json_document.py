"""A JSON document to records: a list of objects, an object that holds one, or objects one after the other.

Also what pandas writes. Every record keeps the line it began on; memory holds one block and one
record, whatever the size of the file.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from plumbline.data.errors import Problem, kind_of
from plumbline.data.readers.json_lines import DuplicateKey, Record, unique
from plumbline.data.readers.limits import CHUNK, MAX_DEPTH, MAX_LINE
from plumbline.errors import StudioError

MAX_OBJECT = 64 * 1024**2  # characters of an object that is a table, which is read as a whole
_TURN = frozenset(("role", "from", "speaker", "author"))


class NotJson(ValueError):
    """A value that JSON does not have."""


def parse_document(path: Path, name: str) -> Iterator[Record | Problem]:
    """:raises StudioError: when it is not JSON, with line and column, or holds no list of objects"""
    with open(path, encoding="utf-8-sig", newline="") as file:
        stream = _Stream(file, name)
        start = stream.peek()
        if start == "[":
            yield from stream.items()
        elif start == "{" and stream.is_followed():
            while stream.peek() == "{":
                yield Record(stream.line, stream.value())
        elif start == "{":
            yield from stream.lists()
        elif start:
            raise StudioError(
                f"{name} line {stream.line}", "is not valid JSON: expected [ or {", "See its first line."
            )
        if stream.peek():
            raise stream.broken(json.JSONDecodeError("text after the end", stream.text, stream.at))


def _refuse(word: str) -> Any:
    raise NotJson(f"holds {word[:20]}, which JSON does not have")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


class _Stream:
    """JSON text read a block at a time; parses one value after the other at its position."""

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at, self.line = "", 0, 1
        self.passed = 0
        self.decoder = json.JSONDecoder(object_pairs_hook=unique, parse_constant=_refuse, parse_float=_float)
        self.whole = False

    def fill(self) -> bool:
        """Read on; False at the end of the file. What was parsed is forgotten."""
        block = self.file.read(CHUNK)
        self.text, self.at = self.text[self.at :] + block, 0
        self.whole = not block
        return bool(block)

    def skip(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count
        self.passed += count

    def peek(self, separators: str = "") -> str:
        """The next character that is not space; empty at the end."""
        while True:
            while self.at < len(self.text):
                character = self.text[self.at]
                if character not in " \t\r\n" + separators:
                    return character
                self.skip(1)
            if not self.fill():
                return ""

    def value(self) -> Any:
        """The value at the position. :raises StudioError: with line and column"""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                # A number may go on in the next block.
                if end < len(self.text) or self.whole or not self.fill():
                    self.skip(end - self.at)
                    return value
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > MAX_LINE:
                    what = f"begins a record longer than {MAX_LINE // 1024**2} MB"
                    raise self.refused(what, "Break it into rows.") from None
                if not self.fill():
                    raise self.broken(error) from None
            except DuplicateKey as error:
                raise self.refused(f"names the key {str(error)!r:.80} twice", "Rename one.") from None
            except UnicodeDecodeError:
                raise
            except RecursionError:
                raise self.refused(f"is nested deeper than {MAX_DEPTH}", "Flatten it.") from None
            except ValueError as error:
                what = str(error) if isinstance(error, NotJson) else "holds a number that is too large"
                raise self.refused(what, "Write it as a text, or leave it out.") from None

    def refused(self, what: str, fix: str) -> StudioError:
        return StudioError(f"{self.name} line {self.line}", what, fix)

    def broken(self, error: json.JSONDecodeError) -> StudioError:
        line = self.line + self.text.count("\n", self.at, error.pos)
        column = error.pos - self.text.rfind("\n", 0, error.pos)
        cut = (
            " (file cut off?)" if error.pos >= len(self.text.rstrip()) or "Unterminated" in error.msg else ""
        )
        return StudioError(
            f"{self.name} line {line}",
            f"is not valid JSON at column {column}: {error.msg}{cut}",
            "Mend that line; a file with one object per line should end in .jsonl.",
        )

    def ahead(self, offset: int = 0) -> tuple[Any, str]:
        """The value at the position and the character after it, if both come soon; nothing is passed."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at + offset)
            except (ValueError, RecursionError):
                value, end = None, len(self.text)
            after = self.text[end : end + 4096].lstrip()[:1]
            if after or len(self.text) - self.at >= CHUNK or not self.fill():
                return value, after

    def is_followed(self) -> bool:
        """Whether the object at the position is followed by another."""
        value, after = self.ahead()
        return value is not None and after == "{"

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise self.broken(json.JSONDecodeError(f"expected {character!r}", self.text, self.at))
        self.skip(1)

    def items(self) -> Iterator[Record | Problem]:
        """The objects of the list at the position."""
        self.expect("[")
        first = True
        while (character := self.peek()) != "]":
            if not character:
                raise self.broken(json.JSONDecodeError("the list does not end", self.text, self.at))
            if not first:
                self.expect(",")
                if self.peek() == "]":
                    raise self.broken(json.JSONDecodeError("a comma before ]", self.text, self.at))
            first = False
            self.peek()
            line, value = self.line, self.value()
            if type(value) is dict:
                yield Record(line, value)
            else:
                yield Problem(line, f"is {kind_of(value)}, expected an object")
        self.skip(1)

    def lists(self) -> Iterator[Record | Problem]:
        """The one list of objects that an object holds; what else it holds is passed over.

        :raises StudioError: when there is none, or more than one
        """
        self.expect("{")
        list_keys: list[str] = []
        parts: dict[str, Any] = {}
        size = 0
        while (character := self.peek(",")) != "}":
            if character != '"':
                raise self.broken(json.JSONDecodeError("expected a name in quotes", self.text, self.at))
            key = self.value()
            self.expect(":")
            if self.peek() == "[" and self._holds_records():
                list_keys.append(key)
                if len(list_keys) == 1:
                    yield from self.items()
                    continue
                what = f"holds several lists of objects ({', '.join(list_keys)})"
                raise StudioError(self.name, what, "Save each as a file of its own.")
            line, before, value = self.line, self.passed, self.value()
            size += self.passed - before
            if size > MAX_OBJECT:
                raise self.refused(f"is one object of more than {MAX_OBJECT // 1024**2} MB", WRAP)
            parts[key] = line, value
        self.skip(1)
        if not list_keys:
            yield from _table(parts, self.name)

    def _holds_records(self) -> bool:
        """Whether the list at the position has objects in it, and they are not turns of a conversation."""
        inside = self.text[self.at + 1 : self.at + 4096]
        while not inside.strip() and self.fill():
            inside = self.text[self.at + 1 : self.at + 4096]
        if inside.lstrip()[:1] != "{":
            return False
        first, _ = self.ahead(1 + len(inside) - len(inside.lstrip()))
        return not (isinstance(first, dict) and _TURN & first.keys())


WRAP = "Wrap the rows in [ ], or write one object per line as .jsonl."


def _table(parts: dict[str, tuple[int, Any]], name: str) -> Iterator[Record]:
    """The rows of an object that is a table, however it is laid out.

    :raises StudioError: when it is not one
    """
    values = {key: value for key, (_, value) in parts.items()}
    names, cells = values.get("columns"), values.get("data")
    if _lists([names, cells]) and names and cells and _lists(cells):
        for number, row in enumerate(cells, start=1):
            yield Record(number, dict(zip(names, row, strict=False)))
    elif values and all(isinstance(value, dict) and value for value in values.values()):
        first = next(iter(values.values()))
        if all(key.isdigit() for key in first) and all(first.keys() == v.keys() for v in values.values()):
            for number, key in enumerate(first, start=1):
                yield Record(number, {column: value[key] for column, value in values.items()})
            return
        for line, value in parts.values():
            yield Record(line, value)
    else:
        columns = list(values.values())
        if len(columns) < 2 or not _lists(columns) or len({len(column) for column in columns}) > 1:
            what = "is one object, expected a list of objects (or an object that holds one)"
            raise StudioError(f"{name} line 1", what, WRAP)
        for number, row in enumerate(zip(*columns, strict=True), start=1):
            yield Record(number, dict(zip(values, row, strict=True)))


def _lists(values: list[Any]) -> bool:
    return all(isinstance(value, list) for value in values)
