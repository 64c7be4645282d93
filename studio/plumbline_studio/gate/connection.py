"""A connection that asks for nothing is closed, so that nobody holds all that the process may open."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 15.0  # for the head of a request, from its connection or the answer before it


class Connection(H11Protocol):
    """uvicorn's HTTP connection, which by itself waits for ever for a head that never ends."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request(None)

    def on_response_complete(self) -> None:
        answered = self.cycle
        super().on_response_complete()  # may begin a request that came in meanwhile
        self._await_request(answered)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _await_request(self, before: Any) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._close_if_idle, before)

    def _close_if_idle(self, before: Any) -> None:
        # An upgraded connection is no longer among those of HTTP.
        if self.cycle is before and self in self.connections:
            self.transport.close()
