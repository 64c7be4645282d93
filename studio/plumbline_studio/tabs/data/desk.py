"""The chosen dataset: the X-ray of a row, its rows, its statistics and its warnings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from plumbline.data import rows as stored
from plumbline.data.selection import stats
from plumbline.data.tokens.encode import EncodeError
from plumbline.store import datasets as store
from plumbline_studio import plots
from plumbline_studio.live import RESIZE, Page, View
from plumbline_studio.messages import box, empty, error_box, escape, facts, table
from plumbline_studio.tabs.data import near_duplicates
from plumbline_studio.tabs.data import xray as xray_view

XRAY = "Loss X-ray"
DELETED = "This dataset is not there any more. Choose another on the left."
LONGEST = 4096
PAGE_ROWS = 50
CELL = 400


@dataclass(frozen=True)
class Shown:
    """The chosen dataset: its id, and ways to draw it.

    :param follow: draws it again after an event that changed what there is, or which is chosen
    :param inputs: what `opened` wants beside the id; its answers go to ``outputs``
    :param fill: draws the open pane after an event that drew the row itself
    """

    chosen: Any
    follow: Callable[[Any], None]
    fill: Callable[[Any], None]
    inputs: list[Any]
    outputs: list[Any]


def build(page: Page, tabs: Any, chosen: Any, pane: Any) -> Shown:
    """:param chosen: the state that holds the dataset's id; made outside the tabs, which hold only tabs"""
    with gr.Tab(XRAY, id="xray", render_children=True) as xray:
        heading = gr.HTML(empty("Choose a dataset on the left."), elem_id="xray-heading")
        part = gr.Radio(
            [("training rows", "train"), ("held-out rows", "held_out")],
            value="train",
            show_label=False,
            container=False,
        )
        with gr.Row(equal_height=True):
            back = gr.Button("Previous", size="sm", scale=1, min_width=70)
            row = gr.Number(
                1, show_label=False, container=False, precision=0, min_width=70, elem_id="xray-row"
            )
            forward = gr.Button("Next", size="sm", scale=1, min_width=70)
            cut_row = gr.Button("Next cut row", size="sm", scale=1, min_width=90)
        picture = gr.HTML(elem_id="xray")
        length = gr.Slider(
            16, LONGEST, value=256, step=8, label="max_length", info="Moves the cut; Train has its own"
        )
        whole = gr.HTML(elem_id="xray-whole")
    with gr.Tab("Rows", id="rows", render_children=True) as listed:
        with gr.Row(equal_height=True):
            words = gr.Textbox(
                show_label=False, container=False, placeholder="Search the rows", scale=3, elem_id="search"
            )
            earlier = gr.Button("Earlier", size="sm", scale=1, min_width=70)
            first = gr.Number(1, show_label=False, container=False, precision=0, min_width=70)
            later = gr.Button("Later", size="sm", scale=1, min_width=70)
        told = gr.HTML()
        rows = gr.Dataframe(
            headers=["row", "asks", "answers"],
            interactive=False,
            wrap=True,
            max_chars=160,
            show_label=False,
            max_height=560,
            elem_id="rows",
            column_widths=["10%", "57%", "33%"],
        )
    with gr.Tab("Statistics", id="statistics", render_children=True) as statistics:
        figures = gr.HTML(elem_id="statistics")
        plot = gr.Plot(show_label=False, elem_id="lengths-plot")
        numbers = gr.HTML()
    with gr.Tab("Warnings", id="warnings", render_children=True) as warnings:
        summary = gr.HTML(elem_id="warnings")
        findings = gr.Dataframe(
            headers=["warning", "part", "rows"],
            visible=False,
            interactive=False,
            wrap=True,
            show_label=False,
            elem_id="findings",
            column_widths=["58%", "14%", "28%"],
        )
        near = gr.Button("Look for near-duplicates (in the background)", size="sm", elem_id="near")
        near_state = gr.HTML(elem_id="near-state")
        near_stop = gr.Button("Stop looking", size="sm", visible=False)
    statistics.select(None, None, None, js=RESIZE)
    base = page.form["model.base"]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    # One after the other, so that a slow first answer does not come after a later one.
    ordered = {**quiet, "concurrency_id": "xray", "concurrency_limit": 1}
    # What takes longer keeps its own order, and holds no click up.
    beside = {**ordered, "concurrency_id": "pane"}
    view = [chosen, part, row, length, base]
    drawn = [heading, picture]
    outputs = [chosen, row, *drawn]
    sheet = [told, rows]
    trouble = [summary, findings, near, near_state, near_stop]
    charts = [figures, plot, numbers]
    inputs = [chosen, part, length, base, first, words]

    def fill(event: Any) -> None:
        """Draw what the open pane shows beside the row; the others are drawn when they are opened."""
        event.then(_pane, [pane, *inputs], [whole, *sheet, *charts, *trouble], **beside)

    def follow(event: Any) -> None:
        fill(event.then(opened, [chosen, part, length, base], outputs, **ordered))

    xray.select(_whole, [chosen, part, length, base], whole, **beside)
    listed.select(_page_of, [chosen, part, first, words], sheet, **beside)
    statistics.select(_statistics, [chosen, part, length, base], charts, **beside)
    warnings.select(_warnings, chosen, trouble, **beside)
    # A number that is typed past the ends would be refused by every handler that reads it.
    length.change(
        None, length, length, js=f"value => Math.min({LONGEST}, Math.max(16, Number(value) || 256))"
    )
    follow(base.change(lambda: None, None, None, queue=False, **quiet))
    follow(page.blocks.load(lambda: None, None, None, queue=False, **quiet))
    follow(part.input(lambda: None, None, None, queue=False, **quiet))
    moved = gr.on(
        [row.submit, row.blur, length.change], _look, view, drawn, trigger_mode="always_last", **ordered
    )
    moved.then(_whole, [chosen, part, length, base], whole, trigger_mode="always_last", **beside)
    back.click(partial(_turn, -1), view, [row, *drawn], **ordered)
    forward.click(partial(_turn, 1), view, [row, *drawn], **ordered)
    cut_row.click(_next_cut, view, [row, *drawn], **ordered)
    listing = [chosen, part, first, words]
    gr.on([words.submit, first.submit, first.blur], _page_of, listing, [told, rows], **beside)
    for button, step in ((earlier, -PAGE_ROWS), (later, PAGE_ROWS)):
        button.click(partial(_leaf, step), listing, [first, told, rows], **beside)
    # Tabs report only the user's own clicks, so who moves them says so in ``pane`` as well.
    fill(rows.select(_pick_row, [chosen, part, length, base], [row, *drawn, tabs, pane], **ordered))
    fill(findings.select(_pick_finding, [chosen, length, base], [part, row, *drawn, tabs, pane], **ordered))
    started = near.click(near_duplicates.start, chosen, [near_state, near_stop], **quiet)
    stopped = near_stop.click(near_duplicates.stop, None, [near_state, near_stop], **quiet)
    page.actions += [started, stopped]
    page.views.append(
        View(
            [near_state, near_stop],
            lambda run_id: near_duplicates.signature(),
            lambda run_id: near_duplicates.state(),
        )
    )
    return Shown(chosen, follow, fill, [part, length, base], outputs)


