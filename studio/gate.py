"""Everything that stands between the network and the Gradio app.

Host names, origins, the password, body sizes and response headers are checked in one ASGI
middleware that never buffers, so streams stay streams. The one rule: what the gate answers is
constant text; nothing that a request carried is ever repeated.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import math
import os
import re
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import StudioError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
UPLOAD_PATH = "/gradio_api/upload"

ATTEMPTS = 5  # wrong passwords that one address may send within WINDOW seconds
WINDOW = 60
ADDRESSES = 4096  # addresses remembered at most; the one silent for longest is forgotten first

# "name", "name:port", "[::1]" or "[::1]:port", and nothing else: no user part, no trailing dot
AUTHORITY = re.compile(
    r"(?:\[([0-9a-f]*:[0-9a-f:.]+)\]|([a-z0-9_.-]*[a-z0-9_-]))(?::(\d{1,5}))?", re.ASCII | re.I
)
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


@dataclass(frozen=True)
class GateSettings:
    """Who may come in, and with how much."""

    hosts: tuple[str, ...] = LOOPBACK  # names that Host may carry, the port is ignored
    credentials: tuple[str, str] | None = field(default=None, repr=False)  # user, password
    max_upload_bytes: int = 2 * 1024**3
    max_body_bytes: int = 1024**2  # of everything but the upload route
    frame_ancestors: str = "'self'"
    any_ip: bool = False  # a Host that is an IP address passes: a rebinding attack needs a name
    origins: tuple[str, ...] = ()  # accepted whatever Host is, for example "https://a.hf.space"


def settings_from_environment(host: str) -> GateSettings:
    """The settings for listening on `host`: PLUMBLINE_AUTH, PLUMBLINE_HOSTS and those of Spaces.

    Raises StudioError when the studio would be open to the network without a password.
    """
    host = host.strip("[]").lower()
    address = _ip(host)
    local = host == "localhost" or (address is not None and address.is_loopback)
    on_space = bool(os.environ.get("SPACE_ID"))
    space_hosts = _names("SPACE_HOST") if on_space else ()  # two names with a custom domain
    credentials = _credentials(os.environ.get("PLUMBLINE_AUTH", ""))
    # A Space asks for one too: whoever opens it could start, read and delete runs.
    if not (local or credentials):
        raise StudioError(
            "PLUMBLINE_AUTH",
            "listening beyond this computer needs a password",
            'Set PLUMBLINE_AUTH="user:password"'
            + (" as a secret of the Space." if on_space else ", or listen on 127.0.0.1."),
        )
    return GateSettings(
        hosts=tuple(dict.fromkeys((*LOOPBACK, host, *_names("PLUMBLINE_HOSTS"), *space_hosts))),
        credentials=credentials,
        frame_ancestors="'self' https://huggingface.co" if on_space else "'self'",
        any_ip=not local,
        origins=tuple(f"https://{name}" for name in space_hosts),
    )


def guard(app: FastAPI, settings: GateSettings) -> None:
    """Put the gate in front of `app`. Call it last, so that no other middleware is outside.

    The presence of CORSMiddleware switches off Gradio's own, which would allow any origin:
    https://github.com/gradio-app/gradio/blob/main/gradio/route_utils.py (parent_configures_cors)
    """
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(Gate, settings=settings)


class Refusal(NamedTuple):
    """What the client gets in place of the app's answer."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


BAD_HOST = Refusal(
    403,
    "This host name is not allowed. Open the studio under the address it printed at start, or "
    "name the host in PLUMBLINE_HOSTS (several are separated by commas) and restart.",
)
BAD_ORIGIN = Refusal(
    403,
    "This request came from a page of another site. Use the studio's own page; behind a proxy, "
    "let the proxy pass the Host header on unchanged.",
)
REMOTE_FILE = Refusal(403, "The studio fetches no files from other sites. Upload the file.")
NO_PASSWORD = Refusal(
    401,
    "User and password are needed: those set in PLUMBLINE_AUTH.",
    (("WWW-Authenticate", 'Basic realm="Plumbline", charset="UTF-8"'),),
)


