"""What the server holds of every page that was opened."""

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest

from plumbline_studio import serve

KIB = 1024


@pytest.fixture
def blocks(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(workspace / "uploads"))
    app = serve.application("127.0.0.1").routes[-1].app  # type: ignore[attr-defined]
    page = app.get_blocks()
    page.app = app  # the one that is served
    return page


def listeners(blocks: Any, kind: str) -> list[int]:
    """Those that ask the server: the others run in the browser."""
    return [
        number
        for number, fn in blocks.fns.items()
        if fn.fn is not None and any(event == kind for _, event in fn.targets)
    ]


def open_page(blocks: Any, name: str, kinds: tuple[str, ...] = ("load", "tick")) -> None:
    """What a page asks for when it is opened, and once when it looks again."""

    async def asked() -> None:
        transport = httpx.ASGITransport(blocks.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            for number in (number for kind in kinds for number in listeners(blocks, kind)):
                data = [getattr(block, "value", None) for block in blocks.fns[number].inputs]
                body = {
                    "data": [None if callable(value) else value for value in data],
                    "fn_index": number,
                    "session_hash": name,
                }
                assert (await client.post("/gradio_api/run/predict", json=body)).status_code == 200

    asyncio.run(asked())


def test_a_page_costs_little_memory(blocks: Any) -> None:
    holder = blocks.state_holder
    assert holder.capacity <= 200
    open_page(blocks, "first")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(3):
        open_page(blocks, f"page {number}")
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    print(f"\n{grown / 3 / KIB:.0f} KiB a page")
    assert grown / 3 < 400 * KIB


def test_an_evicted_page_goes_on_where_it_was(blocks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = blocks.state_holder
    monkeypatch.setattr(holder, "capacity", 3)
    (state,) = [number for number, block in blocks.blocks.items() if isinstance(block, gr.State)]
    holder["mine"][state] = ("key", "forecast")
    for number in range(50):
        assert holder[f"other {number}"][state] is None
        assert len(holder.session_data) <= 4
    assert "mine" not in holder
    assert holder["mine"][state] == ("key", "forecast")


def test_pages_that_were_closed_go_before_those_that_are_open(
    blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = blocks.state_holder
    monkeypatch.setattr(holder, "capacity", 3)
    for name in ("open", "closed", "open too", "last"):
        holder[name].is_closed = name == "closed"
    assert list(holder.session_data) == ["open", "open too", "last"]
    holder["one more"]
    holder["and another"]
    assert list(holder.session_data)[-1] == "and another" and "open" not in holder
