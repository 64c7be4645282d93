"""YAML, plain text and Markdown to records."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, TextIO

import yaml

from plumbline import untrusted
from plumbline.data.errors import Problem, kind_of
from plumbline.data.readers.json_lines import Record
from plumbline.data.readers.limits import MAX_DEPTH, MAX_LINE
from plumbline.data.readers.source_files import File
from plumbline.errors import StudioError

MAX_YAML = 64 * 1024**2
MAX_YAML_VALUES = 8_000_000  # of a real file of that size; each takes memory, however short it is
_HELD = 1024**2  # characters of a paragraph that are looked at together
_HEADING = re.compile(r"#{1,6}\s")


def parse_yaml(file: File) -> Iterator[Record | Problem]:
    """A list of mappings, a mapping that holds one such list, or one mapping a document.

    Every scalar stays the text it is, so ``007``, ``no`` and dates are not converted.

    :raises StudioError: when it is not YAML, too large, or holds no list of mappings
    """
    if file.path.stat().st_size > MAX_YAML:
        raise StudioError(file.name, f"is YAML of more than {MAX_YAML // 1024**2} MB", "Save it as JSONL.")
    text = file.path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    _refuse_controls(text, file.name)
    try:
        documents = _Documents(untrusted.events(text, MAX_DEPTH, MAX_YAML_VALUES))
    except untrusted.Refused as refused:
        raise refused.at(file.name) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file.name} line {mark.line + 1}" if mark else file.name
        what = f"is not valid YAML: {getattr(error, 'problem', error)}"
        raise StudioError(where, what, "Mend that line.") from None
    for line, value in documents.items(file.name):
        if isinstance(value, dict):
            yield Record(line, value)
        else:
            yield Problem(line, f"is {kind_of(value)}, expected a mapping")


class _Documents:
    """A file's YAML documents as texts, lists and mappings, and the lines that the items of lists are on."""

    def __init__(self, events: Iterator[Any]) -> None:
        """:raises Refused: at a key that comes twice, or is no text; and as the events do"""
        self._events = events
        self._lines: dict[int, list[int]] = {}  # by the list's id, for those in the first two levels
        self._starts: list[int] = []
        self._values: list[Any] = []
        for event in events:
            if type(event) in (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent):
                self._starts.append(event.start_mark.line + 1)
                self._values.append(self._value(event, 0))

    def _value(self, event: Any, depth: int) -> Any:
        if type(event) is yaml.ScalarEvent:
            return event.value
        if type(event) is yaml.SequenceStartEvent:
            listed: list[Any] = []
            lines = []
            while type(event := next(self._events)) is not yaml.SequenceEndEvent:
                lines.append(event.start_mark.line + 1)
                listed.append(self._value(event, depth + 1))
            if depth < 2:
                self._lines[id(listed)] = lines
            return listed
        made: dict[str, Any] = {}
        while type(key := next(self._events)) is not yaml.MappingEndEvent:
            line = key.start_mark.line + 1
            if type(key) is not yaml.ScalarEvent:
                raise untrusted.Refused(line, "has a key that is no text", "Write it in quotes.")
            if key.value in made:
                raise untrusted.Refused(line, f"names the key {key.value[:60]!r} twice", "Rename one.")
            made[key.value] = self._value(next(self._events), depth + 1)
        return made

    def items(self, name: str) -> Iterator[tuple[int, Any]]:
        """What the records are, each with its line. :raises StudioError: when there is no list of mappings"""
        value = self._values[0] if self._values else None
        if len(self._values) > 1:
            return zip(self._starts, self._values, strict=True)
        if isinstance(value, dict):
            parts = [part for part in value.values() if isinstance(part, list)]
            lists = [part for part in parts if part and isinstance(part[0], dict)]
            value = lists[0] if len(lists) == 1 else None
        if isinstance(value, list):
            return zip(self._lines[id(value)], value, strict=True)
        raise StudioError(name, "holds no list of mappings", "Begin every row with a dash.")


def _refuse_controls(text: str, name: str) -> None:
    """:raises StudioError: at a character that YAML only takes as an escape"""
    if control := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, control.start()) + 1
        what = f"holds the character U+{ord(control[0]):04X}, which YAML does not allow"
        raise StudioError(f"{name} line {line}", what, "Write it as an escape, or take it out.")


def parse_text(file: File) -> Iterator[Record]:
    """Plain text and Markdown in pieces of at most ``reading.chunk`` characters.

    Pieces end between paragraphs (in Markdown a heading begins a new one); only a paragraph that is
    longer is divided, at a line, a sentence or a word. Together they are the whole text.
    """
    with open(file.path, encoding="utf-8-sig") as text:
        for line, piece in _pieces(_paragraphs(text, file.name), file.reading.chunk):
            yield Record(line, {"text": piece})


def _pieces(paragraphs: Iterator[tuple[int, str]], limit: int) -> Iterator[tuple[int, str]]:
    """Pieces with the line each begins on; blank pieces are passed over."""
    piece, began = "", 1
    for number, paragraph in paragraphs:
        for part in _divided(paragraph, limit):
            heading = bool(_HEADING.match(part)) and len(piece) > limit // 4
            if piece.strip() and (len(piece) + len(part) > limit or heading):
                yield began, piece
                piece = ""
            if not piece.strip():
                piece, began = piece.lstrip("\n"), number
            piece += part
    if piece.strip():
        yield began, piece


def _paragraphs(text: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """Paragraphs with the blank lines after them, and the line each begins on.

    :raises StudioError: at a line longer than MAX_LINE
    """
    lines: list[str] = []
    began, characters, blank = 1, 0, False
    for number, line in enumerate(iter(partial(text.readline, MAX_LINE + 1), ""), start=1):
        if len(line) > MAX_LINE:
            what = f"is longer than {MAX_LINE // 1024**2} MB"
            raise StudioError(f"{name} line {number}", what, "Break it into paragraphs.")
        if lines and ((blank and line.strip()) or characters + len(line) > _HELD):
            yield began, "".join(lines)
            lines, began, characters = [], number, 0
        lines.append(line)
        characters += len(line)
        blank = not line.strip()
    if lines:
        yield began, "".join(lines)


def _divided(paragraph: str, limit: int) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > limit:
        window = paragraph[start : start + limit]
        cut = max(window.rfind("\n") + 1, 0)
        for mark in (". ", "? ", "! ", "。", " "):
            if cut >= limit // 2:
                break
            cut = max(cut, window.rfind(mark) + len(mark)) if mark in window else cut
        cut = cut if cut >= limit // 4 else limit
        yield window[:cut]
        start += cut
    yield paragraph[start:]
