"""JSON to records: one object a line, a list of objects, or an object that holds such a list.

Every record keeps the line it began on. Memory holds one block, whatever the size of the file.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import orjson

from core.data.errors import Problem, kind_of
from core.data.files import CHUNK, MAX_LINE
from core.errors import StudioError

MAX_DEPTH = 32


class Record(NamedTuple):
    """One record of a file. ``line`` counts from 1 (the row, for Parquet).

    ``raw`` is the record's own line of JSON where it has one that nothing needs changing in.
    """

    line: int
    value: dict[str, Any]
    raw: bytes = b""


class DuplicateKey(ValueError):
    """An object names one key twice."""


def line_ranges(path: Path, name: str, size: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of about ``size`` that begin and end between lines.

    :raises StudioError: at a line longer than MAX_LINE
    """
    end, total = 0, path.stat().st_size
    with open(path, "rb") as file:
        while end < total:
            start = end
            end = _line_end(file, name, start, min(start + size, total), total)
            yield start, end


def _line_end(file: Any, name: str, start: int, wanted: int, total: int) -> int:
    """The first position at or after ``wanted`` where a line ends."""
    if wanted >= total:
        wanted = total
        _refuse_long(file, name, start, total)
        return total
    file.seek(wanted)
    window = file.read(MAX_LINE + 1)
    at = window.find(b"\n")
    if at < 0:
        at = window.find(b"\r")
    if at >= 0:
        return wanted + at + 1
    if wanted + len(window) >= total:
        return total
    file.seek(0)
    line = 1 + _count_lines(file, wanted)
    raise StudioError(
        f"{name} line {line}", f"is longer than {MAX_LINE // 1024**2} MB", "Break it into rows."
    )


def _refuse_long(file: Any, name: str, start: int, total: int) -> None:
    if total - start > MAX_LINE:
        file.seek(start)
        if b"\n" not in file.read(MAX_LINE + 1):
            raise StudioError(
                f"{name} line 1", f"is longer than {MAX_LINE // 1024**2} MB", "Break it into rows."
            )


def _count_lines(file: Any, until: int) -> int:
    count = 0
    while until > 0 and (block := file.read(min(CHUNK, until))):
        count += block.count(b"\n")
        until -= len(block)
    return count


def parse_lines(block: bytes, first: int = 1) -> Iterator[Record | Problem]:
    """One object a line; empty lines count as lines but hold nothing.

    :param first: the number of the block's first line
    """
    if b"\r" in block:
        # Inside a JSON string a carriage return is always escaped, so a raw one ends a line.
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    # With space before a colon keys cannot be counted (see `repeats_key`), so these lines are looked at.
    spaced = b'" :' in block or b'"\t:' in block
    loads = orjson.loads
    for number, line in enumerate(block.split(b"\n"), start=first):
        if not line or line.isspace():
            continue
        try:
            value = loads(line)
        except orjson.JSONDecodeError as error:
            yield Problem(number, explain(error, line))
            continue
        if type(value) is not dict:
            yield Problem(number, f"is {kind_of(value)}, expected an object")
            continue
        if spaced and (again := duplicate_key(line)):
            yield Problem(number, f"names the key {again!r} twice")
            continue
        yield Record(number, value, line)


def repeats_key(raw: bytes, keys: int) -> str | None:
    """The key that a line's object names twice, or None.

    A key that comes twice makes the line hold more keys than its value has, and only then is it
    worth parsing again.

    :param keys: how many keys the parsed value has in all its objects
    """
    return duplicate_key(raw) if raw.count(b'":') != keys else None


def count_keys(value: Any) -> int:
    """Keys of all objects in a JSON value."""
    parts = value.values() if type(value) is dict else value
    count = len(value) if type(value) is dict else 0
    for part in parts:
        if type(part) is list or type(part) is dict:
            count += count_keys(part)
    return count