def _first() -> int | None:
    return next((dataset["id"] for dataset in store.listed()), None)


def _count(dataset_id: int | None, part: str) -> int:
    dataset = _dataset(dataset_id)
    return 0 if dataset is None else dataset["held_out_rows" if part == "held_out" else "rows"]


def _dataset(dataset_id: int | None) -> dict[str, Any] | None:
    """The chosen dataset, or None when there is none, or it was deleted meanwhile (in another tab)."""
    return next((one for one in store.listed() if one["id"] == dataset_id), None)


def opened(dataset_id: int | None, part: str, length: float, base: str) -> list[Any]:
    """A dataset's first row: its id where that is another than was asked for, the row's number, the row."""
    known = {dataset["id"] for dataset in store.listed()}
    wanted = dataset_id if dataset_id in known else _first()
    # Said again, the id would undo a choice that was made while this row was drawn.
    said = gr.skip() if wanted == dataset_id else wanted
    return [said, 1, *_look(wanted, part, 1, length, base)]


def _look(dataset_id: int | None, part: str, number: float, length: float, base: str) -> list[Any]:
    """Heading and coloured tokens of one row."""
    try:
        return list(_xray(dataset_id, part, int(number or 1), int(length), base))
    except Exception as error:
        return [error_box(error), ""]


