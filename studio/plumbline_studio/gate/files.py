"""Which files a request may name: those that were uploaded to this process, and no others.

Gradio takes an object with a path in place of any value of the page, copies that file to where
its file route serves it, and hands it to the handler. Its own check of the path is off in an
application that was mounted, so this one does not lean on it.
"""

import json
import os
from pathlib import Path
from typing import Any

from plumbline_studio.gate.answers import FOREIGN_FILE, NOT_JSON, Refusal
from plumbline_studio.gate.names import origin


class _Foreign(Exception):
    """The body names a file that was not uploaded here."""


def refusal_of(body: bytes, uploads: Path, ours: tuple[str, ...]) -> Refusal | None:
    """Why a request with this body may not reach the app; None when it may.

    Every object with a path counts, whatever else it has, since what Gradio takes for a file may
    change; of a name that is there twice, both. Nothing is opened: a device would not end.

    :param uploads: the folder with what was uploaded
    :param ours: origins under which the page is served, such as ``http://localhost:7860``
    """
    allowed = {origin(site) for site in ours}

    def look(pairs: list[tuple[str, Any]]) -> None:
        named = [value for key, value in pairs if key == "path" and isinstance(value, str)]
        if not named:
            return
        addresses = [value for key, value in pairs if key == "url" and isinstance(value, str) and value]
        if not all(_uploaded(path, uploads) for path in named):
            raise _Foreign
        if not all(_own(address, allowed) for address in addresses):
            raise _Foreign

    if not body:
        return None
    try:
        json.loads(body, object_pairs_hook=look)
    except _Foreign:
        return FOREIGN_FILE
    except (ValueError, RecursionError):
        return NOT_JSON
    return None


def _uploaded(path: str, uploads: Path) -> bool:
    """Whether this is the full path of a plain file in the folder, links followed."""
    plain = os.path.normpath(path)
    # By its text first: only to look at a path elsewhere can hang, on a network share for example.
    if not (os.path.isabs(path) and Path(plain).is_relative_to(uploads)):
        return False
    try:
        real = os.path.realpath(plain)
        return Path(real).is_relative_to(os.path.realpath(uploads)) and os.path.isfile(real)
    except ValueError:  # a character that no path can have
        return False


def _own(address: str, allowed: set[tuple[str, int] | None]) -> bool:
    """Whether an address is one of this studio, as the page has it for a file that it uploaded."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address.startswith("/") and not address.startswith("//")
    site = origin(f"{scheme}://{rest.partition('/')[0]}")
    return site is not None and site in allowed
