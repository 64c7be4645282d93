"""YAML, plain text and Markdown to records."""

import re
from collections.abc import Iterator
from typing import Any, TextIO

import yaml

from core.data.errors import Problem, kind_of
from core.data.files import File
from core.data.jsonread import Record
from core.errors import StudioError

MAX_YAML = 64 * 1024**2
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
    loader = _TextLoader(file.path.read_text(encoding="utf-8-sig"))
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
        for line, piece in pieces(text, file.reading.chunk):
            yield Record(line, {"text": piece})


def pieces(text: TextIO, limit: int) -> Iterator[tuple[int, str]]:
    """Pieces with the line each begins on; blank pieces are passed over."""
    held, began, number = "", 1, 0
    for number, paragraph in _paragraphs(text):
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


def _paragraphs(text: TextIO) -> Iterator[tuple[int, str]]:
    """Paragraphs with the blank lines after them, and the line each begins on."""
    lines: list[str] = []
    began, blank = 1, False
    for number, line in enumerate(text, start=1):
        if blank and line.strip():
            yield began, "".join(lines)
            lines, began = [], number
        blank = not line.strip()
        lines.append(line)
        if len(lines) >= 2000:
            yield began, "".join(lines)
            lines, began = [], number + 1
    if lines:
        yield began, "".join(lines)


def _divided(paragraph: str, limit: int) -> Iterator[str]:
    while len(paragraph) > limit:
        window = paragraph[:limit]
        cut = max(window.rfind("\n") + 1, 0)
        for mark in (". ", "? ", "! ", "。", " "):
            if cut >= limit // 2:
                break
            cut = max(cut, window.rfind(mark) + len(mark)) if mark in window else cut
        cut = cut if cut >= limit // 4 else limit
        yield paragraph[:cut]
        paragraph = paragraph[cut:]
    yield paragraph
