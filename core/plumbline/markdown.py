"""Texts that others chose (names of runs, bases, datasets) inside of a Markdown file and its YAML."""

import html
import json
import re


def plain(text: str) -> str:
    """A text that stands as it is in a line of Markdown: no markup, no HTML, no link, no second line."""
    escaped = re.sub(r"([\\`*_\[\]~|#!$@])", r"\\\1", html.escape(_line(text), quote=False))
    return escaped.replace("://", ":\\/\\/")


def code(text: str) -> str:
    """A text as code in a line, whatever backticks it holds itself."""
    line = _line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def quoted(text: str) -> str:
    """A text as a value of YAML."""
    return json.dumps(_line(text), ensure_ascii=False)


def _line(text: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(shown.split()) or "-"
