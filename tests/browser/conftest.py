"""A real studio and a real Chromium. PLUMBLINE_CHROMIUM names the browser; launch.py test sets it."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.server import Studio

expect.set_options(timeout=30_000)


ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def chromium_path() -> str | None:
    """None lets Playwright take its own browser."""
    return os.environ.get("PLUMBLINE_CHROMIUM") or shutil.which("chromium") or None


# One per module: while Playwright is open its event loop runs, and other tests start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio on an empty workspace, shared by one module."""
    running = Studio(tmp_path_factory.mktemp("studio") / "home")
    yield running
    running.close()


@pytest.fixture
def page(browser: Browser, studio: Studio) -> Iterator[Page]:
    """A fresh page that fails its test on console errors, views that fail, and requests to anywhere else."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, accept_downloads=True)
    context.set_default_timeout(30_000)
    shown = context.new_page()
    troubles, before = watch(shown), len(studio.printed)
    yield shown
    context.close()
    troubles += [line for line in studio.printed[before:] if "could not be drawn" in line]
    assert troubles == [], "the studio printed:\n" + "".join(studio.printed)


# What Gradio's script says of its own requests when its page is left for another.
LEFT = ("AbortError: signal is aborted", "Connection errored out")
LEAVING_SECONDS = 2.0


def watch(page: Page) -> list[str]:
    """Collects what a page must not do."""
    troubles: list[str] = []
    at: dict[str, float] = {}

    def left(frame: object) -> None:
        """Requests that a reload cuts short are no trouble."""
        if frame == page.main_frame:
            now = time.monotonic()
            troubles[:] = [
                line
                for line in troubles
                if not any(sign in line for sign in LEFT) or now - at.get(line, now) > LEAVING_SECONDS
            ]

    def console(message: object) -> None:
        if message.type == "error":  # type: ignore[attr-defined]
            troubles.append(f"console: {message.text}")  # type: ignore[attr-defined]
            at[troubles[-1]] = time.monotonic()

    def response(got: object) -> None:
        if got.status >= 500:  # type: ignore[attr-defined]
            sent = got.request  # type: ignore[attr-defined]
            troubles.append(f"{got.status} for {sent.method} {sent.url} {sent.post_data}")  # type: ignore[attr-defined]

    def request(sent: object) -> None:
        url = sent.url  # type: ignore[attr-defined]
        if not url.startswith(("http://127.0.0.1", "data:", "blob:")):
            troubles.append(f"request to {url}")

    page.on("console", console)
    page.on("framenavigated", left)
    page.on("request", request)
    page.on("response", response)
    page.on("pageerror", lambda error: troubles.append(f"page error: {error}"))
    return troubles


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


@contextmanager
def held_back(page: Page, pattern: str) -> Iterator[list[Route]]:
    """Requests to addresses like ``pattern`` reach the studio only when the block has ended.

    :returns: those that wait
    """
    waiting: list[Route] = []
    ended = False

    def hold(route: Route) -> None:
        if ended:
            route.continue_()
        else:
            waiting.append(route)

    page.route(re.compile(pattern), hold)
    yield waiting
    ended = True
    for route in waiting:
        route.continue_()


def sample_rows(path: Path, count: int) -> Path:
    """A file like the ones users bring: the first rows of the citation sample."""
    from plumbline.home import assets

    lines = (assets() / "samples" / "cited-answers" / "train.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:count]))
    return path


def white_slabs(page: Page) -> list[str]:
    """Large bright areas, which a dark page must not have."""
    return page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e => {
            const box = e.getBoundingClientRect();
            const [r, g, b, a] = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
            return box.width > 200 && box.height > 60 && (a ?? 1) > 0.5 && r + g + b > 600;
        }).map(e => e.outerHTML.slice(0, 120))"""
    )
