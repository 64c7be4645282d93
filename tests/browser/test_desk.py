"""The data desk in a browser: a new file, its mapping, the X-ray, rows, statistics, warnings, a mix."""

import json
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import open_tab, white_slabs
from tests.server import Studio


def desk(page: Page, studio: Studio, tab: str | None = None) -> None:
    page.goto(studio.url)
    open_tab(page, "Data")
    if tab:
        open_tab(page, tab)


def choose(page: Page, path: Path) -> None:
    page.locator("#upload input[type=file]").set_input_files(path)
    expect(page.get_by_role("button", name="Check and add")).to_be_enabled()


def add(page: Page, name: str) -> None:
    page.get_by_role("button", name="Check and add").click()
    expect(page.locator("#verdict")).to_contain_text(f"{name}: ")
    expect(page.locator("#xray-heading")).to_contain_text(f"{name}, row 1 of")


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_new_file_shows_what_it_holds_before_anything_is_stored(
    page: Page, studio: Studio, tmp_path: Path
) -> None:
    desk(page, studio)
    path = tmp_path / "support.csv"
    path.write_text("question;answer\nWhere is it?;In the box.\nWho are you?;A clerk.\n")
    choose(page, path)
    expect(page.locator("#guess")).to_contain_text(
        "support.csv: question/answer (prompt = question, answer = answer)"
    )
    expect(page.locator("#guess")).to_contain_text("Where is it?")
    expect(page.locator("#example .pl-xray .learned").first).to_contain_text("In")
    expect(page.locator("#datasets")).not_to_contain_text("support")
    add(page, "support")
    expect(page.locator("#datasets")).to_contain_text("support")


def test_unknown_columns_are_mapped_by_hand_and_the_mapping_is_used_again(
    page: Page, studio: Studio, tmp_path: Path
) -> None:
    desk(page, studio)
    rows = [{"frage": f"Was ist {n}?", "thema": "Zahlen", "antwort": f"Die Zahl {n}."} for n in range(5)]
    choose(page, lines(tmp_path / "deutsch.jsonl", rows))
    expect(page.locator("#guess")).to_contain_text("has columns that are not known: antwort, frage, thema")
    page.locator("#mapping-prompt input").fill("{thema}: {frage}")
    page.keyboard.press("Enter")
    page.locator("#mapping-answer input").click()
    page.get_by_role("option", name="antwort").click()
    expect(page.locator("#example .pl-xray")).to_contain_text("Zahlen: Was ist 0?")
    expect(page.locator("#example .pl-xray .learned").first).to_contain_text("D")
    page.get_by_label("Save this mapping as").fill("german")
    page.get_by_role("button", name="Save mapping").click()
    expect(page.locator("#guess")).to_contain_text("Saved the mapping german.")
    add(page, "deutsch")
    # The same mapping for the next file of this kind.
    choose(page, lines(tmp_path / "mehr.jsonl", rows[:3]))
    expect(page.locator("#guess")).to_contain_text("not known")
    page.locator("#mapping-saved input").click()
    page.get_by_role("option", name="german").click()
    expect(page.locator("#example .pl-xray")).to_contain_text("Zahlen: Was ist 0?")
    add(page, "mehr")
    expect(page.locator("#xray")).to_contain_text("Zahlen: Was ist 0?")


def test_the_cut_moves_live_and_its_cost_is_told(page: Page, studio: Studio) -> None:
    desk(page, studio)
    page.locator("#datasets").get_by_text("cited-answers").locator("visible=true").click()
    expect(page.locator("#xray-whole")).to_contain_text("All of cited-answers at 256 tokens")
    expect(page.locator("#xray-whole")).to_contain_text("rows cut 0")
    length = page.get_by_label("number input for max_length")
    length.fill("56")
    length.press("Enter")
    expect(page.locator("#xray-whole")).to_contain_text("All of cited-answers at 56 tokens")
    expect(page.locator("#xray .pl-xray .cut").first).to_be_visible()
    page.get_by_role("button", name="Next cut row").click()
    expect(page.locator("#xray-heading")).to_contain_text("more are cut off")


def test_rows_are_searched_and_open_in_the_xray(page: Page, studio: Studio) -> None:
    desk(page, studio, "Rows")
    page.locator("#datasets").get_by_text("cited-answers").locator("visible=true").click()
    open_tab(page, "Rows")
    search = page.get_by_placeholder("Search the rows")
    search.fill("rabbit")
    search.press("Enter")
    expect(page.get_by_text("that hold “rabbit”")).to_be_visible()
    found = page.locator("#rows").get_by_text("rabbit").locator("visible=true").first
    expect(found).to_be_visible()
    found.click()
    expect(page.locator("#xray")).to_be_visible()
    expect(page.locator("#xray .pl-xray")).to_contain_text("rabbit")


def test_warnings_name_rows_and_open_them(page: Page, studio: Studio, tmp_path: Path) -> None:
    desk(page, studio)
    rows = [{"prompt": f"question {n}", "completion": "yes"} for n in range(6)]
    rows[3] = {"prompt": "Write to me", "completion": "at a.b@example.org"}
    rows[5] = rows[0]
    choose(page, lines(tmp_path / "warned.jsonl", rows))
    add(page, "warned")
    expect(page.locator("#datasets")).to_contain_text("ready, 2 warnings")
    open_tab(page, "Warnings")
    expect(page.locator("#findings")).to_contain_text("1 of 6 rows repeat an earlier row")
    page.locator("#findings").get_by_text("hold an e-mail address").locator("visible=true").click()
    expect(page.locator("#xray-heading")).to_contain_text("warned, row 4 of 6")