def _xray(dataset_id: int | None, part: str, number: int, length: int, base: str) -> tuple[str, str]:
    dataset = _dataset(dataset_id)
    if dataset_id is None or dataset is None:
        return empty("Add a dataset on the left." if dataset_id is None else DELETED), ""
    name, total = dataset["name"], _count(dataset_id, part)
    found = stored.page(dataset_id, part, number - 1, 1) if number >= 1 else []
    if not found:
        if part == "held_out" and not total:
            return empty("No held-out file: a share of the rows is held out when a run starts."), ""
        return empty(f"There is no row {number:,}; the last one is {total:,}."), ""
    try:
        row, picture = xray_view.encoded(found[0], base, length)
    except EncodeError as error:
        raise stats.in_row(error, dataset_id, part, number - 1) from error
    lost = f", {row.cut_supervised:,} more are cut off" if row.cut_supervised else ""
    heading = (
        f"<h3>{escape(name)}, row {number:,} of {total:,}</h3>"
        f'<p class="pl-muted">{row.supervised:,} of {len(row.input_ids):,} tokens are in the loss{lost}. '
        f"Rendered by the template of {escape(base)}.</p>"
    )
    return heading, picture


def _turn(step: int, dataset_id: int | None, part: str, number: float, *rest: Any) -> list[Any]:
    wanted = max(1, min(int(number or 1) + step, _count(dataset_id, part)))
    return [wanted, *_look(dataset_id, part, wanted, *rest)]


def _next_cut(dataset_id: int | None, part: str, number: float, length: float, base: str) -> list[Any]:
    """The next row that the cut shortens, from the beginning again after the last one known."""
    dataset = _dataset(dataset_id)
    if dataset is None:
        return [gr.skip(), empty(DELETED), ""]
    try:
        measured = stats.of_dataset(dataset, part, base, None)
    except Exception as error:
        return [gr.skip(), error_box(error), ""]
    cut = measured.numbers[measured.lengths > int(length)] + 1
    if not len(cut):
        return [gr.skip(), box("good", f"No row is cut at {int(length)} tokens."), gr.skip()]
    after = cut[cut > int(number or 1)]
    wanted = int(after[0] if len(after) else cut[0])
    return [wanted, *_look(dataset_id, part, wanted, length, base)]


def _pane(
    pane: str, dataset_id: int | None, part: str, length: float, base: str, first: float, words: str
) -> list[Any]:
    """Updates of the open pane; the others are left as they are."""
    whole = _whole(dataset_id, part, length, base) if pane == XRAY else gr.skip()
    sheet = _page_of(dataset_id, part, first, words) if pane == "Rows" else [gr.skip()] * 2
    charts = _statistics(dataset_id, part, length, base) if pane == "Statistics" else [gr.skip()] * 3
    trouble = _warnings(dataset_id) if pane == "Warnings" else [gr.skip()] * 5
    return [whole, *sheet, *charts, *trouble]


def _whole(dataset_id: int | None, part: str, length: float, base: str) -> str:
    """What the whole set comes to at the cut, with the real tokenizer."""
    dataset = _dataset(dataset_id)
    if dataset is None or not _count(dataset_id, part):
        return ""
    try:
        measured = stats.of_dataset(dataset, part, base, None)
    except Exception as error:
        return error_box(error)
    return xray_view.whole(dataset["name"], measured.at(int(length)), measured, int(length), base)


def _statistics(dataset_id: int | None, part: str, length: float, base: str) -> list[Any]:
    """Figures, the chart of lengths, and its table."""
    dataset = _dataset(dataset_id)
    if dataset is None or not _count(dataset_id, part):
        return [empty("This part has no rows." if dataset else DELETED), None, ""]
    try:
        measured = stats.of_dataset(dataset, part, base, None)
    except Exception as error:
        return [error_box(error), None, ""]
    profile = stats.profile(dataset, part)
    said = [
        ("rows", f"{measured.total:,}"),
        ("turns a row", _range(profile.turns)),
        (
            "roles",
            ", ".join(f"{role} {count / profile.rows:.0%}" for role, count in profile.roles.most_common()),
        ),
        ("scripts", ", ".join(f"{name} {share:.0%}" for name, share in profile.scripts) or "none"),
    ]
    if profile.labels:
        said.append((f"{len(profile.labels):,} labels", _listed(profile.labels)))
    lengths = measured.lengths
    rows = [["tokens a row", *(f"{value:,.0f}" for value in stats.percentiles(lengths))]]
    cut = measured.at(int(length)).cut_rows / max(1, len(lengths))
    return [
        f'<div class="pl-card"><h3>{escape(dataset["name"])}</h3>{facts(said)}</div>',
        plots.lengths(lengths, int(length), cut),
        table(["", "mean", "p50", "p90", "p99", "longest"], rows),
    ]


