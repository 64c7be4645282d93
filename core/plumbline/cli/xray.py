"""Tokens drawn in a terminal: by colour, or by marks where there are no colours."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from plumbline.cli.terminal import colours, columns, fitting, safe, width

_RESET = "\x1b[0m"
# Two shades for learned tokens, in turn, so that neighbours are told apart.
_COLOURS = {"learned": ("30;42", "30;102"), "end": ("30;46",), "cut": ("9;31",), "masked": ("2",)}
_MARKS = {"learned": ("[", "]"), "end": ("{", "}"), "cut": ("~", "~"), "masked": ("", "")}
_SAID = {"learned": "learned", "end": "end of turn, learned", "masked": "masked", "cut": "cut off"}


def draw(tokens: Iterable[Any]) -> None:
    """Print tokens as the text that they are, with what becomes of each.

    :param tokens: see `plumbline.data.tokens.encode.Token`
    """
    coloured = colours()
    key = [_shown(said, kind, 0) if coloured else said.join(_MARKS[kind]) for kind, said in _SAID.items()]
    print("  ".join(key) + "\n")
    pieces = _coloured(tokens) if coloured else _marked(tokens)
    _lay_out(pieces)


def _coloured(tokens: Iterable[Any]) -> Iterator[tuple[str, str, int]]:
    for number, token in enumerate(tokens):
        yield safe(token.text), token.kind, number


def _marked(tokens: Iterable[Any]) -> Iterator[tuple[str, str, int]]:
    """Neighbours of one kind as one piece, between their marks, word by word so that lines can end."""
    for kind, group in itertools.groupby(tokens, key=lambda token: token.kind):
        before, after = _MARKS[kind]
        text = before + safe("".join(token.text for token in group)) + after
        for word in text.replace(" ", " \0").split("\0"):
            yield word, "", 0


def _lay_out(pieces: Iterable[tuple[str, str, int]]) -> None:
    """Print pieces one after the other; a line ends where a piece would not fit."""
    line, taken, room = "", 0, width()
    for text, kind, number in pieces:
        for place, part in enumerate(text.split("\n")):
            if place or (taken and taken + columns(part.rstrip()) > room):
                print(line)
                line, taken = "", 0
            while columns(part.rstrip()) > room:
                end = fitting(part, 0, room)
                print(_shown(part[:end], kind, number))
                part = part[end:]
            line += _shown(part, kind, number)
            taken += columns(part)
    print(line)


def _shown(text: str, kind: str, number: int) -> str:
    if not kind or not text:
        return text
    shades = _COLOURS[kind]
    return f"\x1b[{shades[number % len(shades)]}m{text}{_RESET}"
