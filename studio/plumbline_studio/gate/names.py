"""Host names, addresses and headers, read as strictly as they are compared."""

import ipaddress
import re

from starlette.types import Scope

# "name", "name:port", "[::1]" or "[::1]:port", and nothing else: no user part, no trailing dot
AUTHORITY = re.compile(
    r"(?:\[([0-9a-f]*:[0-9a-f:.]+)\]|([a-z0-9_.-]*[a-z0-9_-]))(?::(\d{1,5}))?", re.ASCII | re.I
)


def values(scope: Scope, name: bytes) -> list[str]:
    """Every value that a request's header of this name (in lower case) has."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def authority(text: str) -> tuple[str, int | None] | None:
    """Name and port of a Host header or of the end of an Origin; None if it is neither."""
    found = AUTHORITY.fullmatch(text)
    if found is None or (found[1] and not ip(found[1])):
        return None
    name = str(ip(found[1])) if found[1] else found[2].lower()
    return name, int(found[3]) if found[3] else None


def origin(text: str) -> tuple[str, int] | None:
    """Name and port of an Origin such as ``https://a.example``; None if it is none."""
    scheme, _, rest = text.partition("://")
    default_port = {"http": 80, "https": 443}.get(scheme)
    found = authority(rest)
    return None if default_port is None or found is None else (found[0], found[1] or default_port)


def ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