def duplicate_key(text: bytes) -> str | None:
    """The key that an object names twice, or None."""
    try:
        json.loads(text, object_pairs_hook=unique)
    except DuplicateKey as error:
        return str(error)
    except (ValueError, RecursionError):
        return None
    return None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``object_pairs_hook``. :raises DuplicateKey: with the key"""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        raise DuplicateKey(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return made


def explain(error: json.JSONDecodeError, line: bytes) -> str:
    """What is wrong with a line of JSON, as a phrase that follows its number."""
    what = error.msg
    if "depth limit" in what:
        return f"is nested deeper than {MAX_DEPTH}"
    if "surrogate" in what:
        return f"holds half of a surrogate pair (\\ud83d without its other half) at column {error.colno}"
    if "infinity" in what:
        return f"holds a number that is too large at column {error.colno}"
    if "end of data" in what:
        inside = " inside a string" if line.count(b'"') % 2 else ""
        return f"is not valid JSON: it ends{inside} (file cut off?)"
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        if line.startswith(word, error.pos):
            return f"holds {word.decode()} at column {error.colno}, which JSON does not have"
    return f"is not valid JSON at column {error.colno}: {what}"


def parse_document(path: Path, name: str) -> Iterator[Record | Problem]:
    """A .json file: a list of objects, an object that holds one, or one object a line after all.

    :raises StudioError: when it is not JSON, with line and column, or holds no list of objects
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        stream = _Stream(file, name)
        start = stream.peek()
        if start == "[":
            yield from stream.items()
        elif start == "{":
            yield from stream.lists()
        else:
            raise StudioError(
                f"{name} line {stream.line}", "is not valid JSON: expected [ or {", "See its first line."
            )
        if stream.peek():
            raise stream.broken(json.JSONDecodeError("text after the end", stream.text, stream.at))


def holds_lines(path: Path) -> bool:
    """Whether a file called .json holds one object a line, as many do."""
    with open(path, "rb") as file:
        first = file.readline(MAX_LINE).removeprefix(codecs.BOM_UTF8)
        second = file.read(4096)
    try:
        return type(orjson.loads(first)) is dict and bool(second.strip())
    except orjson.JSONDecodeError:
        return False


class _Stream:
    """JSON text read a block at a time; parses one value after the other at its position."""

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at, self.line = "", 0, 1
        self.decoder = json.JSONDecoder(object_pairs_hook=unique)
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
            except DuplicateKey as error:
                raise StudioError(
                    f"{self.name} line {self.line}", f"names the key {str(error)!r} twice"
                ) from None
            except RecursionError:
                what = f"is nested deeper than {MAX_DEPTH}"
                raise StudioError(f"{self.name} line {self.line}", what, "Flatten it.") from None
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > MAX_LINE:
                    what = f"begins a record longer than {MAX_LINE // 1024**2} MB"
                    raise StudioError(f"{self.name} line {self.line}", what, "Break it into rows.") from None
                if not self.fill():
                    raise self.broken(error) from None

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
        found: list[str] = []
        columns: dict[str, list[Any]] = {}
        while (character := self.peek(",")) != "}":
            if character != '"':
                raise self.broken(json.JSONDecodeError("expected a name in quotes", self.text, self.at))
            key = self.value()
            self.expect(":")
            if self.peek() == "[" and self._holds_objects():
                found.append(key)
                if len(found) == 1:
                    yield from self.items()
                    continue
                what = f"holds several lists of objects ({', '.join(found)})"
                raise StudioError(self.name, what, "Save each as a file of its own.")
            value = self.value()
            if isinstance(value, list) and value:
                columns[key] = value
        self.skip(1)
        if found:
            return
        if len(columns) > 1 and len({len(column) for column in columns.values()}) == 1:
            for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
                yield Record(number, dict(zip(columns, cells, strict=True)))
            return
        raise StudioError(
            f"{self.name} line 1",
            "is one object, expected a list of objects (or an object that holds one)",
            "Wrap the rows in [ ], or write one object per line as .jsonl.",
        )

    def _holds_objects(self) -> bool:
        rest = self.text[self.at + 1 : self.at + 4096].lstrip()
        while not rest and self.fill():
            rest = self.text[self.at + 1 : self.at + 4096].lstrip()
        return rest[:1] == "{"
