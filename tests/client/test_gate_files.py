"""No request makes the studio read a file that was not uploaded to it, whatever listener it is for.

The gate refuses such a request, and Gradio's own check holds without it: each is tried alone.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from plumbline.errors import StudioError
from plumbline_studio import serve

CANARY = "CANARY-7f3a"
LOGIN = {"Authorization": "Basic " + base64.b64encode(b"ann:secret").decode()}
# What a value of the page can look like with a file in it.
SHAPES = {
    "alone": lambda file: file,
    "list": lambda file: [file],
    "nested": lambda file: {"value": {"a": [[file]]}},
    "gallery": lambda file: [{"image": file, "caption": None}, [file, "caption"]],
    "message": lambda file: [{"role": "user", "content": [{"type": "file", "file": file}]}],
}


def named(path: str, **more: Any) -> dict[str, Any]:
    """What the page sends for a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


@pytest.fixture
def uploads(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for uploads, as `serve` makes it."""
    folder = workspace / "uploads" / "now"
    folder.mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    for name in ("PLUMBLINE_AUTH", "PLUMBLINE_HOSTS", "SPACE_ID", "SPACE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(CANARY)
    return path


@asynccontextmanager
async def calling(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """The running application, called without a network."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield client


def page_of(app: FastAPI) -> Any:
    return app.routes[-1].app.get_blocks()  # type: ignore[attr-defined]


def copies(uploads: Path) -> list[Path]:
    return [path for path in uploads.rglob("*") if path.is_file() and CANARY in path.read_text("latin-1")]


async def try_every_listener(
    client: httpx.AsyncClient, blocks: Any, file: dict[str, Any]
) -> dict[str, list[httpx.Response]]:
    """The answers by shape; the file stands in every place that the page fills."""
    found: dict[str, list[httpx.Response]] = {shape: [] for shape in SHAPES}
    for number, listener in blocks.fns.items():
        for shape, form in SHAPES.items():
            # A State takes its value from the server: a listener with nothing else is named no file.
            data = [None if block.stateful else form(file) for block in listener.inputs]
            if any(data):
                body = {"data": data, "fn_index": number, "session_hash": "s"}
                found[shape].append(await client.post("/gradio_api/run/predict", json=body))
    return found


MODES = {
    "loopback": ("127.0.0.1", {}, {}),
    "listen": ("0.0.0.0", {"PLUMBLINE_AUTH": "ann:secret"}, LOGIN),
    "space": (
        "0.0.0.0",
        {"PLUMBLINE_AUTH": "ann:secret", "SPACE_ID": "ann/x", "SPACE_HOST": "x.hf.space"},
        LOGIN,
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_no_listener_takes_a_file_that_was_not_uploaded(
    uploads: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    host, variables, headers = MODES[mode]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    app = serve.application(host)
    page_of(app).has_launched = False  # as Gradio leaves it: the gate alone refuses

    async def attack() -> None:
        async with calling(app) as client:
            client.headers.update(headers)
            answers = await try_every_listener(client, page_of(app), named(str(canary)))
            for shape, tried in answers.items():
                assert len(tried) > 75, shape
                assert {answer.status_code for answer in tried} == {403}, shape
            assert CANARY not in "".join(answer.text for tried in answers.values() for answer in tried)

    asyncio.run(attack())
    assert copies(uploads) == []


def test_a_space_without_a_password_does_not_start(uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "ann/x")
    with pytest.raises(StudioError, match="secret of the Space"):
        serve.application("0.0.0.0")


def test_gradio_itself_takes_no_such_file_from_any_listener(
    uploads: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "guard", lambda *_: None)
    app = serve.application("127.0.0.1")

    async def attack() -> None:
        async with calling(app) as client:
            answers = await try_every_listener(client, page_of(app), named(str(canary)))
            for tried in answers.values():
                assert len(tried) > 75
                assert {answer.status_code for answer in tried} == {500}
            assert CANARY not in "".join(answer.text for tried in answers.values() for answer in tried)
            assert copies(uploads) == []
            # A device has no end: only to begin reading it would never come back.
            for path in ("/dev/zero", "/proc/self/environ"):
                body = {"data": [named(path)], "fn_index": one_value(page_of(app)), "session_hash": "s"}
                assert (await client.post("/gradio_api/run/predict", json=body)).status_code == 500

    asyncio.run(attack())
    assert [path for path in uploads.rglob("*") if path.is_file()] == []


def one_value(blocks: Any) -> int:
    """A listener that takes one value of the page."""
    return next(
        number
        for number, listener in blocks.fns.items()
        if len(listener.inputs) == 1 and not listener.inputs[0].stateful
    )


def test_every_route_and_spelling_is_refused_and_an_upload_passes(uploads: Path, canary: Path) -> None:
    former = uploads.parent / "before" / "hash" / "a.jsonl"
    former.parent.mkdir(parents=True)
    former.write_text(CANARY)
    link = uploads / "link"
    link.symlink_to(canary)
    app = serve.application("127.0.0.1")
    blocks = page_of(app)
    blocks.has_launched = False
    listener = one_value(blocks)

    def body(*values: Any, **more: Any) -> dict[str, Any]:
        return {"data": list(values), "fn_index": listener, "session_hash": "s", **more}

    async def attack() -> None:
        async with calling(app) as client:
            sent = await client.post("/gradio_api/upload", files={"files": ("a.jsonl", b'{"text": "x"}')})
            (good,) = sent.json()
            bad, quoted = json.dumps(str(canary)), json.dumps(good)

            async def status(content: bytes | dict[str, Any], route: str = "run/predict") -> int:
                raw = json.dumps(content).encode() if isinstance(content, dict) else content
                kind = {"Content-Type": "application/json"}
                answer = await client.post(f"/gradio_api/{route}", content=raw, headers=kind)
                assert CANARY not in answer.text
                return answer.status_code

            own = {"url": f"http://localhost/gradio_api/file={good}", "orig_name": "a.jsonl"}
            for fine in (named(good), named(good, **own), [named(good)], {"path": None}, "/etc/passwd"):
                assert await status(body(fine)) != 403, fine

            paths = (
                "/proc/self/environ",
                "/dev/zero",
                "https://203.0.113.9/a.jsonl",
                "file:///etc/passwd",
                os.path.relpath(canary),
                os.path.relpath(good),
                f"{uploads}/../before/hash/a.jsonl",
                str(former),
                str(link),
                str(uploads),
                str(Path(good).parent),
                good + ".missing",
                good + "\0",
                "\ud800",
                "~/.ssh/id_rsa",
                "",
                str(uploads) + "x/a.jsonl",
            )
            for path in paths:
                assert await status(body(named(path))) == 403, path
                assert await status(body({"path": path})) == 403, path
            assert await status(body(named(good, url="http://203.0.113.9/a"))) == 403
            assert await status(body(named(good, url="//203.0.113.9/a"))) == 403

            file = named(str(canary))
            for route in (
                "queue/join",
                "run/predict",
                "run/predict/",
                "api/predict",
                "call/predict",
                "call/v2/predict",
                "stream/event",
                "component_server",
                "cancel",
                "reset",
            ):
                assert await status(body(file), route) == 403, route
            assert await status({"file": file}, "call/v2/predict") == 403
            assert await status(body("x", event_data={"file": file})) == 403
            spellings = (
                f'{{"data": [{{"p\\u0061th": {bad}, "m\\u0065ta": {{"_type": "gradio.FileData"}}}}]}}',
                f'{{"data": [{{"path": {bad}, "path": {quoted}, "meta": {{"_type": "gradio.FileData"}}}}]}}',
                f'{{"data": [{{"path": {quoted}, "path": {bad}, "meta": {{"_type": "gradio.FileData"}}}}]}}',
                f'{{"data": [{{"path": {bad}}}], "data": []}}',
            )
            for text in spellings:
                for coding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
                    assert await status(text.encode(coding)) == 403, (text, coding)
            assert await status(b"[" * 100_000) == 400
            assert await status(f'{{"data": [{{"path": {bad}'.encode()) == 400
            form = await client.post(
                "/gradio_api/component_server", files={"data": ("a", b"x")}, data={"path": str(canary)}
            )
            assert form.status_code == 400

    asyncio.run(attack())
    assert copies(uploads) == [link]
