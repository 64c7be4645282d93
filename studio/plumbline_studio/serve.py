"""Serve the studio: a FastAPI application with the gate in front and Gradio mounted in it.

The worker lives here and not in a page, so closing the browser changes nothing for a run.
"""

import ctypes
import gc
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, Response
from gradio.utils import get_upload_folder

from plumbline import program
from plumbline.errors import StudioError
from plumbline.home import assets, export_folder, folder, home
from plumbline.jobs import queue, signals, workspace_lock
from plumbline.jobs.job_names import subject
from plumbline.jobs.mode import choose
from plumbline.runs import delete
from plumbline.store import startup
from plumbline.worker.worker import Worker
from plumbline_studio import app as studio_app
from plumbline_studio import sessions
from plumbline_studio.gate.connection import Connection
from plumbline_studio.gate.middleware import guard
from plumbline_studio.gate.settings import settings_from_environment

UPLOAD_LIMIT = 2 * 1024**3
M_ARENA_MAX = -8  # of glibc's mallopt
Run = Annotated[int | None, Query(ge=1, lt=2**63)]


def application(host: str) -> FastAPI:
    """The whole server as an ASGI application. :raises StudioError: on an unsafe address"""
    settings = settings_from_environment(host)
    server = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @server.get("/download/{job_id}")
    def download(job_id: int) -> FileResponse:
        """The file that an export made. By id only: no path is ever taken from a browser."""
        try:
            job = queue.get(job_id)
        except StudioError as error:
            raise HTTPException(404, "no such export") from error
        if job["state"] != "completed" or not job["result"] or "file" not in job["result"]:
            raise HTTPException(404, "no such export")
        path = export_folder(job_id, create=False) / Path(job["result"]["file"]).name
        if not path.is_file():
            raise HTTPException(404, "its file was deleted from the workspace")
        return FileResponse(path, filename=path.name)

    page = studio_app.build()
    blocks = page.blocks

    @server.get("/live")
    def live(
        run: Run = None, seen: str = "", shown: Run = None, paused: bool = False, now: bool = False
    ) -> Response:
        """What changed on a page since its last answer; see `plumbline_studio.live` and assets/page.js."""
        answer = page.answer(run, seen.split("."), shown, paused, now)
        text = f'{{"server": {json.dumps(blocks.app_id)}, {answer[1:]}'
        return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})

    gr.mount_gradio_app(
        server,
        blocks,
        path="/",
        theme=studio_app.THEME,
        css_paths=assets() / "style.css",
        head=_head(),
        show_error=False,
        # Below the gate's own limit: Gradio removes what it cuts off, the gate only ends it.
        max_file_size=UPLOAD_LIMIT - 1024**2,
        allowed_paths=[],
        blocked_paths=[
            str(home() / name) for name in ("plumbline.db", "backups", "datasets", "runs", "exports")
        ],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        footer_links=["settings"],
    )
    # Gradio checks which files a request names only of an app that it started itself.
    blocks.has_launched = True
    sessions.bound(blocks)
    guard(server, settings, Path(get_upload_folder()))
    return server


def _head() -> str:
    """The sentence for a proxy that passes too little on, and the page's scripts."""
    proxy, *scripts = (
        (assets() / name).read_text(encoding="utf-8") for name in ("proxy.html", "page.js", "chat.js")
    )
    return proxy + "".join(f"<script>{script}</script>" for script in scripts)


def serve(host: str, port: int, run_id: int | None, worker_mode: str = "auto") -> None:
    """Serve until interrupted: the first signal lets the running job save its state, the next one does not.

    :param run_id: the run that the printed address opens
    :param worker_mode: where jobs are done: ``auto``, ``process`` or ``thread``
    :raises StudioError: when the address is unsafe or taken, the worker's mode is none of these, another
        studio serves this workspace, or its database is not to be gone on with
    """
    if os.environ.get("SPACE_ID"):
        host = "0.0.0.0"
    mode = choose(worker_mode)
    with workspace_lock.studio() as note_address:
        for text in startup.ready():
            print(f"Note: {text}", flush=True)
        _serve(host, port, run_id, mode.value, note_address)


def _serve(
    host: str, port: int, run_id: int | None, worker_mode: str, note_address: Callable[[str], None]
) -> None:
    _share_heaps()
    _forget_uploads()
    delete.clear()
    server = application(host)
    gc.enable()
    gc.freeze()  # what was imported stays for good: later collections need not look at it
    # A thread that trains gives way to a click after 1 ms, not Python's usual 5.
    sys.setswitchinterval(0.001)
    listener = _listener(host, port)
    program.show_on_a_page()
    worker = Worker(worker_mode)
    worker.start()
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    query = f"?run={run_id}" if run_id is not None else ""
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    note_address(address)
    print(f"Plumbline is at {address}{query}  (Ctrl-C ends it)", flush=True)
    # Forwarded headers are not believed; the gate takes from a proxy what it needs.
    config = uvicorn.Config(
        server, http=Connection, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=2
    )
    _serve_until_signalled(_Server(config), listener, worker)


def _share_heaps() -> None:
    """glibc gives each of many threads a heap, and what one has freed is of no use to the others.

    Requests are answered in up to forty threads: the studio grew by 90 MiB in twenty minutes of use.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the code around it."""

    def capture_signals(self) -> AbstractContextManager[None]:
        return nullcontext()


def _serve_until_signalled(server: uvicorn.Server, listener: socket.socket, worker: Worker) -> None:
    ending = threading.Thread(target=worker.end, name="plumbline-end", daemon=True)

    def leave(number: int) -> None:
        if server.should_exit:
            os._exit(128 + number)  # the worker's lock goes with this process, and so does its child
        server.should_exit = True
        ending.start()

    with signals.caught(leave):
        server.run(sockets=[listener])
        if not ending.ident:
            ending.start()  # it ended without a signal
        if (job := queue.active()) is not None:
            print(f"Waiting for {subject(job)} to save its state; Ctrl-C again leaves at once.", flush=True)
        ending.join()
    if (job := queue.active()) is not None:
        print(f"{subject(job)} did not end: it will be marked interrupted.".capitalize(), file=sys.stderr)


def _listener(host: str, port: int) -> socket.socket:
    # asyncio switches Nagle's delay (40 ms a small answer) off only for sockets that name TCP.
    listener = socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        what = error.strerror if isinstance(error, OSError) else None
        raise StudioError(f"{host}:{port}", what or "cannot be used", "Choose another with --port.") from None
    return listener


def _forget_uploads() -> None:
    """Give this process a folder for uploads; what ended ones left behind, of imports too, is removed."""
    for name in ("uploads", "staging"):
        for old in folder(name).iterdir():
            if old.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(old, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(dir=folder("uploads"))
