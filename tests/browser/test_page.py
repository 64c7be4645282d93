"""What the page says when things are wrong, and how it looks in both themes."""

import json
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import open_tab, white_slabs
from tests.server import Studio


def test_a_learning_rate_of_abc_is_explained_and_start_waits(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    open_tab(page, "Train")
    field = page.get_by_label("Learning rate")
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()
    field.fill("abc")
    field.blur()
    expect(page.locator("#before-you-start")).to_contain_text('Learning rate must be a number, got "abc"')
    expect(page.get_by_role("button", name="Mend 1 setting to start")).to_be_disabled()
    field.fill("3e-4")
    field.blur()
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()


def test_a_max_length_that_leaves_nothing_to_learn_blocks_start(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    open_tab(page, "Train")
    page.get_by_label("Max length").first.fill("16")
    page.get_by_label("Max length").first.blur()
    expect(page.locator("#before-you-start")).to_contain_text("have no answer tokens within 16 tokens")
    expect(page.get_by_role("button", name="Nothing to learn")).to_be_disabled()


def test_a_broken_file_is_refused_beside_its_button_and_earlier_data_stays(
    page: Page, studio: Studio, tmp_path: Path
) -> None:
    page.goto(studio.url)
    open_tab(page, "Data")
    expect(page.locator("#datasets")).to_contain_text("cited-answers")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')
    page.locator("#upload input[type=file]").set_input_files(broken)
    page.get_by_role("button", name="Check and add").click()
    expect(page.locator("#verdict")).to_contain_text("broken.jsonl line 3: is not valid JSON")
    expect(page.locator("#datasets")).not_to_contain_text("broken")
    expect(page.locator("#datasets")).to_contain_text("cited-answers")


def test_markup_in_data_is_shown_as_text(page: Page, studio: Studio, tmp_path: Path) -> None:
    page.goto(studio.url)
    open_tab(page, "Data")
    expect(page.locator("#xray-heading")).to_contain_text("row 1")
    evil = tmp_path / "evil.jsonl"
    payload = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    evil.write_text(json.dumps({"prompt": payload, "completion": payload}) + "\n")
    page.on("dialog", lambda dialog: (_ for _ in ()).throw(AssertionError("a script ran")))
    page.locator("#upload input[type=file]").set_input_files(evil)
    page.get_by_role("button", name="Check and add").click()
    expect(page.locator("#xray")).to_contain_text("<img src=x onerror=alert(1)>")
    open_tab(page, "Rows")
    expect(page.locator("#rows")).to_contain_text("<script>alert(2)</script>")
    assert page.locator("#xray img, #rows img").count() == 0


def test_deleting_asks_first(page: Page, studio: Studio, tmp_path: Path) -> None:
    page.goto(studio.url)
    open_tab(page, "Data")
    page.locator("#datasets").get_by_text("plain-style").locator("visible=true").click()
    expect(page.locator("#xray-heading")).to_contain_text("plain-style")
    page.get_by_role("button", name="Delete the chosen one").click()
    expect(page.locator("#datasets")).to_contain_text("plain-style")
    sure = page.get_by_role("button", name="Yes, delete plain-style")
    expect(sure).to_be_visible()
    # Another dataset is chosen in between: the question is taken back.
    page.locator("#datasets").get_by_text("ticket-triage").locator("visible=true").click()
    expect(sure).to_be_hidden()
    page.locator("#datasets").get_by_text("plain-style").locator("visible=true").click()
    expect(page.locator("#xray-heading")).to_contain_text("plain-style")
    page.get_by_role("button", name="Delete the chosen one").click()
    sure.click()
    expect(page.locator("#datasets")).not_to_contain_text("plain-style")


def test_the_dark_page_has_no_white_slabs(page: Page, studio: Studio) -> None:
    page.goto(studio.url + "?__theme=dark")
    for tab in ("Data", "Train", "Runs", "Evaluate", "Chat", "Export"):
        open_tab(page, tab)
        assert white_slabs(page) == [], tab


def test_nothing_overflows_a_narrow_page(page: Page, studio: Studio) -> None:
    page.set_viewport_size({"width": 800, "height": 900})
    page.goto(studio.url)
    for tab in ("Data", "Train", "Runs", "Evaluate", "Chat", "Export"):
        open_tab(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab


def test_start_names_the_rows_that_it_leaves_out(page: Page, studio: Studio) -> None:
    page.goto(studio.url)
    open_tab(page, "Train")
    page.get_by_label("Max length").first.fill("56")
    page.get_by_label("Max length").first.blur()
    expect(page.locator("#before-you-start")).to_contain_text("rows would train on nothing at 56 tokens")
    expect(page.get_by_role("button", name="Start training without")).to_be_enabled()


def test_on_a_phone_the_buttons_of_a_run_are_an_even_block(page: Page, studio: Studio) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(studio.url)
    open_tab(page, "Runs")
    names = ("stop", "resume", "delete", "check-trl", "paused")
    boxes = [page.locator(f"#{name}").bounding_box() for name in names]
    stop, resume, delete, check, paused = (box for box in boxes if box)
    assert len({box["width"] for box in (stop, resume, delete, check)}) == 1
    assert stop["y"] == resume["y"] < delete["y"] == check["y"] < paused["y"]
    for left, right in ((stop, resume), (delete, check)):
        assert left["x"] == paused["x"]
        assert abs(right["x"] + right["width"] - paused["x"] - paused["width"]) < 1
