"""How quick the page is: python -m tests.benchmarks.page. Prints a table, asserts nothing.

Measures the time from `launch.py` to the first answered page, then clicks while a run trains.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import ARGUMENTS, chromium_path
from tests.server import Studio

STARTS = 5
ROUNDS = 12


def start_seconds() -> list[float]:
    """From starting the process to the page's 200, on a workspace that exists."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(STARTS + 1):
            began = time.perf_counter()
            studio = Studio(Path(folder))
            while httpx.get(studio.url).status_code != 200:
                pass
            taken.append(time.perf_counter() - began)
            studio.close()
    return taken[1:]  # the first one also makes the workspace


def timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def clicks(page: Page) -> dict[str, list[float]]:
    """Seconds from a click to its answer on the page."""
    names = ("choose a dataset", "next row of the X-ray", "field to Before you start")
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        page.get_by_role("tab", name="Data", exact=True).click()

        def choose(name: str = ("plain-style", "cited-answers")[number % 2]) -> None:
            page.locator("#datasets span.text", has_text=name).click()
            expect(page.locator("#xray-heading")).to_contain_text(f"{name}, row 1")

        def next_row() -> None:
            page.get_by_role("button", name="Next", exact=True).click()
            expect(page.locator("#xray-heading")).to_contain_text("row 2")

        taken["choose a dataset"].append(timed(choose))
        taken["next row of the X-ray"].append(timed(next_row))
        page.get_by_role("tab", name="Train", exact=True).click()

        def field(rows: int = (4, 16)[number % 2]) -> None:
            page.get_by_label("Effective batch").fill(str(rows))
            page.get_by_label("Effective batch").blur()
            expect(page.locator("#before-you-start")).to_contain_text(f"of {rows} rows")

        taken["field to Before you start"].append(timed(field))
    return taken


def main() -> None:
    starts = start_seconds()
    rows = [("launch.py to the page", starts)]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        studio = Studio(Path(folder))
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        page = chromium.new_page(viewport={"width": 1360, "height": 900})
        page.goto(studio.url)
        expect(page.get_by_role("button", name="Start training")).to_be_enabled(timeout=60_000)
        idle = clicks(page)
        page.reload()
        expect(page.get_by_role("button", name="Start training")).to_be_enabled(timeout=60_000)
        page.get_by_role("button", name="Start training").click()
        expect(page.locator("#loss-plot .scatterlayer path.js-line").first).to_be_attached(timeout=90_000)
        busy = clicks(page)
        rows += [(f"idle: {name}", values) for name, values in idle.items()]
        rows += [(f"while training: {name}", values) for name, values in busy.items()]
        chromium.close()
        studio.kill()
    print(f"{'seconds':<44}{'median':>8}{'worst':>8}{'n':>5}")
    for name, values in rows:
        print(f"{name:<44}{statistics.median(values):>8.2f}{max(values):>8.2f}{len(values):>5}")


if __name__ == "__main__":
    main()
