"""What a refused request gets: constant text. Nothing that a request carried is ever repeated."""

from typing import NamedTuple

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from plumbline_studio.gate.names import values


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
FOREIGN_FILE = Refusal(
    403,
    "The request names a file that was not uploaded here since the studio started. Upload it again.",
)
NOT_JSON = Refusal(400, "The body of this request is not JSON. Use the studio's own page.")
TOO_SLOW = Refusal(
    408, "The request did not arrive in full: nothing came for a while.", (("Connection", "close"),)
)
NO_PASSWORD = Refusal(
    401,
    "User and password are needed: those set in PLUMBLINE_AUTH.",
    (("WWW-Authenticate", 'Basic realm="Plumbline", charset="UTF-8"'),),
)


def too_large(limit: int) -> Refusal:
    text = f"The request is larger than {limit} bytes. Send less, or split the file in parts."
    return Refusal(413, text)


async def answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the refusal, in the form in which Gradio's page shows its text."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before accept: HTTP 403
        return
    headers = dict(refusal.headers)
    response: Response
    if "".join(values(scope, b"content-type")).partition(";")[0].strip().lower() == "application/json":
        response = JSONResponse({"detail": refusal.text}, refusal.status, headers)
    else:
        response = PlainTextResponse(refusal.text, refusal.status, headers)
    await response(scope, receive, send)
