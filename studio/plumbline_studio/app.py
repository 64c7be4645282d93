"""The page: brand, status strip, tabs. A table of contents; each tab has its own module."""

from typing import Any

import gradio as gr

from plumbline.data.selection import datasets
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline_studio.held import Choice, Held
from plumbline_studio.live import RESIZE, Page, View, newest
from plumbline_studio.status import strip
from plumbline_studio.tabs import evaluate, export
from plumbline_studio.tabs.chat import tab as chat
from plumbline_studio.tabs.data import tab as data
from plumbline_studio.tabs.runs import tab as runs_tab
from plumbline_studio.tabs.train import tab as train

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


def build() -> Page:
    """The page and, in it, the Blocks of the studio. Theme and style are given where they are mounted."""
    datasets.ensure_samples()
    with gr.Blocks(
        title="Plumbline", fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)
    ) as blocks:
        run, returned, place = Held(), Held(0), Held()
        gr.HTML('<div class="pl-brand"><b>Plumbline</b><span>fine-tuning that shows its work</span></div>')
        status = gr.HTML(strip, elem_id="strip")
        told = gr.HTML(visible=False, elem_id="trouble")
        with gr.Tabs(selected="train", elem_id="tabs") as tabs:
            page = Page(blocks, run, tabs, returned)
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
                    chosen.append(Choice([], label="Run", interactive=True, elem_id=f"run-{title.lower()}"))
                    build_tab(page)
        _follow(page, place, chosen, status, told)
    blocks.queue(max_size=64)
    return page


def _follow(page: Page, place: Held, chosen: list[Choice], status: gr.HTML, told: gr.HTML) -> None:
    """Wire the views: drawn on load, when another run is chosen, and on every tick.

    :param place: what this tab showed before it was loaded again: the run and the open tab
    """
    quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    page.views.append(View(chosen, _choices, lambda run_id: [_dropdown(run_id) for _ in chosen]))

    def arrive(place: Any, request: gr.Request) -> tuple[int | None, bool]:
        """The run to show, and whether its tab is to be opened."""
        before = place if isinstance(place, dict) else {}
        run_id = _existing(before.get("run"))
        if run_id is None:
            run_id = _existing(request.query_params.get("run", "")) or newest()
        return run_id, run_id is not None and not before.get("tab")

    def show_active(run_id: int | None) -> tuple[Any, Any]:
        job = queue.active()
        if job and job["kind"] == "check":
            return run_id, gr.Tabs(selected="data")
        if job and job["kind"] == "probe":
            return run_id, gr.Tabs(selected="train")
        return (job["run_id"] if job else run_id), gr.Tabs(selected="runs")

    asks, live = [page.run, page.paused], [page.run, told, page.returned, *page.outputs]
    at_once = {"js": "(run, paused) => plumbline.tick(run, paused, false)", **quiet}
    page.blocks.load(None, None, page.tabs, js="() => plumbline.openTab()", **quiet)
    # In two steps: where to go is known at once, what is there takes longer to draw.
    leads = Held(False)
    arrived = page.blocks.load(arrive, place, [page.run, leads], js="() => [plumbline.place()]", **quiet)
    arrived.then(None, asks, live, **at_once)
    leads.change(None, leads, page.tabs, js="leads => plumbline.openRuns(leads)", **quiet)
    timer = gr.Timer(TICK_SECONDS)
    timer.tick(None, asks, live, js="(run, paused) => plumbline.tick(run, paused, true)", **quiet)
    for action in page.actions:
        action.then(None, asks, live, **at_once)
    page.run.change(None, asks, live, **at_once)
    for dropdown in chosen:
        dropdown.input(None, dropdown, page.run, js="run => run", **quiet)
    status.click(show_active, page.run, [page.run, page.tabs], **quiet)


def _existing(said: Any) -> int | None:
    """A run by the number that a browser gives, if there is one."""
    wanted = str(said)
    known = wanted.isdecimal() and len(wanted) < 19 and runs.exists(int(wanted))
    return int(wanted) if known else None


def _choices(run_id: int | None) -> Any:
    return [(row["id"], row["name"], row["state"]) for row in runs.listed()], run_id


def _dropdown(run_id: int | None) -> Any:
    choices = [(f"run {row['id']}: {row['name']} ({row['state']})", row["id"]) for row in runs.listed()]
    return Choice(choices=choices, value=run_id)