def test_statistics_have_a_chart_and_its_table(page: Page, studio: Studio) -> None:
    desk(page, studio, "Statistics")
    expect(page.locator("#statistics")).to_contain_text("turns a row")
    expect(page.locator("#lengths-plot .barlayer path").first).to_be_visible()
    expect(page.get_by_role("cell", name="tokens a row")).to_be_visible()


def test_a_mix_shows_what_it_comes_to_and_goes_to_the_train_tab(page: Page, studio: Studio) -> None:
    desk(page, studio, "Mixing desk")
    page.get_by_label("Datasets (at most").click()
    for name in ("cited-answers", "plain-style"):
        page.get_by_role("option", name=name).click()
    page.keyboard.press("Escape")
    result = page.locator("#mix-result")
    expect(result).to_contain_text("cited-answers")
    weight = page.locator("#weight-0 input")
    weight.fill("2")
    weight.blur()
    expect(result.get_by_role("row", name="cited-answers")).to_contain_text("800")
    expect(result.get_by_role("row", name="cited-answers")).to_contain_text("2 ×")
    page.get_by_role("button", name="Use this mix on the Train tab").click()
    expect(
        page.get_by_text("The Train tab now learns from cited-answers × 2 + plain-style × 1.")
    ).to_be_visible()
    open_tab(page, "Train")
    before = page.locator("#before-you-start")
    expect(before).to_contain_text("1,100 train + 160 held out")
    expect(before).to_contain_text("· plain-style")


def test_the_dark_desk_has_no_white_slabs_and_nothing_overflows(page: Page, studio: Studio) -> None:
    page.set_viewport_size({"width": 800, "height": 900})
    page.goto(studio.url + "?__theme=dark")
    open_tab(page, "Data")
    for tab in ("Loss X-ray", "Rows", "Statistics", "Warnings", "New file", "Mixing desk"):
        open_tab(page, tab)
        assert white_slabs(page) == [], tab
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab


def test_two_quick_clicks_add_one_dataset(page: Page, studio: Studio, tmp_path: Path) -> None:
    desk(page, studio)
    choose(page, lines(tmp_path / "twice.jsonl", [{"prompt": "a", "completion": "b"}] * 3))
    page.get_by_role("button", name="Check and add").dblclick()
    expect(page.locator("#verdict")).to_contain_text("twice: 3 rows")
    expect(page.get_by_role("button", name="Choose a file")).to_be_disabled()
    expect(page.locator("#datasets")).not_to_contain_text("twice-2")


def test_a_reading_that_was_set_for_one_file_is_not_kept_for_the_next(
    page: Page, studio: Studio, tmp_path: Path
) -> None:
    desk(page, studio)
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_bytes("question,answer\nWo ist Köln?,Am Rhein\n".encode("windows-1252"))
    new.write_text("question,answer\nWo ist Köln?,Am Rhein\n")
    choose(page, old)
    expect(page.locator("#guess")).to_contain_text("0xf6 is not UTF-8")
    page.get_by_text("Reading: encoding, delimiter, header").click()
    page.locator("#encoding input").click()
    page.get_by_role("option", name="windows-1252").click()
    expect(page.locator("#guess")).to_contain_text("Wo ist Köln?")
    add(page, "old")
    choose(page, new)
    expect(page.locator("#guess")).to_contain_text("Wo ist Köln?")
    expect(page.locator("#encoding input")).to_have_value("utf-8")


def test_a_dataset_that_another_tab_deleted_is_said_to_be_gone(
    page: Page, studio: Studio, tmp_path: Path
) -> None:
    desk(page, studio)
    choose(page, lines(tmp_path / "passing.jsonl", [{"prompt": "a", "completion": "b"}] * 3))
    add(page, "passing")
    other = page.context.new_page()
    other.goto(studio.url)
    open_tab(other, "Data")
    other.locator("#datasets").get_by_text("passing").locator("visible=true").click()
    expect(other.locator("#xray-heading")).to_contain_text("passing")
    other.get_by_role("button", name="Delete the chosen one").click()
    other.get_by_role("button", name="Yes, delete passing").click()
    expect(other.locator("#datasets")).not_to_contain_text("passing")
    other.close()
    page.get_by_role("button", name="Next", exact=True).click()
    expect(page.locator("#xray-heading")).to_contain_text("is not there any more")
    for tab in ("Rows", "Statistics", "Warnings"):
        open_tab(page, tab)
        expect(page.get_by_role("tabpanel").filter(has_text="is not there any more").last).to_be_visible()


def test_a_wrong_weight_names_its_dataset_and_changes_nothing_on_train(page: Page, studio: Studio) -> None:
    desk(page, studio, "Mixing desk")
    page.get_by_label("Datasets (at most").click()
    page.get_by_role("option", name="cited-answers").click()
    page.keyboard.press("Escape")
    expect(page.locator("#mix-result")).to_contain_text("cited-answers")
    page.locator("#weight-0 input").fill("0")
    page.locator("#weight-0 input").blur()
    expect(page.locator("#mix-result")).to_contain_text("weight of cited-answers: is 0")
    page.get_by_role("button", name="Use this mix on the Train tab").click()
    expect(page.get_by_text("weight of cited-answers: is 0").nth(1)).to_be_visible()
    expect(page.get_by_text("The Train tab now learns")).to_have_count(0)
