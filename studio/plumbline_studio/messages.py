"""HTML snippets and the one place where an exception becomes a message on the page.

Everything shown goes through `escape`: data, names and model output are never markup.
"""

import functools
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from plumbline.errors import message_of

MARKS = {"good": "✓", "warning": "!", "bad": "✗"}


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """For click handlers: what they raise is shown as a message, never as a traceback."""

    @functools.wraps(handler)
    def safe(*values: Any) -> Any:
        try:
            return handler(*values)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(escape(message_of(error)), duration=None, print_exception=False) from None

    return safe


def box(level: str, text: str) -> str:
    """A message that stays. ``level``: ``good``, ``warning`` or ``bad``."""
    role = "alert" if level == "bad" else "status"
    return f'<div class="pl-box pl-{level}" role="{role}">{MARKS[level]} {escape(text)}</div>'


def error_box(error: Exception) -> str:
    return box("bad", message_of(error))


def empty(text: str) -> str:
    """An empty state: says what to do next."""
    return f'<div class="pl-card pl-muted">{escape(text)}</div>'


def figures(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="pl-figures">{cells}</dl>'


def facts(rows: list[tuple[str, str]]) -> str:
    """Names and values in a line that wraps."""
    inside = "".join(f"<span><i>{escape(name)}</i> <b>{escape(value)}</b></span>" for name, value in rows)
    return f'<div class="pl-facts">{inside}</div>'


def table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="pl-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def folded(title: str, inside: str) -> str:
    """:param inside: HTML that is shown when the title is pressed"""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def bar(share: float) -> str:
    percent = max(0.0, min(1.0, share)) * 100
    return (
        f'<div class="pl-bar" role="progressbar" aria-valuenow="{percent:.0f}" aria-valuemin="0" '
        'aria-valuemax="100">'
        f'<div style="width:{percent:.1f}%"></div></div>'
    )


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
