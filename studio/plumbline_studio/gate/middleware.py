"""Everything that stands between the network and the Gradio app.

Host names, origins, the password, bodies and response headers are checked in one ASGI
middleware. Answers and uploads pass through as they come, so streams stay streams; any other
body is small and read whole before the app sees it.
"""

import re
from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plumbline_studio.gate.answers import REMOTE_FILE, Refusal, answer, too_large
from plumbline_studio.gate.bodies import Body, Uploads
from plumbline_studio.gate.files import refusal_of
from plumbline_studio.gate.names import values
from plumbline_studio.gate.prefix import inside, prefix_of
from plumbline_studio.gate.settings import GateSettings
from plumbline_studio.gate.visitors import Visitors

UPLOAD_PATH = "/gradio_api/upload"
# Gradio's file route fetches web addresses, which would carry a model's image link out of the
# house by way of the server, past the Content-Security-Policy.
REMOTE = re.compile(r"/gradio_api/(?:proxy=|file[=/]https?://)", re.IGNORECASE)
# Gradio builds its own address from these when they are present; only the checked Host may decide.
UNTRUSTED_HEADERS = (b"x-forwarded-host", b"x-gradio-server")

# Gradio's page has inline scripts and styles, gr.HTML and js= listeners compile with Function(),
# plots and pasted pictures are data: or blob: addresses. Nothing may come from or go to elsewhere.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


def guard(app: FastAPI, settings: GateSettings, uploads: Path) -> None:
    """Put the gate in front of `app`. Call it last, so that no other middleware is outside.

    Requests may name files of the folder `uploads` and of no other.

    The presence of CORSMiddleware switches off Gradio's own, which would allow any origin:
    https://github.com/gradio-app/gradio/blob/main/gradio/route_utils.py (parent_configures_cors)
    """
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(Gate, settings=settings, uploads=uploads)


class Gate:
    """The middleware that `guard` adds."""

    def __init__(self, app: ASGIApp, settings: GateSettings, uploads: Path) -> None:
        self.app, self.settings = app, settings
        self.visitors, self.uploads = Visitors(settings), Uploads(uploads)
        policy = f"{CONTENT_POLICY}; frame-ancestors {settings.frame_ancestors}"
        self.headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
        }
        if settings.frame_ancestors == "'self'":  # this older header cannot name a second site
            self.headers["X-Frame-Options"] = "SAMEORIGIN"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                if headers.get("content-type", "").startswith("text/event-stream"):
                    headers["X-Accel-Buffering"] = "no"  # nginx would hold a stream back until it ends
            await send(message)

        prefix = prefix_of(scope, self.settings.prefix)
        path = inside(scope["path"], prefix)
        scope = {**scope, "path": path}
        refusal = await self.visitors.refusal(scope) or self._refusal(scope)
        if refusal:
            await answer(refusal, scope, receive, send_with_headers)
            return
        if not path:  # links of the page hold from inside the prefix
            query = scope["query_string"].decode("latin-1")
            moved = Refusal(307, "", (("Location", f"{prefix}/" + (f"?{query}" if query else "")),))
            await answer(moved, scope, receive, send_with_headers)
            return
        limit = self._limit(path)
        kept = [pair for pair in scope["headers"] if pair[0] not in UNTRUSTED_HEADERS]
        scope = {**scope, "headers": kept, "root_path": prefix, "path": prefix + path}
        if scope["type"] == "websocket":
            await self.app(scope, receive, send_with_headers)
        elif path == UPLOAD_PATH:
            with self.uploads.one():
                await self._run(scope, Body(receive, limit), send_with_headers)
        elif scope["method"] in ("GET", "HEAD"):
            await self._run(scope, Body(receive, limit), send_with_headers)
        else:
            await self._checked(scope, Body(receive, limit), send_with_headers)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Why this request may not reach the app, whoever sent it, as far as its head tells."""
        if REMOTE.match(scope["path"]):
            return REMOTE_FILE
        # A length that is no number is for the server to judge; the bytes are counted anyway.
        length, limit = "".join(values(scope, b"content-length")), self._limit(scope["path"])
        if length.isdecimal() and (len(length) > 15 or int(length) > limit):
            return too_large(limit)
        return None

    def _limit(self, path: str) -> int:
        upload = path == UPLOAD_PATH
        return self.settings.max_upload_bytes if upload else self.settings.max_body_bytes

    async def _checked(self, scope: Scope, body: Body, send: Send) -> None:
        """Run the app on a body that was read whole and may reach it."""
        content = await body.whole()
        refusal = body.trouble
        if content is not None:
            refusal = refusal_of(content, self.uploads.folder, self.visitors.own_sites(scope))
            if refusal is None:
                await self.app(scope, _again(content, body), send)
        if refusal:
            await answer(refusal, scope, body.next, send)

    async def _run(self, scope: Scope, body: Body, send: Send) -> None:
        """Run the app on a body that is still to come."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            if body.trouble and not started:
                return  # the app's own complaint about the lost connection
            started = True
            await send(message)

        try:
            await self.app(scope, body.next, watched)
        except ClientDisconnect:
            pass  # of the client's own, nobody is there to be told, and nothing here is wrong
        except Exception:
            # After trouble the app complains of the connection that was cut here, in whatever way
            # its parser does; the client is told below. Anything else is the app's own.
            if not body.trouble:
                raise
        if body.trouble and not started:
            await answer(body.trouble, scope, body.next, send)


def _again(content: bytes, body: Body) -> Receive:
    """A ``receive`` that begins with what was read already."""
    read = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        return read.pop() if read else await body.next()

    return receive
