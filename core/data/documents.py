"""YAML, plain text and Markdown to records."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, TextIO

import yaml

from core.data.errors import Problem, kind_of
from core.data.files import File
from core.data.jsonread import Record
from core.data.limits import MAX_LINE
from core.errors import StudioError

MAX_YAML = 64 * 1024**2
_HELD = 1024**2  # characters of a paragraph that are looked at together
_HEADING = re.compile(r"#{1,6}\s")


class _TextLoader(yaml.BaseLoader):
    """Every scalar stays the text it is, so ``007``, ``no`` and dates are not converted."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        # An alias can unfold into billions of nodes.
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "holds an alias (*)", event.start_mark)
        return super().compose_node(parent, index)


def parse_yaml(file: File) -> Iterator[Record | Problem]:
    """A list of mappings, a mapping that holds one such list, or one mapping a document.

    :raises StudioError: when it is not YAML, too large, or holds no list of mappings
    """
    if file.path.stat().st_size > MAX_YAML:
        raise StudioError(file.name, f"is YAML of more than {MAX_YAML // 1024**2} MB", "Save it as JSONL.")
    text = file.path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    _refuse_controls(text, file.name)
    loader = _TextLoader(text)
    try:
        documents = []
        while loader.check_node():
            documents.append(loader.get_node())
        for node in _items(documents, file.name):
            line = node.start_mark.line + 1
            value = loader.construct_document(node)
            if isinstance(value, dict):
                yield Record(line, value)
            else:
                yield Problem(line, f"is {kind_of(value)}, expected a mapping")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file.name} line {mark.line + 1}" if mark else file.name
        raise StudioError(
            place, f"is not valid YAML: {getattr(error, 'problem', error)}", "Mend that line."
        ) from None
    except RecursionError:
        raise StudioError(file.name, "is nested too deeply", "Flatten it.") from None
    finally:
        loader.dispose()


def _refuse_controls(text: str, name: str) -> None:
    """:raises StudioError: at a character that YAML only takes as an escape"""
    if found := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        what = f"holds the character U+{ord(found[0]):04X}, which YAML does not allow"
        raise StudioError(f"{name} line {line}", what, "Write it as an escape, or take it out.")


def _items(documents: list[Any], name: str) -> list[Any]:
    if len(documents) > 1:
        return documents
    node = documents[0] if documents else None
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if isinstance(node, yaml.MappingNode):
        lists = [
            part
            for _, part in node.value
            if isinstance(part, yaml.SequenceNode)
            and part.value
            and isinstance(part.value[0], yaml.MappingNode)
        ]
        if len(lists) == 1:
            return lists[0].value
    raise StudioError(name, "holds no list of mappings", "Begin every row with a dash.")


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
    held, began = "", 1
    for number, paragraph in paragraphs:
        for part in _divided(paragraph, limit):
            heading = bool(_HEADING.match(part)) and len(held) > limit // 4
            if held.strip() and (len(held) + len(part) > limit or heading):
                yield began, held
                held = ""
            if not held.strip():
                held, began = held.lstrip("\n"), number
            held += part
    if held.strip():
        yield began, held


def _paragraphs(text: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """Paragraphs with the blank lines after them, and the line each begins on.

    :raises StudioError: at a line longer than MAX_LINE
    """
    lines: list[str] = []
    began, held, blank = 1, 0, False
    for number, line in enumerate(iter(partial(text.readline, MAX_LINE + 1), ""), start=1):
        if len(line) > MAX_LINE:
            what = f"is longer than {MAX_LINE // 1024**2} MB"
            raise StudioError(f"{name} line {number}", what, "Break it into paragraphs.")
        if lines and ((blank and line.strip()) or held + len(line) > _HELD):
            yield began, "".join(lines)
            lines, began, held = [], number, 0
        lines.append(line)
        held += len(line)
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