class Failures:
    """Wrong passwords of the last minute by client address, in bounded memory."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def seconds_to_wait(self, address: str, now: float) -> int:
        times = self._times.get(address, ())
        if len(times) < ATTEMPTS:
            return 0
        return max(0, math.ceil(times[0] + WINDOW - now))

    def note(self, address: str, now: float) -> None:
        self._times.setdefault(address, deque(maxlen=ATTEMPTS)).append(now)
        self._times.move_to_end(address)
        if len(self._times) > ADDRESSES:
            self._times.popitem(last=False)


class Gate:
    """The middleware that `guard` adds."""

    def __init__(self, app: ASGIApp, settings: GateSettings) -> None:
        self.app, self.settings = app, settings
        self.failures = Failures()
        self.expected = _digest(os.fsencode(":".join(settings.credentials or ())))
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
            await send(message)

        refusal = self._refusal(scope)
        if refusal:
            await _answer(refusal, scope, receive, send_with_headers)
            return
        kept = [pair for pair in scope["headers"] if pair[0] not in UNTRUSTED_HEADERS]
        await self._limited({**scope, "headers": kept}, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Why this request may not reach the app, as far as its head tells."""
        if not self._host_allowed(scope):
            return BAD_HOST
        if not self._origin_allowed(scope):
            return BAD_ORIGIN
        refusal = self._password_refusal(scope) if self.settings.credentials else None
        if refusal:
            return refusal
        if REMOTE.match(scope["path"]):
            return REMOTE_FILE
        # A length that is no number is for the server to judge; the bytes are counted anyway.
        length, limit = "".join(_values(scope, b"content-length")), self._limit(scope)
        if length.isdecimal() and (len(length) > 15 or int(length) > limit):
            return _too_large(limit)
        return None

    def _host_allowed(self, scope: Scope) -> bool:
        hosts = _values(scope, b"host")
        parsed = _authority(hosts[0]) if len(hosts) == 1 else None
        if parsed is None:
            return False
        allowed = parsed[0] in self.settings.hosts
        return allowed or (self.settings.any_ip and _ip(parsed[0]) is not None)

    def _origin_allowed(self, scope: Scope) -> bool:
        """Whether a request that may change something comes from our own page or no page at all."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            return True
        origins = _values(scope, b"origin")
        if not origins:  # not a browser, or one that says where the request comes from otherwise
            return set(_values(scope, b"sec-fetch-site")) <= {"same-origin", "none"}
        if len(origins) > 1:
            return False
        if origins[0] in self.settings.origins:
            return True
        scheme, _, rest = origins[0].partition("://")
        default_port = {"http": 80, "https": 443}.get(scheme)
        theirs, ours = _authority(rest), _authority(_values(scope, b"host")[0])
        if default_port is None or theirs is None or ours is None:
            return False
        return (theirs[0], theirs[1] or default_port) == (ours[0], ours[1] or default_port)

    def _password_refusal(self, scope: Scope) -> Refusal | None:
        address, now = _client(scope), time.monotonic()
        wait = self.failures.seconds_to_wait(address, now)
        if wait:
            text = "Too many wrong passwords from this address. Wait a minute, then try again."
            return Refusal(429, text, (("Retry-After", str(wait)),))
        sent = _values(scope, b"authorization")
        if not sent:
            return NO_PASSWORD
        if len(sent) == 1 and self._is_password(sent[0]):
            return None
        self.failures.note(address, now)
        return NO_PASSWORD

    def _is_password(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        # User and password in one go, as digests of one length: the time taken tells nothing.
        equal = hmac.compare_digest(_digest(decoded), self.expected)
        return equal and scheme.lower() == "basic"

    def _limit(self, scope: Scope) -> int:
        upload = scope["path"] == UPLOAD_PATH
        return self.settings.max_upload_bytes if upload else self.settings.max_body_bytes

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; a body that grows over the limit looks to it like a lost connection."""
        limit, seen, started = self._limit(scope), 0, False

        async def counted() -> Message:
            nonlocal seen
            if seen > limit:
                return {"type": "http.disconnect"}
            message = await receive()
            seen += len(message.get("body", b""))
            return message if seen <= limit else {"type": "http.disconnect"}

        async def watched(message: Message) -> None:
            nonlocal started
            if seen > limit and not started:
                return  # the app's own complaint about the lost connection
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            # Past the limit the app complains of the connection that was cut here, in whatever way
            # its parser does; the client is told 413 below. Anything else is the app's own.
            if seen <= limit:
                raise
        if seen > limit and not started:
            await _answer(_too_large(limit), scope, receive, send)


async def _answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before accept: HTTP 403
        return
    response = PlainTextResponse(refusal.text, refusal.status, dict(refusal.headers))
    await response(scope, receive, send)


def _too_large(limit: int) -> Refusal:
    text = f"The request is larger than {limit} bytes. Send less, or split the file in parts."
    return Refusal(413, text)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _authority(text: str) -> tuple[str, int | None] | None:
    """Name and port of a Host header or of the end of an Origin; None if it is neither."""
    found = AUTHORITY.fullmatch(text)
    if found is None or (found[1] and not _ip(found[1])):
        return None
    name = str(_ip(found[1])) if found[1] else found[2].lower()
    return name, int(found[3]) if found[3] else None


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _client(scope: Scope) -> str:
    """The address that failures are counted for: of IPv6 the network, which one client owns."""
    address = (scope.get("client") or ("",))[0]
    if ":" in address and _ip(address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return address


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _credentials(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    user, _, password = text.partition(":")
    if not user or not password:
        raise StudioError(
            "PLUMBLINE_AUTH",
            "this is not a user and a password",
            'Write both with a colon between them: PLUMBLINE_AUTH="user:password".',
        )
    return user, password


def _names(variable: str) -> tuple[str, ...]:
    """The host names in this environment variable, without their ports."""
    entries = [entry.strip() for entry in os.environ.get(variable, "").split(",")]
    parsed = [_authority(entry) for entry in entries if entry]
    if None in parsed:
        raise StudioError(
            variable,
            "one of the entries is not a host name",
            f'Write names without https:// or a path: {variable}="studio.example,10.0.0.5".',
        )
    return tuple(name for name, _ in parsed)
