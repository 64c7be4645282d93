"""A small Gradio app behind the gate on a real server, and requests made by hand."""

import asyncio
import base64
import contextlib
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from plumbline_studio.gate.connection import Connection
from plumbline_studio.gate.middleware import Gate, guard
from plumbline_studio.gate.settings import GateSettings

KIB = 1024
BODY_LIMIT, UPLOAD_LIMIT = 64 * KIB, 256 * KIB
USER, PASSWORD = "ann", "pä:ss wörd"


def blocks() -> gr.Blocks:
    def shout(text: str) -> str:
        return text.upper()

    def count():
        for number in range(3):
            yield number
            time.sleep(0.25)

    with gr.Blocks(analytics_enabled=False) as demo:
        text = gr.Textbox(label="text")
        gr.Button("Shout").click(shout, text, text, api_name="shout")
        gr.Button("Count").click(count, None, gr.Number(), api_name="count")
        upload = gr.File(label="file")
        upload.upload(lambda path: None, upload, None, api_name="take")
    return demo


@contextlib.contextmanager
def serve(settings: GateSettings, uploads: Path):
    """The app behind the gate; yields its address, port and what its /collect route received."""
    app, seen = FastAPI(), SimpleNamespace(bytes=0)

    @app.post("/collect")
    async def collect(request: Request) -> int:
        seen.bytes = 0
        async for chunk in request.stream():
            seen.bytes += len(chunk)
        return seen.bytes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        gr.mount_gradio_app(app, blocks(), path="/", show_error=False, run_history=False, footer_links=[])
    guard(app, settings, uploads)
    # Named as TCP, so that asyncio sends small answers at once (40 ms each otherwise).
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url) as http:
        yield SimpleNamespace(url=url, port=port, http=http, app=app, seen=seen, uploads=uploads)
    server.should_exit = True
    thread.join(5)


def raw(port: int, head: str) -> tuple[int, str]:
    """Send exactly this head and return the status and all that came back."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        lines = [*head.split("\n"), "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return int(answer.split(b" ")[1]), answer.decode("utf-8", "replace")


def knock(app, path="/", method="GET", headers=(), client="127.0.0.1", kind="http"):
    """Call an ASGI app with exactly these headers: (status, headers, text) of its answer."""
    sent = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "method": method, "path": path, "headers": sent, "client": (client, 9)}
    answer = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        answer.append(message)

    asyncio.run(app(scope, receive, send))
    if kind == "websocket":
        return answer
    heads = {name.decode(): value.decode() for name, value in answer[0]["headers"]}
    return answer[0]["status"], heads, b"".join(m.get("body", b"") for m in answer[1:]).decode()


async def inner(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def gated(**settings) -> Gate:
    return Gate(inner, GateSettings(**settings), Path("/nowhere"))


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
