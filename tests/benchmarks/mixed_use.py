"""Mixed use in a browser: python -m tests.benchmarks.mixed_use [MINUTES]. Prints, asserts nothing.

A studio of its own is driven as people use it, for 30 minutes when no number is given: tabs, forms,
reloads, several pages at once, short training runs, chat with the starter, evaluations, imports. Each
minute it prints the studio's memory and what was done; at the end how far memory moved after the first
five minutes, and how long the studio takes to exit after SIGTERM.
"""

import itertools
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from tests.browser.conftest import ARGUMENTS, chromium_path, open_tab, sample_rows
from tests.server import Studio

MINUTES = 30.0
SETTLED = 5  # minutes, after which memory should not grow
TABS = ("Data", "Train", "Runs", "Evaluate", "Chat", "Export")
MOST_PAGES = 6


def memory_mib(process: int) -> float:
    """What a process holds in memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Uses:
    """The things that a person does, each on a page that is open."""

    def __init__(self, browser: Browser, studio: Studio, folder: Path) -> None:
        self.browser, self.studio, self.folder = browser, studio, folder
        self.open: list[tuple[BrowserContext, Page]] = []
        self.numbers = itertools.count(1)

    def new_page(self) -> Page:
        if len(self.open) >= MOST_PAGES:
            context, _ = self.open.pop(0)
            context.close()
        context = self.browser.new_context(viewport={"width": 1360, "height": 900})
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(self.studio.url)
        self.open.append((context, page))
        expect(page.locator("#strip")).to_contain_text("queue", timeout=60_000)
        return page

    def reload(self, page: Page) -> None:
        page.reload()
        expect(page.locator("#strip")).to_contain_text("queue", timeout=60_000)

    def tabs(self, page: Page) -> None:
        for name in random.sample(TABS, len(TABS)):
            open_tab(page, name)
            page.wait_for_timeout(300)

    def form(self, page: Page) -> None:
        open_tab(page, "Train")
        for key, values in (("training-epochs", "12345"), ("lora-r", ("4", "8", "16"))):
            field = page.locator(f"#set-{key} input").first
            field.fill(random.choice(values))
            field.blur()
        page.wait_for_timeout(1000)

    def rows(self, page: Page) -> None:
        open_tab(page, "Data")
        name = random.choice(("plain-style", "cited-answers", "ticket-triage"))
        page.locator("#datasets span.text", has_text=name).first.click()
        for _ in range(5):
            page.get_by_role("button", name="Next", exact=True).click()
            page.wait_for_timeout(200)
        for pane in ("Rows", "Statistics", "Warnings", "Loss X-ray"):
            open_tab(page, pane)
            page.wait_for_timeout(300)

    def add_data(self, page: Page) -> None:
        open_tab(page, "Data")
        file = sample_rows(self.folder / f"rows-{next(self.numbers)}.jsonl", 40)
        page.locator("#upload input[type=file]").set_input_files(file)
        page.get_by_role("button", name="Check and add").click()
        expect(page.locator("#verdict")).to_contain_text("40 rows", timeout=60_000)

    def train(self, page: Page) -> None:
        """Start a short run, unless one is worked on; the other uses go on meanwhile."""
        open_tab(page, "Train")
        start = page.locator("#start")
        expect(start).to_be_enabled(timeout=60_000)
        if "Start" not in start.inner_text():
            return
        epochs = page.locator("#set-training-epochs input")
        epochs.fill("1")
        epochs.blur()
        page.wait_for_timeout(2000)
        expect(start).to_be_enabled(timeout=60_000)
        start.click()
        expect(page.locator("#run-head")).to_contain_text("State", timeout=60_000)

    def evaluate(self, page: Page) -> None:
        open_tab(page, "Evaluate")
        button = page.locator("#evaluate")
        if button.is_enabled():
            button.click()
            page.wait_for_timeout(5000)

    def chat(self, page: Page) -> None:
        open_tab(page, "Chat")
        page.locator("#prompt textarea").fill(f"What is {random.randint(1, 99)} and why?")
        page.locator("#send").click()
        page.wait_for_timeout(6000)


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    random.seed(0)
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = Path(place)
        studio = Studio(folder / "home")
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        uses = Uses(browser, studio, folder)
        uses.new_page()
        often: list[tuple[Callable[[Page], object], int]] = [
            (uses.tabs, 4),
            (uses.form, 4),
            (uses.rows, 4),
            (uses.reload, 4),
            (lambda page: uses.new_page(), 3),
            (uses.chat, 3),
            (uses.evaluate, 1),
            (uses.add_data, 1),
            (uses.train, 1),
        ]
        names = ("tabs", "form", "rows", "reload", "new page", "chat", "evaluate", "import", "train")
        began, said, memories = time.monotonic(), 0, {0: memory_mib(studio.process.pid)}
        print(f"minute {0:>3}: {memories[0]:>7.1f} MiB", flush=True)
        while (passed := (time.monotonic() - began) / 60) < minutes:
            if int(passed) > said:
                said = int(passed)
                memories[said] = memory_mib(studio.process.pid)
                told = ", ".join(f"{name} {done[name]}" for name in (*names, "failed") if done[name])
                print(f"minute {said:>3}: {memories[said]:>7.1f} MiB; {told}", flush=True)
            number = random.choices(range(len(often)), [weight for _, weight in often])[0]
            if done["train"] + done["failed"] == 0 and passed > 0.3:  # what others need is there early
                number = names.index("train")
            try:
                often[number][0](random.choice(uses.open)[1])
                done[names[number]] += 1
            except (AssertionError, Error) as error:
                done["failed"] += 1
                print(f"  {names[number]}: {str(error).splitlines()[0][:150]}", flush=True)
        settled = [value for minute, value in memories.items() if minute >= min(SETTLED, said)]
        print(f"memory after minute {min(SETTLED, said)}: {settled[0]:.1f} MiB, then at most")
        print(f"  {max(settled) - settled[0]:+.1f} MiB, at the end {settled[-1] - settled[0]:+.1f} MiB")
        began = time.monotonic()
        studio.process.send_signal(signal.SIGTERM)
        studio.process.wait()
        print(f"exit after SIGTERM, {len(uses.open)} pages open: {time.monotonic() - began:.1f} s")
        browser.close()


if __name__ == "__main__":
    main()
