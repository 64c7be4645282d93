"""Recipes as text: YAML (and so JSON) into plain values, with what YAML lets pass refused."""

from typing import Any

import yaml

from core.errors import StudioError

MOST_BYTES = 256 * 1024
DEEPEST = 32


class _Refused(Exception):
    def __init__(self, line: int, what: str, fix: str) -> None:
        self.line, self.what, self.fix = line, what, fix


class _Loader(yaml.SafeLoader):
    """Refuses keys that come twice (the later would win), aliases (few lines could become millions of
    values) and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise _Refused(mark.line, "has an alias", "Write the values out.")
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise _Refused(mark.line, f"is nested deeper than {DEEPEST}", "A recipe has two levels.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line
                raise _Refused(line, f"gives {str(key.value)[:60]!r} a second time", "Keep one of them.")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parsed(text: str, where: str) -> dict[str, Any]:
    """A recipe's sections. :raises StudioError: with the line that is wrong"""
    if len(text) > MOST_BYTES:
        what = f"is longer than {MOST_BYTES // 1024} kB"
        raise StudioError(where, what, "A recipe has some sixty settings; is this a data file?")
    try:
        loader = _Loader(text)
        raw = loader.get_single_data() or {}
    except _Refused as refused:
        raise StudioError(f"{where} line {refused.line + 1}", refused.what, refused.fix) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        mark = getattr(error, "problem_mark", None)
        place = f"{where} line {mark.line + 1}" if mark else where
        raise StudioError(place, "is not valid YAML", "Check indentation and colons there.") from error
    if not isinstance(raw, dict):
        raise StudioError(where, "must be a mapping of sections", "See assets/presets/default.yaml.")
    return raw
