"""JSON lines to records: one object a line, read in blocks that can be worked on side by side."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from plumbline.data.errors import Problem, kind_of
from plumbline.data.readers import encoding
from plumbline.data.readers.limits import CHUNK, MAX_DEPTH, MAX_LINE
from plumbline.errors import StudioError


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


def _line_end(file: Any, name: str, start: int, position: int, total: int) -> int:
    """The first position at or after ``position`` where a line ends."""
    if position >= total:
        position = total
        _refuse_long(file, name, start, total)
        return total
    file.seek(position)
    window = file.read(MAX_LINE + 1)
    at = window.find(b"\n")
    if at < 0:
        at = window.find(b"\r")
    if at >= 0:
        return position + at + 1
    if position + len(window) >= total:
        return total
    file.seek(0)
    line = 1 + _count_lines(file, position)
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
            yield Problem(number, encoding.explain(line) or explain(error, line))
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
    if "after document" in what and line.rstrip().endswith(b"},"):
        return "ends with a comma, which lines of JSON do not have between them"
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        if line.startswith(word, error.pos):
            return f"holds {word.decode()} at column {error.colno}, which JSON does not have"
    return f"is not valid JSON at column {error.colno}: {what}"


def holds_lines(path: Path, kind: str) -> bool:
    """Whether a file is one object a line: .jsonl unless it begins like a document, .json where it is."""
    with open(path, "rb") as file:
        first = b"\n"
        while first and not first.strip():
            first = file.readline(MAX_LINE).removeprefix(codecs.BOM_UTF8)
        second = file.read(4096)
    # A bracket alone is how a list or an object over many lines begins.
    if kind == "jsonl":
        return first.lstrip()[:1] != b"[" and first.strip() != b"{"
    try:
        return type(orjson.loads(first)) is dict and bool(second.strip())
    except orjson.JSONDecodeError:
        return False
