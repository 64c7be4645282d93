"""Gradio, imported without what it does for its developers.

Gradio (6.31) parses the source of every component at import to keep its .pyi files up to date,
a third of the time to the page. It leaves that out for classes that have no file, so while it is
imported its components claim to have none, and so do the two of the page's own.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_file_of = inspect.getfile


def _no_file_for_components(thing: Any) -> str:
    if isinstance(thing, type) and thing.__module__.startswith(("gradio.", "plumbline_studio.")):
        raise OSError("left out at import")
    return _file_of(thing)


@contextmanager
def without_stubs() -> Iterator[None]:
    """Components that are defined in here get no .pyi file."""
    inspect.getfile = _no_file_for_components
    try:
        yield
    finally:
        inspect.getfile = _file_of


with without_stubs():
    import gradio  # noqa: F401