def _listed(labels: Any) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in labels.most_common())


def _range(turns: Any) -> str:
    low, high = min(turns), max(turns)
    return f"{low}" if low == high else f"{low} to {high} (mostly {turns.most_common(1)[0][0]})"


def _page_of(dataset_id: int | None, part: str, begin: float, words: str) -> list[Any]:
    """A page of rows, or the rows that hold the words."""
    total = _count(dataset_id, part)
    dataset = _dataset(dataset_id)
    if dataset_id is None or dataset is None or not total:
        return [empty("This part has no rows." if dataset else DELETED), []]
    start = max(0, int(begin or 1) - 1)
    if words and words.strip():
        numbers = stored.search(dataset_id, part, words.strip(), start, PAGE_ROWS)
        first = f"The first {PAGE_ROWS} rows" if len(numbers) == PAGE_ROWS else f"Rows found: {len(numbers)}"
        after = f" after row {start:,}" if start else ""
        told = f"{first}{after} that hold “{escape(words.strip()[:60])}”."
    else:
        numbers = list(range(start, min(total, start + PAGE_ROWS)))
        told = f"Rows {start + 1:,} to {start + len(numbers):,} of {total:,}. Click one to see its X-ray."
    listed = zip(numbers, stored.at(dataset_id, part, numbers), strict=True)
    return [
        f'<p class="pl-muted">{escape(dataset["name"])}: {told[0].lower()}{told[1:]}</p>',
        [[number + 1, *_said(row)] for number, row in listed],
    ]


def _said(row: dict[str, Any]) -> tuple[str, str]:
    if "text" in row:
        return "", row["text"][:CELL]
    asks = " / ".join(m["content"] for m in row["messages"] if m["role"] != "assistant")
    answers = " / ".join(m["content"] for m in row["messages"] if m["role"] == "assistant")
    return asks[:CELL], answers[:CELL]


def _leaf(step: int, dataset_id: int | None, part: str, first: float, words: str) -> list[Any]:
    last = max(1, _count(dataset_id, part))
    wanted = max(1, int(first or 1) + step)
    wanted = wanted if wanted <= last else int(first or 1)
    return [wanted, *_page_of(dataset_id, part, wanted, words)]


def _pick_row(event: gr.SelectData, dataset_id: int | None, part: str, length: float, base: str) -> list[Any]:
    number = int(event.row_value[0])
    return [number, *_look(dataset_id, part, number, length, base), gr.Tabs(selected="xray"), XRAY]


def _warnings(dataset_id: int | None) -> list[Any]:
    dataset = _dataset(dataset_id)
    if dataset is None:
        return [
            empty(DELETED),
            gr.Dataframe(visible=False),
            gr.Button(interactive=False),
            *near_duplicates.state(),
        ]
    found = store.findings(dataset)
    text = f"{dataset['name']} is {store.verdict(dataset)}."
    if int(dataset["left_out"]):
        text += f" {int(dataset['left_out']):,} bad rows were left out of it."
    listed = [
        [
            finding["text"],
            "held-out" if finding["part"] == "held_out" else "training",
            _numbers(finding["rows"]),
        ]
        for finding in found
    ]
    level = "warning" if found else "good"
    hint = " Click one to see its first row." if found else ""
    return [
        box(level, text + hint),
        gr.Dataframe(value=listed, visible=bool(listed)),
        gr.Button(interactive=True),
        *near_duplicates.state(),
    ]


def _numbers(rows: list[int]) -> str:
    return ", ".join(f"{row:,}" for row in rows[:6]) + (", …" if len(rows) > 6 else "")


def _pick_finding(event: gr.SelectData, dataset_id: int | None, length: float, base: str) -> list[Any]:
    """The first row of a warning, in the X-ray."""
    dataset = _dataset(dataset_id)
    found = store.findings(dataset)[event.index[0]] if dataset is not None else None
    if not found or not found["rows"]:
        return [gr.skip() for _ in range(6)]
    number = found["rows"][0]
    drawn = _look(dataset_id, found["part"], number, length, base)
    return [found["part"], number, *drawn, gr.Tabs(selected="xray"), XRAY]
