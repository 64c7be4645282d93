"""The whole road in one browser: upload, preview, train, reload, evaluate, chat, merge, download."""

import zipfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import open_tab, sample_rows
from tests.server import Studio

CURVE = """() => {
  const plot = document.querySelector('#loss-plot .js-plotly-plot');
  if (!plot || !plot.data) return [];
  const train = plot.data[0];
  return Array.from(train.x).map((x, i) => [x, train.y[i]]);
}"""


def curve(page: Page, at_least: int) -> list[list[float]]:
    """The raw training points that the chart shows, once there are enough of them."""
    expect(page.locator("#loss-plot .scatterlayer path.js-line").first).to_be_attached()
    page.wait_for_function(f"() => ({CURVE})().length >= {at_least}", timeout=90_000)
    return page.evaluate(CURVE)


def zoom_is_kept(page: Page) -> None:
    """Zoom into the chart of a run that has ended: ticks of the timer leave it alone."""
    box = page.locator("#loss-plot .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    shown = "document.querySelector('#loss-plot .js-plotly-plot')._fullLayout.xaxis.range"
    page.wait_for_function(f"() => {shown}[0] > 5")
    zoomed = page.evaluate(shown)
    page.wait_for_timeout(5000)
    assert page.evaluate(shown) == zoomed


def test_the_whole_road(page: Page, browser: Browser, studio: Studio, tmp_path: Path) -> None:
    page.goto(studio.url)
    expect(page.get_by_role("tab", name="Train", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#strip")).to_contain_text("press Start")

    # Upload and look at what will be learned.
    open_tab(page, "Data")
    expect(page.locator("#xray-heading")).to_contain_text("cited-answers, row 1")
    upload = sample_rows(tmp_path / "my-citations.jsonl", 160)
    page.locator("#upload input[type=file]").set_input_files(upload)
    page.get_by_role("button", name="Check and add").click()
    expect(page.locator("#verdict")).to_contain_text("my-citations: 160 rows of the shape messages")
    expect(page.locator("#xray-heading")).to_contain_text("my-citations, row 1")
    expect(page.locator("#xray .pl-xray .learned").first).to_be_visible()
    expect(page.locator("#xray .pl-xray .end")).to_have_text("<|im_end|>")

    # Train on it.
    open_tab(page, "Train")
    expect(page.locator("#set-data-dataset input")).to_have_value("my-citations")
    expect(page.locator("#before-you-start")).to_contain_text("144 train + 16 held out")
    page.get_by_label("Epochs").fill("3")
    page.get_by_label("Epochs").blur()
    expect(page.locator("#before-you-start")).to_contain_text("54 of 8 rows")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("tab", name="Runs", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#run-head")).to_contain_text("my-citations-r16")
    before = curve(page, 3)

    # Reload in the middle of the run: the same curve, and going on.
    page.reload()
    after = curve(page, len(before) + 1)
    assert after[: len(before)] == before
    expect(page.locator("#strip .pl-dot")).to_have_class("pl-dot live")

    # A second visitor sees the same.
    other = browser.new_page()
    other.goto(studio.url)
    assert curve(other, 3)[: len(before)] == before
    other.close()

    expect(page.locator("#run-head")).to_contain_text("State completed", timeout=180_000)
    assert len(curve(page, 54)) == 54
    zoom_is_kept(page)
    expect(page.locator("#perplexity-plot .scatterlayer path.js-line").first).to_be_attached()

    # Evaluate.
    open_tab(page, "Evaluate")
    page.get_by_role("button", name="Evaluate my-citations-r16").click()
    expect(page.locator("#evaluate-result")).to_contain_text("16 of 16 held-out rows", timeout=120_000)
    expect(page.locator("#evaluate-result")).to_contain_text("Held-out perplexity went from")

    # Chat: both panes answer, token by token.
    open_tab(page, "Chat")
    page.locator("#sample-0").click()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    page.evaluate("""() => { window.seen = [];
      const pane = document.querySelector('#chat-adapter');
      new MutationObserver(() => {
        const said = [...pane.querySelectorAll('.pl-assistant .pl-said')];
        const text = said.map(e => e.innerText.trim()).join('');
        if (text && window.seen.at(-1) !== text) window.seen.push(text);
      }).observe(pane, {subtree: true, childList: true, characterData: true});
    }""")
    page.get_by_role("button", name="Send").click()
    for pane in ("#chat-base", "#chat-adapter"):
        expect(page.locator(f"{pane} .pl-assistant").first).to_contain_text(".", timeout=60_000)
    # The tuned model has learned to cite and to stop.
    expect(page.locator("#chat-adapter .pl-assistant").first).to_contain_text("].")
    assert page.evaluate("window.seen.length") >= 3, "the answer did not grow as it was written"
    # The conversation outlasts a reload.
    answer = page.locator("#chat-adapter .pl-assistant .pl-said").first.inner_text()
    page.reload()
    expect(page.locator("#chat-adapter .pl-assistant").first).to_contain_text(answer)

    # Merge and download.
    open_tab(page, "Export")
    page.get_by_role("button", name="Merge into the base").click()
    link = page.locator("#result-merge").get_by_role("link", name="Download run-1-merged.zip")
    expect(link).to_be_visible(timeout=120_000)
    expect(page.locator("#result-merge")).to_contain_text("Same next token as base + adapter on 8 of 8")
    with page.expect_download() as download:
        link.click()
    saved = tmp_path / "merged.zip"
    download.value.save_as(saved)
    with zipfile.ZipFile(saved) as bundle:
        assert bundle.testzip() is None
        assert "run-1-merged/model.safetensors" in bundle.namelist()
    assert not any("Traceback" in line for line in studio.printed)
