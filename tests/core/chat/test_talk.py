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


def question(run_id: int, prompt: str, talk: Any = None, token: str = "a token") -> dict[str, Any]:
    """As assets/chat.js makes it."""
    return {"token": token, "run": run_id, "prompt": prompt, "talk": talk}


def contents(said: dict[str, Any]) -> list[str]:
    return [message["content"] for message in said["talk"]["base"]]


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
    *_, last = tab._answer(question(run, "Long?"), "", False, *SETTINGS)
    assert contents(last) == [] and last["back"] == "Long?" and last["over"]
    assert not steps or "pl-bad" in last["notice"]
    # What is asked next is asked as if nothing had been before.
    answering_now = answering(monkeypatch, [said("1")])
    *_, last = tab._answer(question(run, "Short?", last["talk"]), "", False, *SETTINGS)
    assert [m["content"] for m in answering_now[0]["base"].messages] == ["Short?"]
    assert contents(last) == ["Short?", "base 1"] and last["back"] == ""
    assert len(asked) == 1 and tab._stops == {}


def test_an_answer_that_breaks_off_keeps_what_was_said(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, [said("half"), RuntimeError("CUDA out of memory")])
    *_, last = tab._answer(question(run, "Q?"), "", False, *SETTINGS)
    assert contents(last) == ["Q?", "base half"] and last["back"] == "" and "pl-bad" in last["notice"]


def test_stop_ends_its_own_answer_even_before_it_begins(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, [said("1")])
    stream = tab._answer(question(run, "First?"), "", False, *SETTINGS)
    next(stream)
    first = tab._stops["a token"]
    tab._stop("another token")
    assert not first.is_set()
    tab._stop("a token")
    assert first.is_set()
    stream.close()
    # The answer to the other question begins stopped, and leaves nothing behind.
    other = tab._answer(question(run, "Second?", token="another token"), "", False, *SETTINGS)
    next(other)
    assert tab._stops["another token"].is_set()
    other.close()
    assert tab._stops == {}


def test_a_question_that_comes_again_ends_the_answer_that_nobody_sees(
    run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page sends it again when the connection breaks before it is known to have arrived."""
    answering(monkeypatch, [said("1"), said("1 2")])
    first, again = (tab._answer(question(run, "Once?"), "", False, *SETTINGS) for _ in range(2))
    next(first)
    stop = tab._stops["a token"]
    next(again)
    assert stop.is_set() and not tab._stops["a token"].is_set()
    first.close()
    *_, last = again
    assert contents(last) == ["Once?", "base 1 2"] and tab._stops == {}


def test_wrong_settings_are_refused_and_the_question_goes_back(run: int) -> None:
    (refused,) = tab._answer(question(run, "Q?"), "", False, *SETTINGS[:-1], 2**70)
    assert "seed must be 0 to 4,294,967,295" in refused["notice"] and refused["back"] == "Q?"
    (refused,) = tab._answer(question(run, "Q?"), "", False, None, *SETTINGS[1:])
    assert "max_new_tokens must be 1 to 8192" in refused["notice"] and refused["over"]
