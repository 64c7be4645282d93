"""A gap in the network, a reload, a studio that is started anew: the form and the conversation stay."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from plumbline.store import runs
from tests.browser.conftest import held_back, open_tab
from tests.server import Studio

# Said to the browser, so that a page that was loaded again is told from one that went on.
MARK = "window.sameDocument = true"
SAME = "window.sameDocument === true"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two runs that have an adapter on paper: nobody asks them anything."""
    from plumbline.data.selection import datasets
    from tests.runs import add, recipe

    place = tmp_path_factory.mktemp("gap") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(place))
        datasets.ensure_samples()
        add(recipe())
        add(recipe())
        for run_id in (1, 2):
            runs.database().table("runs").update(run_id, {"state": "interrupted"})
    return place


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Studio]:
    running = Studio(home)
    yield running
    running.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Without the check on console errors: a browser writes one for every request that fails."""
    made = browser.new_context(viewport={"width": 1360, "height": 900})
    made.set_default_timeout(60_000)
    yield made
    made.close()


def opened(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#run-head")).to_contain_text("run ")  # its views are drawn
    page.evaluate(MARK)
    return page


def epochs(page: Page, wanted: str | None = None) -> None:
    """Type a number of epochs, or expect the one that is there."""
    open_tab(page, "Train")
    field = page.locator("#set-training-epochs input")
    if wanted is None:
        return
    field.fill(wanted)
    field.blur()
    page.wait_for_timeout(1_000)  # the page keeps it as soon as it changed


def talked(context: BrowserContext, run_id: int) -> None:
    """What Chat keeps when something was said, as it is when a page is loaded again."""
    said = [
        {"role": "user", "content": "Which of them is it?"},
        {"role": "assistant", "content": "The second.", "note": ""},
    ]
    held = {"system": "Be short.", "tools": None, "base": said, "adapter": said, "pending": None}
    kept = json.dumps({"talks": {str(run_id): held}, "prompt": "half a quest"})
    context.add_init_script(f"sessionStorage['plumbline.talks'] ??= {json.dumps(kept)}")


def test_a_gap_of_four_seconds_leaves_the_page_as_it_is(context: BrowserContext, studio: Studio) -> None:
    page = opened(context, studio.url)
    epochs(page, "17")
    context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("No connection to the studio since")
    page.wait_for_timeout(4_000)
    # What is typed in the gap is looked at as soon as there is a connection.
    page.locator("#set-training-learning_rate textarea, #set-training-learning_rate input").first.fill("abc")
    context.set_offline(False)
    expect(page.locator("#connection")).to_be_hidden()
    expect(page.locator("#before-you-start")).to_contain_text('must be a number, got "abc"')
    assert page.evaluate(SAME), "the page was loaded again"
    expect(page.locator("#set-training-epochs input")).to_have_value("17")
    # Views follow the store again.
    runs_table = page.locator("#runs-table")
    open_tab(page, "Runs")
    expect(runs_table).to_contain_text("interrupted")
    page.close()


def test_form_run_and_open_tab_outlast_a_reload(context: BrowserContext, studio: Studio) -> None:
    page = opened(context, f"{studio.url}?run=1")
    epochs(page, "17")
    page.reload()
    expect(page.locator("#set-training-epochs input")).to_be_visible()  # the tab is open that was open
    expect(page.locator("#set-training-epochs input")).to_have_value("17")
    open_tab(page, "Runs")
    expect(page.locator("#run-head")).to_contain_text("run 1")
    # Another tab has a form of its own, and leaves this one's alone.
    other = opened(context, studio.url)
    epochs(other)
    expect(other.locator("#set-training-epochs input")).to_have_value("2")
    epochs(other, "9")
    page.reload()
    epochs(page)
    expect(page.locator("#set-training-epochs input")).to_have_value("17")
    other.close()
    page.close()


def test_a_tab_that_is_chosen_while_the_page_loads_stays_open(
    context: BrowserContext, studio: Studio
) -> None:
    page = context.new_page()
    with held_back(page, "/gradio_api/run/") as waiting:
        page.goto(f"{studio.url}?run=1")
        open_tab(page, "Evaluate")
        assert waiting
    # The studio has said where the address leads.
    expect(page.locator("#run-evaluate input")).to_have_value(re.compile("run 1"))
    expect(page.get_by_role("tab", name="Evaluate", exact=True)).to_have_attribute("aria-selected", "true")
    page.close()


def test_a_conversation_outlasts_a_reload(context: BrowserContext, studio: Studio) -> None:
    talked(context, 1)
    page = opened(context, f"{studio.url}?run=1")
    open_tab(page, "Chat")
    expect(page.locator("#chat-base")).to_contain_text("Which of them is it?")
    page.reload()
    expect(page.locator("#chat-base")).to_contain_text("Which of them is it?")
    expect(page.locator("#chat-adapter")).to_contain_text("The second.")
    expect(page.locator("#chat-system textarea")).to_have_value("Be short.")
    expect(page.locator("#prompt textarea")).to_have_value("half a quest")
    page.close()


def test_a_conversation_comes_back_under_its_own_run(context: BrowserContext, studio: Studio) -> None:
    talked(context, 1)
    page = opened(context, f"{studio.url}?run=2")
    open_tab(page, "Chat")
    expect(page.locator("#chat-adapter")).to_contain_text("(run 2)")
    expect(page.locator("#prompt textarea")).to_have_value("half a quest")
    expect(page.locator("#chat-base")).not_to_contain_text("Which of them")
    page.goto(f"{studio.url}?run=1")
    open_tab(page, "Chat")
    expect(page.locator("#chat-base")).to_contain_text("Which of them is it?")
    page.close()


def test_a_form_of_another_version_comes_back_as_far_as_it_fits(
    context: BrowserContext, studio: Studio
) -> None:
    page = opened(context, studio.url)
    epochs(page, "17")
    page.evaluate(
        """() => {
            const form = JSON.parse(sessionStorage['plumbline.form']);
            Object.assign(form, {'training.gone': 3, 'data.dataset': 'deleted-since', 'lora.r': 'eight'});
            delete form['training.max_length'];
            sessionStorage.setItem('plumbline.form', JSON.stringify(form));
        }"""
    )
    page.reload()
    epochs(page)
    told = page.locator("#taken-back")
    expect(told).to_contain_text(re.compile("Not taken over.*: .*Dataset.*LoRA rank.*training.gone"))
    expect(page.locator("#set-training-epochs input")).to_have_value("17")
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()
    page.close()


def test_a_studio_that_is_started_anew_loads_the_page_once(
    context: BrowserContext, studio: Studio, home: Path
) -> None:
    port = studio.url.rsplit(":", 1)[1].strip("/")
    page = opened(context, studio.url)
    loads: list[str] = []
    page.on("load", lambda shown: loads.append(shown.url))
    epochs(page, "17")
    studio.close()
    expect(page.locator("#connection")).to_contain_text("No connection to the studio since")
    again = Studio(home, port=port)
    try:
        page.wait_for_function(f"!({SAME})")
        expect(page.locator("#set-training-epochs input")).to_have_value("17")
        epochs(page)  # the tab is open that was open
        page.wait_for_timeout(5_000)
        assert len(loads) == 1
    finally:
        again.close()
    page.close()
