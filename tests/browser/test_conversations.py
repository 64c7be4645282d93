"""What Chat does with a question in every order of events: the page's own scripts, without a studio."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from plumbline.home import assets

PARTS = ("base", "adapter", "system", "prompt", "notice", "question", "halt")


class Chat:
    """The script as Gradio calls it. Values are those of the page's parts; None leaves one as it is."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.restored = self("restore", "")

    def __call__(self, name: str, *given: Any) -> dict[str, Any]:
        values = self.page.evaluate("([name, given]) => plumbline.chat[name](...given)", [name, list(given)])
        return dict(zip(PARTS, values or [None] * len(PARTS), strict=True))

    def shows(self, run: int, prompt: str = "") -> dict[str, Any]:
        return self("open", {"run": run, "base": f"Base of {run}", "adapter": f"Adapter of {run}"}, prompt)


@pytest.fixture
def chat(browser: Browser) -> Iterator[Chat]:
    scripts = "".join(f"<script>{(assets() / name).read_text()}</script>" for name in ("page.js", "chat.js"))
    context = browser.new_context()
    context.route("**/*", lambda route: route.fulfill(content_type="text/html", body=scripts))
    page = context.new_page()
    page.goto("http://127.0.0.1/")
    yield Chat(page)
    context.close()


def answer(question: dict[str, Any], text: str | None, over: bool = False) -> dict[str, Any]:
    """What the studio says of a question: that it was asked (None), or a text so far."""
    turns = [{"role": "user", "content": question["prompt"]}]
    if text is not None:
        turns.append({"role": "assistant", "content": text, "note": ""})
    talk = {"system": "", "tools": None, "base": turns, "adapter": turns}
    talk["pending"] = question["prompt"] if text is None else None
    return {"token": question["token"], "talk": talk, "notice": "", "back": "", "over": over}


def said(shown: dict[str, Any]) -> list[str]:
    assert shown["base"]["messages"] == shown["adapter"]["messages"]
    return [message["content"] for message in shown["base"]["messages"]]


def test_a_question_is_asked_of_the_run_that_is_shown_and_its_answer_is_shown(chat: Chat) -> None:
    chat.shows(3)
    asked = chat("ask", "Which?")
    assert asked["prompt"] == "" and (asked["question"]["run"], asked["question"]["prompt"]) == (3, "Which?")
    # Drawn again, because the run's state changed: the answer goes on.
    again = chat.shows(3, "typed")
    assert again["halt"] is None and again["prompt"] is None
    shown = chat("hear", answer(asked["question"], "This one", over=True), "typed")
    assert said(shown) == ["Which?", "This one"] and shown["prompt"] is None
    assert chat("ask", "And?")["question"]["talk"]["base"][1]["content"] == "This one"


def test_a_question_waits_for_the_first_run(chat: Chat) -> None:
    early = chat("ask", "Early?")
    assert early["question"] is None and early["prompt"] == ""
    assert chat.shows(1)["question"]["prompt"] == "Early?"


def test_what_comes_of_an_answer_after_another_run_is_shown_is_not_taken(chat: Chat) -> None:
    chat.shows(1)
    first = chat("ask", "Mine?")["question"]
    chat("hear", answer(first, "half"), "")
    assert chat.shows(2)["halt"] == first["token"]
    assert said(chat("hear", answer(first, "half of it"), "")) == []
    # The next question is sent when that answer has ended: the studio has one model.
    waits = chat("ask", "Yours?")
    assert waits["question"] is None and waits["prompt"] == ""
    sent = chat("hear", answer(first, "half of it, stopped", over=True), "")
    assert said(sent) == [] and (sent["question"]["run"], sent["question"]["prompt"]) == (2, "Yours?")
    assert said(chat("hear", answer(sent["question"], "Here", over=True), "")) == ["Yours?", "Here"]
    assert said(chat.shows(1)) == ["Mine?", "half"]


@pytest.mark.parametrize("event", ["another run", "clear", "lost"])
def test_a_question_without_an_answer_goes_back_into_the_box(chat: Chat, event: str) -> None:
    chat.shows(1)
    question = chat("ask", "Mine?")["question"]
    chat("hear", answer(question, None), "typed")
    shown = chat.shows(2, "typed") if event == "another run" else chat(event, "typed")
    assert shown["prompt"] == "Mine?\ntyped" and said(shown) == []
    assert said(chat.shows(1)) == []


def test_a_page_is_answered_once_at_a_time(chat: Chat) -> None:
    chat.shows(1)
    question = chat("ask", "First?")["question"]
    refused = chat("ask", "Second?")
    assert refused["question"] is None and refused["prompt"] is None
    assert "This page is being answered" in refused["notice"]
    assert chat("stop", "Second?")["halt"] == question["token"]
    assert said(chat("hear", answer(question, "stopped", over=True), "Second?")) == ["First?", "stopped"]
    assert chat("ask", "Second?")["question"]["prompt"] == "Second?"


def test_a_row_takes_the_place_of_the_conversation_and_of_its_answer(chat: Chat) -> None:
    chat.shows(1)
    question = chat("ask", "Mine?")["question"]
    turns = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
    row = {"system": "Be brief.", "tools": None, "base": turns, "adapter": turns, "pending": None}
    rows = {"run": 1, "rows": [{"talk": row, "question": "Q2"}]}
    shown = chat("sample", 0, rows, "")
    assert said(shown) == ["Q1", "A1"] and (shown["system"], shown["prompt"]) == ("Be brief.", "Q2")
    assert shown["halt"] == question["token"]
    assert said(chat("hear", answer(question, "late", over=True), "Q2")) == ["Q1", "A1"]
    assert chat("sample", 0, {**rows, "run": 2}, "")["prompt"] is None  # the rows of a run that was left


def test_a_reload_keeps_what_was_answered_and_gives_back_what_was_not(chat: Chat) -> None:
    chat.shows(1)
    chat("hear", answer(chat("ask", "First?")["question"], "Yes", over=True), "")
    question = chat("ask", "Second?")["question"]
    chat("hear", answer(question, None), "typed")
    chat.page.reload()
    again = Chat(chat.page)
    assert again.restored["prompt"] == "Second?\ntyped"
    assert said(again.shows(1)) == ["First?", "Yes"]


def test_a_stream_that_the_page_ends_itself_ends_without_an_error(chat: Chat) -> None:
    """Gradio says "Connection errored out" of any error, also of one that leaving the page makes."""
    script = (assets() / "page.js").read_text()
    ended = chat.page.evaluate(
        """async (script) => {
            window.fetch = async (address, {signal}) => new Response(new ReadableStream({
                start: (out) => signal.addEventListener('abort', () => out.error(signal.reason)),
            }));
            (0, eval)(script);
            const leaving = new AbortController();
            const stream = await fetch('/gradio_api/queue/data', {signal: leaving.signal});
            const next = stream.body.getReader().read();
            leaving.abort();
            return (await next).done;
        }""",
        script,
    )
    assert ended
