"""A conversation: what is sent of it, and that a question without an answer leaves no trace."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.chat import conversation, session
from plumbline.chat.session import Said
from plumbline.config.schema import preset
from plumbline.errors import StudioError
from plumbline.evaluation.generate import Task
from plumbline.store import datasets, runs
from plumbline_studio.tabs.chat import tab

SETTINGS = (256, 0.0, 1.0, 0, 1.0, 0)
ROW = Task(
    [
        {"role": "system", "content": "Answer LOUD."},
        {"role": "user", "content": "Say anchor"},
        {"role": "assistant", "content": "ANCHOR"},
        {"role": "user", "content": "Say basket"},
    ],
    "BASKET",
)


def test_a_rows_whole_conversation_is_what_is_sent() -> None:
    held, question = conversation.of_task(ROW)
    assert question == "Say basket" and held["system"] == "Answer LOUD."
    asked = conversation.asked(held, question, held["system"])
    for alone in (False, True):
        assert conversation.sent(asked, "base", alone) == Task(ROW.messages, "")


def test_a_row_whose_last_turn_is_a_tools_is_sent_as_it_is() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "<b>Ulm</b>"}}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "20"},
    ]
    held, question = conversation.of_task(Task(turns, "Yes.", [{"name": "weather"}]))
    assert question == "" and conversation.may_ask(held, "")
    asked = conversation.asked(held, "", "")
    assert conversation.sent(asked, "adapter", False) == Task(turns, "", [{"name": "weather"}])
    said = [line["role"] for line in conversation.shown(held, "base")]
    assert said == ["tools", "user", "assistant calls", "tool"]
    assert "<b>Ulm</b>" in conversation.shown(held, "base")[2]["content"]
    assert conversation.taken_back(asked) == (held, "")


def test_each_question_alone_is_sent_without_what_was_answered_here() -> None:
    first = conversation.answered(conversation.asked(conversation.empty(), "One?", "Be brief."), said("1"))
    second = conversation.asked(first, "Two?", "Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert conversation.sent(second, "base", True).messages == [system, {"role": "user", "content": "Two?"}]
    assert [m["content"] for m in conversation.sent(second, "base", False).messages] == [
        "Be brief.",
        "One?",
        "base 1",
        "Two?",
    ]
    assert not conversation.may_ask(first, " ")


def said(text: str, note: str = "") -> dict[str, Said]:
    return {side: Said(f"{side} {text}", note) for side in session.SIDES}


@pytest.fixture
def run(samples: Path) -> int:
    recipe = preset("starter")
    return runs.add(recipe, datasets.by_name(recipe.data.dataset)["id"])


def contents(pane: dict[str, Any]) -> list[str]:
    return [message["content"] for message in pane["messages"]]


def answering(monkeypatch: pytest.MonkeyPatch, steps: list[dict[str, Said] | Exception]) -> list[Any]:
    """Stand in for the model. :returns: what it will have been asked"""
    asked: list[Any] = []

    def answer(run_id: int, sides: Any, settings: Any, stop: threading.Event) -> Iterator[dict[str, Said]]:
        asked.append(sides)
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield step

    monkeypatch.setattr(session, "answer", answer)
    return asked


@pytest.mark.parametrize(
    "steps",
    [
        [StudioError("chat", "this has 3,000 tokens, the model has room for 1,024")],
        [StudioError("chat template", "cannot render this conversation: roles must alternate")],
        [RuntimeError("CUDA out of memory")],
        [],  # stopped while the model was loaded
    ],
)
def test_a_question_without_an_answer_is_taken_out_and_goes_back_into_the_box(
    run: int, monkeypatch: pytest.MonkeyPatch, steps: list[Any]
) -> None:
    asked = answering(monkeypatch, steps)
    talks: tab.Talks = {}
    *_, last = tab._answer(run, "page", "Long?", "", False, talks, *SETTINGS)
    base, adapter, _, notice, talks, back = last
    assert contents(base) == contents(adapter) == [] and back == "Long?"
    assert not steps or "pl-bad" in notice
    assert tab._put_back(back, "typed meanwhile") == ("", "Long?\ntyped meanwhile")
    # What is asked next is asked as if nothing had been before.
    answering_now = answering(monkeypatch, [said("1")])
    *_, last = tab._answer(run, "page", "Short?", "", False, talks, *SETTINGS)
    assert [m["content"] for m in answering_now[0]["base"].messages] == ["Short?"]
    assert contents(last[0]) == ["Short?", "base 1"] and last[5] == ""
    assert len(asked) == 1 and tab._stops == {}


def test_an_answer_that_breaks_off_keeps_what_was_said(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, [said("half"), RuntimeError("CUDA out of memory")])
    *_, last = tab._answer(run, "page", "Q?", "", False, {}, *SETTINGS)
    assert contents(last[0]) == ["Q?", "base half"] and last[5] == "" and "pl-bad" in last[3]


def test_another_run_ends_the_answer_and_shows_its_own_conversation(
    run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = runs.add(preset("starter"), runs.get(run)["dataset_id"])
    answering(monkeypatch, [said("1"), said("1 2")])
    talks: tab.Talks = {}
    stream = tab._answer(run, "page", "Mine?", "", False, talks, *SETTINGS)
    next(stream), next(stream)
    stop = tab._stops["page"]
    base, adapter, system, talks, prompt, alone = tab._open(other, "page", talks, "")
    assert stop.is_set() and contents(base) == [] and f"(run {other})" in adapter["title"]
    assert prompt == "" and base["run"] == other
    # Whatever the stream still gives is of its own run, under its own name.
    for late in stream:
        assert late[0]["run"] == run and f"(run {run})" in late[1]["title"]
    base, *_ = tab._open(run, "page", talks, "")
    assert contents(base)[0] == "Mine?" and base["run"] == run


def test_a_question_that_waits_while_another_run_is_chosen_goes_back_into_the_box(
    run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, [said("1")])
    talks: tab.Talks = {}
    stream = tab._answer(run, "page", "Mine?", "", False, talks, *SETTINGS)
    next(stream)
    *_, talks, prompt, _ = tab._open(None, "page", talks, "typed")
    assert prompt == "Mine?\ntyped" and talks[str(run)]["base"] == []
    stream.close()
    assert tab._stops == {}


def test_a_page_is_answered_once_at_a_time_and_stop_ends_that_answer(
    run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, [said("1")])
    stream = tab._answer(run, "page", "First?", "", False, {}, *SETTINGS)
    next(stream)
    first = tab._stops["page"]
    (refused,) = tab._answer(run, "page", "Second?", "", False, {}, *SETTINGS)
    assert "this page is being answered" in refused[3]
    tab._stop("another page")
    assert not first.is_set()
    tab._stop("page")
    assert first.is_set()
    stream.close()


def test_wrong_settings_are_refused_before_the_question_is_taken(run: int) -> None:
    (refused,) = tab._answer(run, "page", "Q?", "", False, {}, *SETTINGS[:-1], 2**70)
    assert "seed must be 0 to 4,294,967,295" in refused[3]
    (refused,) = tab._answer(run, "page", "Q?", "", False, {}, None, *SETTINGS[1:])
    assert "max_new_tokens must be 1 to 8192" in refused[3]
