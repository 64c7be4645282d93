"""The password, by HTTP Basic authentication."""

import base64
import binascii
import hashlib
import hmac
import os

import anyio
from starlette.types import Scope

from plumbline_studio.gate.names import values

# A right password always passes at once, also while somebody guesses from the same address: behind
# a proxy all have one. So guesses are not counted; each only holds its connection for a while.
WRONG_SECONDS = 1.0


class Password:
    """The user and password that a request must carry."""

    def __init__(self, credentials: tuple[str, str]) -> None:
        self._expected = _digest(os.fsencode(":".join(credentials)))

    async def is_in(self, scope: Scope) -> bool:
        """Whether the request carries the right one and no other. A wrong one is answered late."""
        sent = values(scope, b"authorization")
        if len(sent) == 1 and self._is_right(sent[0]):
            return True
        if sent:
            await anyio.sleep(WRONG_SECONDS)
        return False

    def _is_right(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        # User and password in one go, as digests of one length: the time taken tells nothing.
        equal = hmac.compare_digest(_digest(decoded), self._expected)
        return equal and scheme.lower() == "basic"


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
