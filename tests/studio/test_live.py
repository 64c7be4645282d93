"""The page's views: each is drawn when its signature changes, once for all pages, and none takes the others
with it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from plumbline.config import schema
from plumbline.store import runs
from plumbline_studio import live
from plumbline_studio.held import Choice, Held
from plumbline_studio.live import Page, View


def page(*views: View) -> Page:
    return Page(None, None, None, views=list(views))  # type: ignore[arg-type]


def asked(
    shown: Page, run_id: int | None, before: dict[str, Any] | None = None, **how: Any
) -> dict[str, Any]:
    """What a page is answered that shows the answer before."""
    seen = (before or {"seen": ""})["seen"].split(".")
    return json.loads(shown.answer(run_id, seen, (before or {}).get("run"), **how))


def add_run() -> int:
    return runs.add(schema.preset("starter"), 1)


@pytest.fixture(autouse=True)
def _home(workspace: Path) -> None:
    """Every page looks into an empty workspace."""


def test_a_view_that_fails_leaves_the_others_and_is_told_of_until_it_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken: list[Any] = [ValueError("data.order_column is not there")]

    def draw(run_id: int | None) -> list[Any]:
        if broken:
            raise broken[0]
        return ["drawn"]

    shown = page(
        View([gr.HTML()], lambda run_id: run_id, draw),
        View([gr.HTML()], lambda run_id: run_id, lambda run_id: [str(run_id)]),
    )
    first = asked(shown, None)
    assert first["drawn"] == [[1, "None"]]
    assert "could not be drawn: ValueError" in first["told"]
    for _ in range(3):  # tried again and again, told of every time, and logged once
        again = asked(shown, None, first, now=True)
        assert again["drawn"] == [] and again["told"] == first["told"]
    assert len(caplog.records) == 1
    broken.clear()
    after = asked(shown, None, again, now=True)
    assert after["drawn"] == [[0, "drawn"]] and after["told"] == ""
    broken.append(ValueError("data.order_column is not there"))
    shown.looks.clear()
    asked(shown, None, now=True)
    assert len(caplog.records) == 2, "a failure after a recovery is not logged"


def test_a_signature_that_fails_leaves_the_others_and_recovers() -> None:
    broken = [1]

    def look(run_id: int | None) -> int:
        return 1 // (1 - len(broken))

    shown = page(
        View([gr.HTML()], look, lambda run_id: ["drawn"]), View([gr.HTML()], str, lambda run_id: ["x"])
    )
    first = asked(shown, None)
    assert first["drawn"] == [[1, "x"]] and "ZeroDivisionError" in first["told"]
    assert asked(shown, None, first, now=True)["told"] == first["told"]
    broken.clear()
    assert asked(shown, None, first, now=True)["drawn"] == [[0, "drawn"]]


def test_a_paused_view_keeps_its_zoom_but_not_the_curves_of_another_run() -> None:
    one, two, points = add_run(), add_run(), [3]
    view = View(
        [gr.HTML()], lambda run_id: (run_id, points[0]), lambda run_id: [f"of {run_id}"], pausable=True
    )
    shown = page(view)
    first = asked(shown, one)
    points[0] = 4
    still = asked(shown, one, first, paused=True, now=True)
    assert still["drawn"] == [] and still["seen"] == first["seen"]
    assert asked(shown, two, still, paused=True)["drawn"] == [[0, f"of {two}"]]
    assert asked(shown, one, still, now=True)["drawn"] == [[0, f"of {one}"]]


def test_a_run_that_is_deleted_while_it_is_drawn_is_no_failure_of_its_views() -> None:
    stays, goes = add_run(), add_run()

    def draw(run_id: int | None) -> list[Any]:
        if run_id == goes:
            runs.database().table("runs").delete(goes)
        return [runs.get(run_id)["name"]]  # type: ignore[arg-type]

    shown = page(View([gr.HTML()], runs.get, draw))
    found = asked(shown, goes)
    assert (found["run"], found["told"]) == (stays, "")
    assert found["drawn"] == [[0, runs.get(stays)["name"]]]
    assert asked(shown, goes)["run"] == stays


def test_fifty_pages_are_drawn_once_and_a_change_of_the_store_once_again() -> None:
    drawn: list[str] = []

    def draw(run_id: int | None) -> list[Any]:
        drawn.append(runs.get(run_id)["name"])  # type: ignore[arg-type]
        return [drawn[-1]]

    run_id, looked = add_run(), [0]

    def look(run_id: int | None) -> Any:
        looked[0] += 1
        return runs.get(run_id)["name"]  # type: ignore[arg-type]

    shown = page(View([gr.HTML()], look, draw))
    answers = [asked(shown, run_id) for _ in range(50)]
    assert all(answer == answers[0] for answer in answers) and answers[0]["drawn"]
    assert (len(drawn), looked[0]) == (1, 1)
    runs.database().table("runs").update(run_id, {"name": "another"})
    assert asked(shown, run_id, answers[0], now=True)["drawn"] == [[0, "another"]]
    later = [asked(shown, run_id, answers[0]) for _ in range(50)]
    assert all(answer["drawn"] == [[0, "another"]] for answer in later)
    assert (len(drawn), looked[0]) == (2, 2)


def test_a_page_sees_within_a_second_what_another_process_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    run_id, files = add_run(), ["checkpoint-2"]
    shown = page(
        View(
            [gr.HTML()],
            lambda run_id: (runs.get(run_id)["name"], files[0]),  # type: ignore[arg-type]
            lambda run_id: [runs.get(run_id)["name"] + files[0]],  # type: ignore[arg-type]
        )
    )
    first = asked(shown, run_id)
    runs.database().table("runs").update(run_id, {"name": "another"})
    assert asked(shown, run_id, first)["drawn"] == []
    clock[0] += live.SHARED_SECONDS
    second = asked(shown, run_id, first)
    assert second["drawn"] == [[0, "anothercheckpoint-2"]]
    # A file that the store says nothing of is seen later.
    files[0] = "checkpoint-4"
    clock[0] += live.SHARED_SECONDS
    assert asked(shown, run_id, second)["drawn"] == []
    clock[0] += live.LONGEST_SECONDS
    assert asked(shown, run_id, second)["drawn"] == [[0, "anothercheckpoint-4"]]


def test_a_handler_leaves_a_held_value_as_it_is_or_sets_any() -> None:
    with gr.Blocks() as blocks:
        held = Held({"a": 1})
        listener = blocks.load(lambda: None, None, [held, held, held])
    values = [gr.skip(), {"run": 3}, 3]
    function = blocks.fns[listener["id"]]  # type: ignore[index]
    sent = asyncio.run(blocks.postprocess_data(function, values, SessionState(blocks)))
    assert sent == [gr.skip(), {"run": 3}, 3]


def test_updates_are_what_gradio_itself_would_send() -> None:
    """Every kind of output that a view has, drawn by the page and by an event of Gradio's."""
    outputs = [
        gr.HTML(),
        gr.Button("a"),
        Choice([("a", 1)]),
        gr.Dataframe(headers=["x"]),
        gr.Code(),
        gr.Plot(),
    ]
    values = [
        gr.HTML("<b>", visible=True),
        gr.Button("b", interactive=False),
        Choice(choices=[("two", 2)], value=2),
        [["y"]],
        "code",
        None,
    ]
    with gr.Blocks() as blocks:
        made = [component.render() for component in outputs]
        listener = blocks.load(lambda: values, None, made)
    sent = asyncio.run(
        blocks.postprocess_data(blocks.fns[listener["id"]], values, SessionState(blocks))  # type: ignore[index]
    )
    ours = asked(page(View(outputs, lambda run_id: 1, lambda run_id: values)), None)["drawn"]
    theirs = json.loads(json.dumps([one.model_dump() if hasattr(one, "model_dump") else one for one in sent]))
    theirs[0].pop("props")  # for gr.HTML, Gradio adds the word "update" as a property that no template reads
    assert [value for _, value in ours] == theirs
