"""Chat in a browser: every character is shown, and what is shown belongs to the run that said it."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect

from plumbline.home import assets
from tests.browser.conftest import held_back, open_tab
from tests.server import Studio

TAGS = (
    "<think>1 + 2</think>  a<b and c>d <result>8</result> <!-- note --> &lt;i&gt; &amp;"
    ' <img src="https://example.com/x.png" onerror="document.title=1"><script>document.title=2</script>'
    "\n\n  **bold** [link](https://example.com) `code` ${name} {{name}} </div></textarea>"
)
ALTERNATING = """{%- for m in messages if m['role'] != 'system' %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}
{%- endif %}
{%- endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with two runs, on a base whose roles must alternate."""
    from plumbline import api
    from tests.runs import add, do, recipe

    folder = tmp_path_factory.mktemp("chat")
    base, file = folder / "base", folder / "tags.jsonl"
    shutil.copytree(assets() / "starter", base, ignore=shutil.ignore_patterns("recipe"))
    (base / "chat_template.jinja").write_text(ALTERNATING)
    turns = [
        ("system", "Be <brief>."),
        ("user", "Q1 <b>"),
        ("assistant", TAGS),
        ("user", "Q2"),
        ("assistant", "A"),
    ]
    rows = [
        {"messages": [{"role": role, "content": f"{text} {number}"} for role, text in turns]}
        for number in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(folder / "home"))
        api.add_data(file)
        for _ in range(2):
            config = recipe(model={"base": str(base)}, data={"dataset": "tags"}, training={"max_steps": 1})
            assert do("train", add(config))["error"] is None
        running = Studio(folder / "home")
    yield running
    running.close()


def opened(page: Page, studio: Studio, run: int) -> None:
    page.goto(f"{studio.url}?run={run}")
    open_tab(page, "Chat")
    expect(page.locator("#chat-adapter")).to_contain_text(f"(run {run})")


def asked(page: Page, question: str) -> None:
    page.locator("#prompt textarea").fill(question)
    page.get_by_role("button", name="Send").click()


def test_every_character_is_shown_and_nothing_is_fetched(page: Page, studio: Studio) -> None:
    """The page fixture fails this test for any request to elsewhere."""
    opened(page, studio, 1)
    asked(page, TAGS + "\nline" * 60)
    expect(page.locator("#chat-adapter")).to_contain_text("line line")
    for side in ("#chat-base", "#chat-adapter"):
        assert TAGS in (page.locator(side).text_content() or "")
    assert page.title() == "Plumbline"
    page.get_by_role("button", name="Stop", exact=True).click()


def test_who_scrolled_up_is_left_there_while_an_answer_is_written(browser: Browser) -> None:
    """The pane alone, written to one word at a time."""
    from plumbline.chat import conversation, session
    from plumbline_studio.tabs.chat import pane

    next_word = threading.Semaphore(0)
    held = conversation.asked(conversation.empty(), "First\n" + "line\n" * 80, "")

    def answer() -> Iterator[dict[str, Any]]:
        for text in ("One", "One two", "One two <b>three"):
            next_word.acquire()
            said = {side: session.Said(text) for side in session.SIDES}
            yield pane.shown(1, "Run 1", conversation.answered(held, said), "base")

    with gr.Blocks(analytics_enabled=False) as blocks:
        one = pane.pane("one", "Nothing yet.")
        gr.Button("Go").click(answer, None, one)
    _, url, _ = blocks.launch(
        prevent_thread_lock=True, quiet=True, css_paths=assets() / "style.css", footer_links=[]
    )
    page = browser.new_page()
    try:
        page.goto(url)
        page.get_by_role("button", name="Go", exact=True).click()
        next_word.release()
        said, shown = page.locator("#one .pl-assistant .pl-said"), page.locator("#one .pl-talk")
        expect(said).to_have_text("One")
        assert shown.evaluate("one => one.scrollTop") > 200
        shown.evaluate("one => { one.scrollTop = 0; }")
        shown.evaluate("one => getSelection().selectAllChildren(one.querySelector('.pl-user .pl-said'))")
        next_word.release()
        expect(said).to_have_text("One two")
        assert shown.evaluate("one => one.scrollTop") == 0
        assert page.evaluate("getSelection().toString()").startswith("First")
        shown.evaluate("one => { one.scrollTop = one.scrollHeight; }")
        next_word.release()
        expect(said).to_have_text("One two <b>three")
        assert shown.evaluate("one => one.scrollHeight - one.scrollTop - one.clientHeight") < 2
    finally:
        page.close()
        blocks.close()


def test_a_question_that_cannot_be_answered_goes_back_into_the_box(page: Page, studio: Studio) -> None:
    opened(page, studio, 1)
    question = "word " * 1500
    asked(page, question)
    expect(page.locator("#chat-notice")).to_contain_text("tokens", timeout=60_000)
    expect(page.locator("#prompt textarea")).to_have_value(question)
    for side in ("#chat-base", "#chat-adapter"):
        expect(page.locator(side)).not_to_contain_text("word")
    # Nothing of it is left over: with it, roles would no longer alternate.
    asked(page, "Say yes")
    expect(page.locator("#chat-adapter .pl-assistant .pl-said")).not_to_be_empty(timeout=60_000)


def test_a_question_that_is_asked_before_the_page_knows_its_run_is_answered(
    page: Page, studio: Studio
) -> None:
    with held_back(page, r"/live\?") as waiting:
        page.goto(f"{studio.url}?run=1")
        open_tab(page, "Chat")
        asked(page, "Say yes")
        expect(page.locator("#prompt textarea")).to_have_value("")
        page.locator("#prompt textarea").fill("typed meanwhile")
    assert waiting
    expect(page.locator("#chat-adapter .pl-user")).to_contain_text("Say yes")
    expect(page.locator("#chat-adapter .pl-assistant .pl-said")).not_to_be_empty(timeout=60_000)
    expect(page.locator("#prompt textarea")).to_have_value("typed meanwhile")


def test_an_answer_that_comes_when_another_run_is_shown_is_not_taken(page: Page, studio: Studio) -> None:
    opened(page, studio, 1)
    with held_back(page, "/gradio_api/queue/data") as waiting:
        asked(page, "Mine alone")
        page.locator("#run-chat input").click()
        page.get_by_role("option", name="run 2").click()
        expect(page.locator("#chat-adapter")).to_contain_text("(run 2)")
        expect(page.locator("#prompt textarea")).to_have_value("Mine alone")  # it got no answer
        asked(page, "Say yes")
    assert waiting
    expect(page.locator("#chat-adapter .pl-assistant .pl-said")).not_to_be_empty(timeout=60_000)
    for side in ("#chat-base", "#chat-adapter"):
        expect(page.locator(f"{side} .pl-user .pl-said")).to_have_text("Say yes")


def test_another_run_ends_the_answer_and_has_its_own_conversation(page: Page, studio: Studio) -> None:
    opened(page, studio, 1)
    asked(page, "Mine alone")
    expect(page.locator("#chat-adapter")).to_contain_text("Mine alone")
    page.locator("#run-chat input").click()
    page.get_by_role("option", name="run 2").click()
    expect(page.locator("#chat-adapter")).to_contain_text("(run 2)")
    expect(page.locator("#chat-adapter")).not_to_contain_text("Mine alone")
    # The model is free again, for the other run.
    asked(page, "Say yes")
    expect(page.locator("#chat-adapter .pl-assistant .pl-said")).not_to_be_empty(timeout=60_000)
    for side in ("#chat-base", "#chat-adapter"):
        expect(page.locator(side)).not_to_contain_text("Mine alone")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator("#run-chat input").click()
    page.get_by_role("option", name="run 1").click()
    expect(page.locator("#chat-adapter")).to_contain_text("(run 1)")
    expect(page.locator("#chat-adapter")).not_to_contain_text("Say yes")


def test_a_held_out_row_is_shown_and_sent_with_all_that_precedes_its_answer(
    page: Page, studio: Studio
) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(page, studio, 1)
    page.locator("#sample-0").click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("Q2"))
    number = (page.locator("#chat-system textarea").input_value()).rpartition(" ")[2]
    assert page.locator("#chat-system textarea").input_value() == f"Be <brief>. {number}"
    said = page.locator("#chat-adapter .pl-said")
    assert said.all_text_contents() == [f"Q1 <b> {number}", f"{TAGS} {number}"]
    thinking = page.locator("#chat-adapter details")
    expect(thinking).to_have_count(1)
    expect(thinking.locator("summary")).to_have_attribute("data-label", "Thinking, 20 characters")
    expect(thinking).not_to_have_attribute("open", "")
    page.locator("#chat-adapter .pl-assistant button").click()
    assert page.evaluate("navigator.clipboard.readText()") == f"{TAGS} {number}"
