"""The page's views: each is drawn when its signature changes, and none takes the others with it."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core.errors import StudioError
from core.store import runs
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
        seen, updates = shown.draw(None, [])
        assert updates == [SAME, None]
        assert "could not be drawn: data.order_column" in trouble(seen)
    assert len(caplog.records) == 2
    shown.draw(None, seen)
    assert len(caplog.records) == 2, "the same failure is logged again at every tick"
    broken.clear()
    seen, updates = shown.draw(None, seen)
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


def test_a_run_that_is_deleted_while_it_is_drawn_is_no_failure_of_its_views(workspace: Path) -> None:
    shown = page(View(["head"], runs.get, lambda run_id: []))
    with pytest.raises(StudioError, match="run 7: was deleted"):
        shown.draw(7, [])
