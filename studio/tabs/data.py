"""Data: add a dataset, see its rows and exactly what the model will learn from each."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from core.data import datasets as data
from core.data import read, xray
from core.data.overview import cut, summary
from core.errors import StudioError
from core.models import load
from core.store import datasets as store
from studio.live import Page, View
from studio.messages import box, empty, error_box, escape, guarded

COLUMNS = ["id", "dataset", "shape", "rows"]
PREVIEW_ROWS = 50
ROLE_WIDTH = 400


def build(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            gr.Markdown("#### Add a dataset")
            upload = gr.File(
                label=f"Training rows: {', '.join(read.SUFFIXES)}",
                file_types=list(read.SUFFIXES),
                height=150,
                elem_id="upload",
            )
            leave_out = gr.Checkbox(
                False, label="Leave bad rows out", info="and remember how many there were"
            )
            with gr.Accordion("Add a held-out file", open=False):
                held_out = gr.File(
                    label="Held-out rows (else a share of the training rows is held out)",
                    file_types=list(read.SUFFIXES),
                    height=150,
                )
            add = gr.Button("Choose a file", variant="primary", interactive=False, elem_id="add-dataset")
            verdict = gr.HTML(elem_id="verdict")
            gr.Markdown("#### Datasets")
            listing = gr.Dataframe(
                headers=COLUMNS,
                interactive=False,
                wrap=True,
                show_label=False,
                elem_id="datasets",
                column_widths=["9%", "34%", "34%", "23%"],
            )
            with gr.Row():
                delete = gr.Button("Delete the chosen one", size="sm")
                confirm = gr.Button("Yes, delete it", size="sm", variant="stop", visible=False)
        with gr.Column(scale=3):
            chosen = gr.State(None)
            heading = gr.HTML(empty("Choose a dataset on the left."), elem_id="xray-heading")
            with gr.Row(equal_height=True):
                part = gr.Radio(
                    [("training rows", "train"), ("held-out rows", "held_out")],
                    value="train",
                    show_label=False,
                    container=False,
                    scale=3,
                )
                back = gr.Button("Previous", size="sm", scale=1, min_width=80)
                row = gr.Number(
                    1,
                    show_label=False,
                    container=False,
                    precision=0,
                    minimum=1,
                    min_width=80,
                    elem_id="xray-row",
                )
                forward = gr.Button("Next", size="sm", scale=1, min_width=80)
            picture = gr.HTML(elem_id="xray")
            length = gr.Slider(
                16, 4096, value=256, step=8, label="max_length", info="Moves the cut; Train has its own"
            )
            gr.Markdown("#### Rows")
            rows = gr.Dataframe(
                headers=["row", "asks", "answers"],
                interactive=False,
                wrap=True,
                max_chars=160,
                show_search="search",
                show_label=False,
                max_height=360,
                elem_id="rows",
                column_widths=["7%", "60%", "33%"],
            )
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    base = page.form["model.base"]

    def ready(path: str | None) -> Any:
        text = "Check and add" if path else "Choose a file"
        return gr.Button(text, interactive=path is not None)

    def add_file(path: str | None, held_path: str | None, skip: bool) -> tuple[Any, ...]:
        if path is None:
            return box("bad", "Choose a file first."), *[gr.skip()] * 3
        try:
            dataset_id = data.import_file(
                Path(path),
                Path(path).name,
                Path(held_path) if held_path else None,
                Path(held_path).name if held_path else None,
                leave_out=skip,
            )
        except Exception as error:
            return error_box(error), *[gr.skip()] * 3
        added = store.get(dataset_id)
        text = f"{added['name']}: {added['rows']:,} rows of the shape {added['shape']}"
        if added["left_out"] != "0":
            text += f"; {added['left_out']} bad rows left out"
        chosen_too = gr.Dropdown(choices=store.names(), value=added["name"])
        return box("good", text + ". It is chosen on the Train tab."), dataset_id, None, chosen_too

    def look(dataset_id: int | None, which: str, number: float, limit: float, base_id: str) -> list[Any]:
        """One row; for when only the row or the cut changed."""
        try:
            return [*_xray(dataset_id, which, int(number or 1), int(limit), base_id)]
        except Exception as error:
            return [error_box(error), ""]

    def turn(step: int, dataset_id: int | None, which: str, number: float, *rest: Any) -> list[Any]:
        last = _count_of(dataset_id, which)
        wanted = max(1, min(int(number or 1) + step, last))
        return [wanted, *look(dataset_id, which, wanted, *rest)]

    def open_dataset(dataset_id: int | None, which: str, number: float, *rest: Any) -> list[Any]:
        """The first row and the list of rows; for when another dataset or part is shown."""
        shown = turn(0, dataset_id, which, 1, *rest)
        return [dataset_id, *shown, _rows(dataset_id, which), gr.Button(visible=False)]

    def pick(event: gr.SelectData, dataset_id: int | None, *view: Any) -> list[Any]:
        return open_dataset(int(event.row_value[0]), *view)

    def arrive(dataset_id: int | None, *view: Any) -> list[Any]:
        return open_dataset(_first() if dataset_id is None else dataset_id, *view)

    def remove(dataset_id: int | None) -> tuple[Any, ...]:
        if dataset_id is None:
            return gr.skip(), gr.Button(visible=False), box("warning", "Choose a dataset in the list first.")
        try:
            data.remove(dataset_id)
        except StudioError as error:
            return gr.skip(), gr.Button(visible=False), error_box(error)
        return None, gr.Button(visible=False), box("good", "Deleted.")

    upload.change(ready, upload, add, queue=False, **quiet)
    view = [chosen, part, row, length, base]
    whole = [chosen, row, heading, picture, rows, confirm]
    # One after the other, so that a slow first answer does not come after a later one.
    ordered = {**quiet, "concurrency_id": "xray", "concurrency_limit": 1}
    added = add.click(
        add_file,
        [upload, held_out, leave_out],
        [verdict, chosen, upload, page.form["data.dataset"]],
        show_progress_on=verdict,
        api_visibility="private",
    )
    removed = confirm.click(guarded(remove), chosen, [chosen, confirm, verdict], **quiet)
    for changed in (added, removed):
        changed.then(open_dataset, view, whole, **ordered)
        page.actions.append(changed)
    page.blocks.load(arrive, view, whole, **ordered)
    listing.select(pick, view, whole, **ordered)
    part.input(open_dataset, view, whole, **ordered)
    moved = [row.submit, row.blur, length.change]
    gr.on(moved, look, view, [heading, picture], trigger_mode="always_last", **ordered)
    back.click(partial(turn, -1), view, [row, heading, picture], **ordered)
    forward.click(partial(turn, 1), view, [row, heading, picture], **ordered)
    delete.click(_ask, chosen, confirm, queue=False, **quiet)
    page.views.append(View([listing], lambda run_id: _listing(), lambda run_id: [_listing()]))


def _listing() -> list[list[Any]]:
    return [[d["id"], d["name"], d["shape"], _count(d)] for d in store.listed()]


def _count(dataset: dict[str, Any]) -> str:
    """Rows, held-out rows, and rows that were left out at import, where there are any."""
    text = f"{dataset['rows']:,}"
    if dataset["held_out_rows"]:
        text += f" + {dataset['held_out_rows']:,}"
    if dataset["left_out"] != "0":
        text += f" ({dataset['left_out']} left out)"
    return text


def _count_of(dataset_id: int | None, part: str) -> int:
    """How many rows this part has."""
    if dataset_id is None:
        return 0
    return store.get(dataset_id)["held_out_rows" if part == "held_out" else "rows"]


def _ask(dataset_id: int | None) -> Any:
    """The second button of a deletion, which names what it deletes."""
    if dataset_id is None:
        return gr.Button(visible=False)
    return gr.Button(f"Yes, delete {store.get(dataset_id)['name']}", visible=True)


def _first() -> int | None:
    return next((dataset["id"] for dataset in store.listed()), None)


def _rows(dataset_id: int | None, part: str) -> list[list[Any]]:
    if dataset_id is None:
        return []
    listed = []
    for number, row in enumerate(data.rows(dataset_id, part, count=PREVIEW_ROWS), start=1):
        if "text" in row:
            listed.append([number, "", row["text"][:ROLE_WIDTH]])
            continue
        asks = " / ".join(m["content"] for m in row["messages"] if m["role"] != "assistant")
        answers = " / ".join(m["content"] for m in row["messages"] if m["role"] == "assistant")
        listed.append([number, asks[:ROLE_WIDTH], answers[:ROLE_WIDTH]])
    return listed


def _xray(dataset_id: int | None, part: str, number: int, max_length: int, base: str) -> tuple[str, str]:
    """Heading and coloured tokens of one row."""
    if dataset_id is None:
        return empty("Choose a dataset on the left, or add one."), ""
    dataset = store.get(dataset_id)
    found = data.rows(dataset_id, part, start=max(0, number - 1), count=1)
    if not found:
        if part == "held_out" and number == 1:
            return empty(
                "This dataset has no held-out file: a share of its rows is held out at the start of a run."
            ), ""
        return empty(f"There is no row {number}; the last one is {_count_of(dataset_id, part)}."), ""
    from core.config import RunConfig

    config = RunConfig.model_validate({"model": {"base": base}, "training": {"max_length": max_length}})
    tokenizer = load.tokenizer(base)
    encoded = cut(xray.encode(found[0], tokenizer, 1 << 30), max_length)
    counted = summary(dataset, config)
    lost = f", {encoded.cut_supervised} more are cut off" if encoded.cut_supervised else ""
    heading = (
        f"<h3>Loss X-ray: {escape(dataset['name'])}, row {number}</h3>"
        f'<p class="pl-muted">{encoded.supervised} of {len(encoded.input_ids)} tokens are in the loss{lost}. '
        f"Whole set at {max_length}: {counted.supervised / max(counted.tokens, 1):.0%} "
        f"of {counted.tokens:,} tokens; "
        f"{counted.cut_rows} rows cut, {counted.empty_rows} with nothing left to learn. "
        f"Rendered by the template of {escape(base)}.</p>"
    )
    return heading, _tokens(xray.tokens(encoded, tokenizer))


KEY = (
    '<div class="pl-key"><span class="learned">in the loss</span>'
    '<span class="end">end of turn, learned</span>'
    '<span class="pl-muted">masked</span><span class="cut">cut off</span></div>'
)


def _tokens(tokens: list[xray.Token]) -> str:
    parts = []
    for token in tokens:
        # A newline gets no background of its own, or every line would end in a coloured stub.
        classes = f"{token.kind} special" if token.special else token.kind
        parts.append(f'<span class="{classes}">{escape(token.text)}</span>')
    return f'<div class="pl-card">{KEY}<div class="pl-xray">{"".join(parts)}</div></div>'
