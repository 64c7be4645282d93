"""The bodies of requests as they come in: counted, and given up when too long or too slow."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import anyio
from starlette.types import Message, Receive

from plumbline_studio.gate.answers import TOO_SLOW, Refusal, too_large

STALL_SECONDS = 30.0  # without a byte of a body that has begun


class Body:
    """One request's body. Past a limit it looks to the app like a lost connection.

    ``trouble`` then says what the client is told in place of the app's own complaint.
    """

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._seen, self._complete = 0, False
        self.trouble: Refusal | None = None

    async def next(self) -> Message:
        """The next ASGI message; may be given to an app as its ``receive``."""
        if self.trouble is None and not self._complete:
            with anyio.move_on_after(STALL_SECONDS):
                return self._counted(await self._receive())
            self.trouble = TOO_SLOW
        return {"type": "http.disconnect"} if self.trouble else await self._receive()

    def _counted(self, message: Message) -> Message:
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit:
            self.trouble = too_large(self._limit)
            return {"type": "http.disconnect"}
        self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def whole(self) -> bytes | None:
        """All of it; None when there is trouble, or the client has left."""
        parts = []
        while True:
            message = await self.next()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)


class Uploads:
    """The folder that uploads come to lie in.

    Gradio leaves the part of a file whose upload was cut. Parts are temporary files of the folder
    itself, whole uploads lie in folders of their own: with none under way, every part is a left one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._under_way = folder, 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """While one upload comes in; with the last one, what cut ones left is removed."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                for part in self.folder.glob("tmp*"):
                    if part.is_file():
                        with contextlib.suppress(OSError):
                            os.unlink(part)
