"""Take pictures of every tab of a studio whose newest run is finished. Not a test.

PLUMBLINE_HOME=... python -m tests.browser.screenshots               the README's pictures
PLUMBLINE_HOME=... python -m tests.browser.screenshots --all FOLDER  both themes, two widths
"""

import os
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests import ROOT
from tests.browser.conftest import ARGUMENTS, chromium_path
from tests.server import Studio

TABS = ("Data", "Train", "Runs", "Evaluate", "Chat", "Export")


def main() -> None:
    everything = "--all" in sys.argv
    target = Path(sys.argv[-1]) if everything else ROOT / "assets" / "screenshots"
    target.mkdir(exist_ok=True)
    studio = Studio(Path(os.environ["PLUMBLINE_HOME"]))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        for theme in ("light", "dark") if everything else ("light",):
            for width in (1360, 800) if everything else (1360,):
                page = chromium.new_page(viewport={"width": width, "height": 900})
                page.goto(f"{studio.url}?__theme={theme}")
                page.locator("#loss-plot .scatterlayer path.js-line").first.wait_for(state="attached")
                for tab in TABS:
                    page.get_by_role("tab", name=tab, exact=True).click()
                    if tab == "Chat":
                        page.locator("#sample-0").click()
                        page.get_by_role("button", name="Send").click()
                        page.locator("#chat-base .pl-assistant").wait_for(timeout=60_000)
                    time.sleep(5)
                    name = f"{tab.lower()}-{theme}-{width}.png" if everything else f"{tab.lower()}.png"
                    page.screenshot(path=target / name, full_page=True)
                page.close()
        chromium.close()
    studio.close()


if __name__ == "__main__":
    main()
