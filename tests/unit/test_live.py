"""The page's views: each is drawn when its signature changes, and none takes the others with it."""

from typing import Any

import gradio as gr
import pytest

from core.errors import StudioError
from studio.live import Page, View, trouble

SAME = gr.skip()


def page(*views: View) -> Page:
    return Page(None, None, None, list(views))  # type: ignore[arg-type]


def test_a_view_that_fails_leaves_the_others_and_is_told_of_until_it_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken: list[Any] = [StudioError("data.order_column", "is not there")]

    def draw(run_id: int | None) -> list[Any]:
        if broken:
            raise broken[0]
        return ["drawn"]

    shown = page(
        View(["one"], lambda run_id: run_id, draw),
        View(["two"], lambda run_id: run_id, lambda run_id: [run_id]),
    )
    for _ in range(2):
        seen, updates = shown.draw(7, [])
        assert updates == [SAME, 7]
        assert "could not be drawn: data.order_column" in trouble(seen)
    assert len(caplog.records) == 2
    shown.draw(7, seen)
    assert len(caplog.records) == 2, "the same failure is logged again at every tick"
    broken.clear()
    seen, updates = shown.draw(7, seen)
    assert updates == ["drawn", SAME] and trouble(seen) == ""


def test_a_paused_view_keeps_its_zoom_but_not_the_curves_of_another_run() -> None:
    points = [3]
    view = View(["plot"], lambda run_id: (run_id, points[0]), lambda run_id: [f"of {run_id}"], pausable=True)
    shown = page(view)
    seen, _ = shown.draw(1, [])
    points[0] = 4
    assert shown.draw(1, seen, paused=True) == (seen, [SAME])
    assert shown.draw(2, seen, paused=True)[1] == ["of 2"]
    assert shown.draw(1, seen)[1] == ["of 1"]
