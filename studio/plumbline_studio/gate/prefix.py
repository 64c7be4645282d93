"""The part of the address that a proxy serves the studio under, for example ``/studio``.

It comes from PLUMBLINE_PREFIX, or with each request as X-Forwarded-Prefix; whether the proxy leaves
it on the path or takes it off makes no difference.
"""

import re

from starlette.types import Scope

from plumbline_studio.gate.names import values

# Plain segments only: the page repeats it in its links.
PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){1,8}", re.ASCII)


def prefix_of(scope: Scope, configured: str) -> str:
    """The prefix that holds for this request; the one of a header must look like one."""
    sent = values(scope, b"x-forwarded-prefix")
    found = sent[0].strip().rstrip("/") if len(sent) == 1 else ""
    return found if len(found) <= 200 and PREFIX.fullmatch(found) else configured


def inside(path: str, prefix: str) -> str:
    """The path without the prefix; as it is when the proxy took that off already."""
    if path == prefix or path.startswith(prefix + "/"):
        return path[len(prefix) :]
    return path
