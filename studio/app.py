"""The page: brand, status strip, tabs. A table of contents; each tab has its own module."""

from typing import Any

import gradio as gr

from core.data import datasets
from core.errors import StudioError
from core.jobs import queue
from core.store import runs
from studio.live import RESIZE, Page, View, trouble
from studio.status import strip
from studio.tabs import chat, data, evaluate, export, train
from studio.tabs import runs as runs_tab

TICK_SECONDS = 2.0
# Hints and the accent at a contrast of at least 4.5 on both grounds (WCAG AA).
THEME = gr.themes.Default(primary_hue="amber", neutral_hue="slate").set(
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
    color_accent="#8f560f",
    button_primary_background_fill="#8f560f",
    button_primary_background_fill_dark="#8f560f",
    button_primary_background_fill_hover="#7a490c",
    button_primary_background_fill_hover_dark="#a3650f",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
)


def build() -> gr.Blocks:
    """The Blocks of the studio. Theme and style are given where it is mounted."""
    datasets.ensure_samples()
    with gr.Blocks(
        title="Plumbline", fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)
    ) as blocks:
        run = gr.State(None)
        seen = gr.State([])
        gr.HTML('<div class="pl-brand"><b>Plumbline</b><span>fine-tuning that shows its work</span></div>')
        status = gr.HTML(strip, elem_id="strip")
        told = gr.HTML(visible=False, elem_id="trouble")
        with gr.Tabs(selected="train", elem_id="tabs") as tabs:
            page = Page(blocks, run, tabs)
            page.views.append(View([status], lambda run_id: strip(), lambda run_id: [strip()]))
            with gr.Tab("Data", id="data", render_children=True):
                data_slot = gr.Column()
            with gr.Tab("Train", id="train", render_children=True):
                train.build(page)
            with data_slot:
                data.build(page)
            with gr.Tab("Runs", id="runs", render_children=True) as runs_shown:
                runs_tab.build(page)
            runs_shown.select(None, None, None, js=RESIZE)
            chosen = []
            for title, build_tab in (
                ("Evaluate", evaluate.build),
                ("Chat", chat.build),
                ("Export", export.build),
            ):
                with gr.Tab(title, id=title.lower(), render_children=True):
                    chosen.append(
                        gr.Dropdown([], label="Run", interactive=True, elem_id=f"run-{title.lower()}")
                    )
                    build_tab(page)
        _follow(page, run, seen, chosen, status, told)
    return blocks.queue(max_size=64)


def _follow(
    page: Page, run: gr.State, seen: gr.State, chosen: list[gr.Dropdown], status: gr.HTML, told: gr.HTML
) -> None:
    """Wire the views: drawn on load, when another run is chosen, and on every tick."""
    quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    # A State's change event fires only after handlers that went through the queue.
    moving = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    page.views.append(View(chosen, _choices, lambda run_id: [_dropdown(run_id) for _ in chosen]))

    def tick(run_id: int | None, shown: list[str], paused: bool) -> list[Any]:
        # It may have been deleted, perhaps on another page, perhaps at this moment.
        drawn = run_id if run_id is None or runs.exists(run_id) else _newest()
        try:
            signatures, updates = page.draw(drawn, shown, paused)
        except StudioError:
            drawn = _newest()
            signatures, updates = page.draw(drawn, shown, paused)
        text = trouble(signatures)
        told_now = gr.HTML(text, visible=bool(text))
        return [gr.skip() if drawn == run_id else drawn, signatures, told_now, *updates]

    def arrive(request: gr.Request) -> tuple[int | None, Any]:
        wanted = request.query_params.get("run", "")
        run_id = _existing(int(wanted)) if wanted.isdecimal() else None
        if run_id is None:
            run_id = _newest()
        # Without a run the Train tab is open already: naming it again would undo a quick click.
        return run_id, gr.skip() if run_id is None else gr.Tabs(selected="runs")

    def show_active(run_id: int | None) -> tuple[Any, Any]:
        job = queue.active()
        if job and job["kind"] == "check":
            return run_id, gr.Tabs(selected="data")
        if job and job["kind"] == "probe":
            return run_id, gr.Tabs(selected="train")
        return (job["run_id"] if job else run_id), gr.Tabs(selected="runs")

    live = [run, seen, told, *page.outputs]
    # In two steps: where to go is known at once, what is there takes longer to draw.
    arrived = page.blocks.load(arrive, None, [run, page.tabs], **quiet)
    arrived.then(tick, [run, seen, page.paused], live, **quiet)
    timer = gr.Timer(TICK_SECONDS)
    timer.tick(tick, [run, seen, page.paused], live, **quiet)
    for action in page.actions:
        action.then(tick, [run, seen, page.paused], live, **quiet)
    run.change(tick, [run, seen, page.paused], live, **quiet)
    for dropdown in chosen:
        dropdown.input(lambda value: value, dropdown, run, **moving)
    status.click(show_active, run, [run, page.tabs], **moving)


def _existing(run_id: int) -> int | None:
    return run_id if run_id < 2**63 and runs.exists(run_id) else None


def _newest() -> int | None:
    return next((row["id"] for row in runs.listed(1)), None)


def _choices(run_id: int | None) -> Any:
    return [(row["id"], row["name"], row["state"]) for row in runs.listed()], run_id


def _dropdown(run_id: int | None) -> Any:
    choices = [(f"run {row['id']}: {row['name']} ({row['state']})", row["id"]) for row in runs.listed()]
    return gr.Dropdown(choices=choices, value=run_id)
