"""YAML and JSON that others wrote, as plain values, under limits.

Every such text goes through here: recipes, mixes, mappings, YAML data, what a model says of itself.
Nothing in it can repeat itself, nest or grow past the limits, and libyaml reads it, which is ten times
as fast as PyYAML's own parser.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from plumbline.errors import StudioError

LARGEST = 256 * 1024  # characters of a text that a person writes
DEEPEST = 32
MOST_VALUES = 50_000


class Refused(ValueError):
    """Why a text is not read. ``line`` counts from 1, 0 where none is at fault; ``what`` is a phrase."""

    def __init__(self, line: int, what: str, fix: str = "") -> None:
        self.line, self.what, self.fix = line, what, fix
        super().__init__(f"line {line} {what}" if line > 1 else what)

    def at(self, where: str) -> StudioError:
        return StudioError(f"{where} line {self.line}" if self.line else where, self.what, self.fix)


def value_of(text: str) -> Any:
    """What a YAML or JSON text says. :raises Refused: with the line that is wrong"""
    if len(text) > LARGEST:
        raise Refused(0, f"is longer than {LARGEST // 1024} kB", "Give a shorter one.")
    if text.lstrip()[:1] in ("{", "["):
        # JSON's own parser knows its tabs and its pairs of escapes, which YAML does not; what it refuses,
        # YAML may take, or can name the line of.
        with suppress(ValueError, RecursionError):
            value = json.loads(text, object_pairs_hook=_unique)
            _refuse_deep(value)
            return value
    try:
        for _ in events(text):
            pass
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise Refused(_line(error), "is not valid YAML", "Check indentation and colons there.") from error
    except Refused:
        raise
    except ValueError as error:  # a date or a number that is none
        raise Refused(0, "is not valid YAML", "Check its numbers and dates.") from error


def events(text: str, deepest: int = DEEPEST, most: int = MOST_VALUES) -> Iterator[Any]:
    """A YAML text as libyaml's events, until one goes past a limit.

    :param deepest: levels of lists and mappings in one another
    :param most: values and keys
    :raises Refused: there, and at an alias (few lines could become billions of values) or a tag
    :raises yaml.YAMLError: where it is not YAML
    """
    depth = count = 0
    parsed: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
    for event in parsed:
        kind = type(event)
        if kind is yaml.AliasEvent:
            raise Refused(event.start_mark.line + 1, "holds an alias (*)", "Write the values out.")
        if kind is yaml.SequenceEndEvent or kind is yaml.MappingEndEvent:
            depth -= 1
        elif kind is yaml.SequenceStartEvent or kind is yaml.MappingStartEvent or kind is yaml.ScalarEvent:
            count += 1
            depth += kind is not yaml.ScalarEvent
            line = event.start_mark.line + 1
            if depth > deepest:
                raise Refused(line, f"is nested deeper than {deepest}", "Flatten it.")
            if count > most:
                raise Refused(line, f"is past {most:,} values", "Give a shorter one.")
            if event.tag is not None and event.tag != "!":
                raise Refused(line, f"has the tag {event.tag[:40]}", "Leave it out: only plain values count.")
        yield event


def json_object(path: Path, largest: int) -> dict[str, Any]:
    """The object that a JSON file of a model or an adapter holds.

    Of a key that comes twice the later counts, as it does for the libraries that read the file after us.

    :param largest: bytes
    :raises Refused: when it is none
    """
    size = path.stat().st_size
    if size > largest:
        raise Refused(0, f"has {size / 1e6:,.0f} MB, the limit is {largest / 1e6:,.0f} MB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise Refused(error.lineno, f"is not valid JSON (line {error.lineno})") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, an endless number, nested without end
        raise Refused(0, "is not valid JSON") from error
    if not isinstance(content, dict):
        raise Refused(1, "is not a JSON object")
    return content


class _Loader(yaml.CSafeLoader):
    """Refuses keys that come twice: the later would win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    what = f"gives {str(key.value)[:60]!r} a second time"
                    raise Refused(key.start_mark.line + 1, what, "Keep one of them.")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _line(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key comes twice")
    return made


def _refuse_deep(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise Refused(0, f"is nested deeper than {DEEPEST}", "Flatten it.")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_deep(part, depth + 1)
