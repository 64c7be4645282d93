"""How the user started Plumbline, so that messages name commands and places that this user has."""

import os
import shlex
from pathlib import Path

STARTED = "PLUMBLINE_PROGRAM"  # the words before the verb; processes that this one starts inherit them
PAGE = "PLUMBLINE_PAGE"  # set where a page shows the messages
DEFAULT = "plumbline"


def started_as(called: str) -> None:
    """Note what the entry point was called as. :param called: ``sys.argv[0]``"""
    path = Path(called)
    if path.suffix == ".py":
        beside = path.resolve().parent == Path.cwd()
        os.environ[STARTED] = shlex.join(["python3", path.name if beside else str(path)])
    else:
        os.environ[STARTED] = shlex.quote(path.stem if path.suffix == ".exe" else path.name or DEFAULT)


def name() -> str:
    """The words before a verb, as a shell reads them."""
    return os.environ.get(STARTED, DEFAULT)


def command(*words: str) -> str:
    """A command to type here that starts this program as it was started, with these words."""
    return " ".join([name(), shlex.join(words)]) if words else name()


def show_on_a_page() -> None:
    """From now on messages are read on the page, which has tabs."""
    os.environ[PAGE] = "1"


def where(tab: str, *words: str) -> str:
    """Where something is done or shown: a tab of the page, or a command; begins a sentence.

    :param words: the verb, and what it is given
    """
    return f"The {tab} tab" if os.environ.get(PAGE) else f"`{command(*words)}`"
