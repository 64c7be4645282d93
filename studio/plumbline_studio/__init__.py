"""The page, over core. Importing it imports Gradio, without what Gradio does for its developers.

Gradio (6.31) parses the source of every component at import to keep its .pyi files up to date,
a third of the time to the page. It leaves that out for classes that have no file, so while it is
imported its components claim to have none, and so do the two of the page's own.
"""

import inspect
from typing import Any

_file_of = inspect.getfile


def _no_file_for_components(thing: Any) -> str:
    if isinstance(thing, type) and thing.__module__.startswith(("gradio.", "plumbline_studio.")):
        raise OSError("left out at import")
    return _file_of(thing)


inspect.getfile = _no_file_for_components
try:
    import gradio  # noqa: F401

    import plumbline_studio.held  # noqa: F401
finally:
    inspect.getfile = _file_of
