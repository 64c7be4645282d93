"""The name that was probably meant, for one that does not exist."""

import difflib
from collections.abc import Iterable

ALIKE = 0.6  # difflib's measure, from 0 to 1


def nearest(name: str, known: Iterable[str], alike: float = ALIKE) -> str:
    """The known name that is most like this one; empty when none is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1, alike)
    return near[0] if near else ""


def question(name: str, known: Iterable[str], alike: float = ALIKE) -> str:
    """``Did you mean ...?``; empty when no known name is like this one."""
    near = nearest(name, known, alike)
    return f"Did you mean {near}?" if near else ""
