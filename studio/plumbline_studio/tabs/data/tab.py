"""Data: add datasets, see their rows and exactly what the model will learn, and mix them."""

import json
import uuid
from typing import Any

import gradio as gr

from plumbline.data.formats import held_out_marks
from plumbline.data.importing import from_hub, importer
from plumbline.data.readers import data_folder
from plumbline.data.readers.source_files import SUFFIXES, Source
from plumbline.data.selection import datasets as data
from plumbline.errors import StudioError
from plumbline.store import datasets as store
from plumbline_studio.held import Choice, Held
from plumbline_studio.live import Page, View
from plumbline_studio.messages import box, error_box, guarded
from plumbline_studio.once import Once
from plumbline_studio.tabs.data import add as adding
from plumbline_studio.tabs.data import desk, mix

COLUMNS = ["dataset", "shape", "rows", "verdict"]


def build(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=340):
            upload = gr.File(
                label="Add a dataset: JSONL, JSON, CSV, Parquet, YAML, text",
                file_count="multiple",
                file_types=list(SUFFIXES),
                height=150,
                elem_id="upload",
            )
            name = gr.Textbox(
                label="Name", placeholder="as the file is called", max_lines=1, elem_id="dataset-name"
            )
            add = gr.Button("Choose a file", variant="primary", interactive=False, elem_id="add-dataset")
            leave_out = gr.Checkbox(
                False,
                label="Leave bad rows out",
                info="else one bad row refuses the file; their number is kept",
            )
            with gr.Accordion("Held-out file, Hub, folder", open=False, elem_id="sources"):
                held_out = gr.File(
                    label="Held-out rows (else a share is held out)",
                    file_count="multiple",
                    file_types=list(SUFFIXES),
                    height=150,
                )
                elsewhere = _elsewhere()
            verdict = gr.HTML(elem_id="verdict")
            gr.Markdown("#### Datasets")
            listing = gr.Dataframe(
                headers=COLUMNS,
                interactive=False,
                wrap=True,
                show_label=False,
                elem_id="datasets",
                column_widths=["29%", "27%", "20%", "24%"],
            )
            with gr.Row(equal_height=True):
                new_name = gr.Textbox(
                    show_label=False,
                    container=False,
                    placeholder="New name of the chosen one",
                    max_lines=1,
                    min_width=160,
                    scale=2,
                    elem_id="new-name",
                )
                rename = gr.Button("Rename it", size="sm", min_width=90, scale=1, elem_id="rename")
            with gr.Row():
                delete = gr.Button("Delete the chosen one", size="sm")
                confirm = gr.Button("Yes, delete it", size="sm", variant="stop", visible=False)
        with gr.Column(scale=3, min_width=420):
            chosen = Held()
            pane_shown = Held(desk.XRAY)
            click, imported = Held(""), Held()
            fetch_click, imports = Held(""), Once()
            with gr.Tabs(selected="xray", elem_id="desk") as tabs:
                shown = desk.build(page, tabs, chosen, pane_shown)
                with gr.Tab("New file", id="new", render_children=True):
                    pane = adding.build()
                with gr.Tab("Mixing desk", id="mix", render_children=True):
                    mix.build(page)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    base = page.form["model.base"]

    def ready(paths: list[str] | None) -> list[Any]:
        """A newly chosen file: nothing of the last one holds for it, and its pane comes to the front."""
        front = (gr.Tabs(selected="new"), "New file") if paths else (gr.skip(), gr.skip())
        return [_button(paths), *front, uuid.uuid4().hex, *adding.FRESH]

    def add_files(
        click: str,
        paths: list[str] | None,
        held_paths: list[str] | None,
        called: str,
        skip: bool,
        method: str,
        *values: Any,
        progress: Any = gr.Progress(),  # noqa: B008 (how Gradio asks for it)
    ) -> tuple[Any, ...]:
        def told(text: str, share: float | None) -> None:
            progress(share or 0.0, desc=text)

        try:
            dataset_id = imports.result(
                click, lambda: adding.add(paths, held_paths, called, skip, values, told)
            )
        except Exception as error:
            return error_box(error), *[gr.skip()] * 6
        return *_added(dataset_id, called, method), [*(paths or []), *(held_paths or [])]

    def add_elsewhere(
        click: str,
        repo: str,
        config: str,
        split: str,
        held_split: str,
        revision: str,
        file: str | None,
        called: str,
        skip: bool,
        method: str,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        def told(text: str, share: float | None) -> None:
            progress(share or 0.0, desc=text)

        def work() -> int:
            if file:
                source = Source(data_folder.inside(file), file)
                return importer.add([source], options=importer.Options(called, leave_out=skip))
            wanted = (repo.strip(), config or None, split or None, held_split or None, revision or None)
            return from_hub.add(*wanted, importer.Options(called, leave_out=skip), told)

        try:
            dataset_id = imports.result(click, work)
        except Exception as error:
            return error_box(error), *[gr.skip()] * 6
        return *_added(dataset_id, called, method), []

    def finish(
        paths: list[str] | None, held_paths: list[str] | None, imported: list[str] | None
    ) -> list[Any]:
        """Its files go from the boxes and the X-ray comes, unless another file was chosen meanwhile."""
        if imported is None:
            return [gr.skip(), gr.skip(), _button(paths), gr.skip(), gr.skip(), None]
        kept = [path for path in paths or [] if path not in imported]
        front = (gr.skip(), gr.skip()) if kept else (gr.Tabs(selected="xray"), desk.XRAY)
        held = gr.skip() if set(held_paths or []) - set(imported) else None
        return [gr.skip() if kept or not paths else None, held, _button(kept), *front, None]

    def call(dataset_id: int | None, wanted: str, trained: str | None) -> list[Any]:
        """Another name, on the Train tab too where the dataset is chosen there."""
        if dataset_id is None:
            return [box("warning", "Choose a dataset in the list first."), gr.skip(), gr.skip(), gr.skip()]
        try:
            old = store.get(dataset_id)["name"]
            new = store.rename(dataset_id, wanted)
        except StudioError as error:
            return [error_box(error), gr.skip(), gr.skip(), gr.skip()]
        told = f"{old} is called {new} now. Recipes and runs that say {old} still find it."
        chosen_too = Choice(choices=store.names(), value=store.current(trained))
        return [box("good", told), "", chosen_too, gr.Button(visible=False)]

    def remove(dataset_id: int | None, trained: str | None) -> tuple[Any, ...]:
        if dataset_id is None:
            warning = box("warning", "Choose a dataset in the list first.")
            return gr.skip(), gr.Button(visible=False), warning, gr.skip()
        try:
            data.remove(dataset_id)
        except StudioError as error:
            return gr.skip(), gr.Button(visible=False), error_box(error), gr.skip()
        names = store.names()
        left = gr.Dropdown(choices=names, value=trained if trained in names else next(iter(names), None))
        return None, gr.Button(visible=False), box("good", "Deleted."), left

    # Guess, then the first row with the model's template: the second takes longer the first time.
    looked = [pane.guess, pane.all_trained, *pane.fields]
    look = {**quiet, "concurrency_id": "look", "concurrency_limit": 2}
    fresh = [add, tabs, pane_shown, click, pane.corrected, *pane.reset]
    arrived = upload.change(ready, upload, fresh, queue=False, **quiet)
    correcting = [field.input for field in pane.fields[2:]]
    corrected = gr.on(correcting, lambda: True, None, pane.corrected, queue=False, **quiet)
    reading = gr.on(
        [pane.all_trained.input, pane.inputs[-5].blur, *(field.input for field in pane.inputs[-4:])],
        lambda: None,
        None,
        None,
        queue=False,
        **quiet,
    )
    used = pane.fields[1].input(lambda: None, None, None, **quiet)
    for begun in (arrived, corrected, reading, used):
        begun.then(adding.look, [upload, *pane.inputs], looked, **look).then(
            adding.first_row, [upload, base, *pane.inputs], pane.example, **look
        )
    method = page.form["method.name"]
    form = [page.form["data.dataset"], page.form["data.mix"], method]
    outputs = [verdict, shown.chosen, *form, name, imported]
    add.click(lambda: gr.Button("Adding…", interactive=False), None, add, queue=False, **quiet)
    added = add.click(
        add_files,
        [click, upload, held_out, name, leave_out, method, *pane.inputs],
        outputs,
        show_progress_on=verdict,
        api_visibility="private",
    )
    fetched = elsewhere[-1].click(
        add_elsewhere,
        [fetch_click, *elsewhere[:-1], name, leave_out, method],
        outputs,
        js="(_, ...given) => [plumbline.token(), ...given]",
        show_progress_on=verdict,
        api_visibility="private",
    )
    for ended in (added, fetched):
        last = [upload, held_out, add, tabs, pane_shown, imported]
        ended.then(finish, [upload, held_out, imported], last, queue=False, **quiet)
    removed = confirm.click(
        guarded(remove),
        [shown.chosen, page.form["data.dataset"]],
        [shown.chosen, confirm, verdict, page.form["data.dataset"]],
        **quiet,
    )
    renamed = gr.on(
        [rename.click, new_name.submit],
        guarded(call),
        [shown.chosen, new_name, page.form["data.dataset"]],
        [verdict, new_name, page.form["data.dataset"], confirm],
        **quiet,
    )
    for changed in (added, fetched, removed, renamed):
        shown.follow(changed)
        page.actions.append(changed)
    one = {**quiet, "concurrency_id": "xray", "concurrency_limit": 1}
    shown.fill(
        listing.select(_pick, [pane_shown, *shown.inputs], [confirm, tabs, pane_shown, *shown.outputs], **one)
    )
    tabs.select(_opened, None, pane_shown, queue=False, **quiet)
    delete.click(_ask, shown.chosen, confirm, queue=False, **quiet)
    page.views.append(View([listing], lambda run_id: _listing(), lambda run_id: [_listing()]))


def _button(paths: list[str] | None) -> Any:
    return gr.Button("Check and add" if paths else "Choose a file", interactive=bool(paths))


def _elsewhere() -> list[Any]:
    """Inputs for the Hub and the data folder, and the button that imports from them."""
    with gr.Group():
        repo = gr.Textbox(label="Dataset on the Hub", placeholder="org/name", elem_id="hub-id")
        with gr.Row():
            config = gr.Textbox(label="Config", placeholder="its default", min_width=100)
            split = gr.Textbox(label="Split", placeholder="train", min_width=100)
        with gr.Row():
            held_split = gr.Textbox(label="Held-out split", placeholder="none", min_width=100)
            revision = gr.Textbox(label="Revision", placeholder="main", min_width=100)
    listed = data_folder.listed()
    file = gr.Dropdown(
        ["", *listed],
        value="",
        label="Or a file of the data folder",
        info="" if listed else "PLUMBLINE_DATA names no folder with data files",
        interactive=bool(listed),
    )
    button = gr.Button("Fetch, check and add", size="sm", elem_id="add-elsewhere")
    return [repo, config, split, held_split, revision, file, button]


def _added(dataset_id: int, called: str, method: str) -> tuple[Any, ...]:
    """Verdict, the chosen dataset, what the Train tab learns from now (it, and no mix, by the method that
    its rows want), and no name.

    :param called: the name that was asked for; it may have been taken
    """
    added = store.get(dataset_id)
    text = f"{added['name']}: {added['rows']:,} rows of the shape {added['shape']}"
    if by := held_out_marks.held_out_by(json.loads(added["origin"] or "{}")):
        text += f"; {added['held_out_rows']:,} held out {by}"
    if added["left_out"] != "0":
        text += f"; {int(added['left_out']):,} bad rows left out"
    warnings = [finding["text"] for finding in store.findings(added)]
    if called.strip() not in ("", added["name"]):
        text += f" (the name {called.strip()} is taken, or has signs that a name cannot have)"
    fit = data.fitting(added, method)
    learned = "" if fit == method else f", and the method there is {fit} now"
    told = box("good", f"{text}. It is chosen on the Train tab{learned}.")
    if warnings:
        told += box(
            "warning", "\n".join(warnings[:4]) + ("\nSee Warnings for more." if len(warnings) > 4 else "")
        )
    chosen_too = Choice(choices=store.names(), value=added["name"])
    return told, dataset_id, chosen_too, "", fit, ""


def _pick(event: gr.SelectData, pane: str, *view: Any) -> list[Any]:
    """Another dataset; the pane that shows it stays, unless it shows something else."""
    elsewhere = pane in ("New file", "Mixing desk")
    shown = (gr.Tabs(selected="xray"), desk.XRAY) if elsewhere else (gr.skip(), gr.skip())
    dataset_id = store.by_name(event.row_value[0])["id"]
    return [gr.Button(visible=False), *shown, dataset_id, *desk.opened(dataset_id, *view)[1:]]


def _opened(event: gr.SelectData) -> str:
    return str(event.value)


def _listing() -> list[list[Any]]:
    return [
        [d["name"], d["shape"].replace("/", " / "), _count(d), store.verdict(d)]
        for d in reversed(store.listed())
    ]


def _count(dataset: dict[str, Any]) -> str:
    """Rows, held-out rows, and rows that were left out at import, where there are any."""
    text = f"{dataset['rows']:,}"
    if dataset["held_out_rows"]:
        text += f" + {dataset['held_out_rows']:,}"
    if dataset["left_out"] != "0":
        text += f" ({dataset['left_out']} left out)"
    return text


def _ask(dataset_id: int | None) -> Any:
    """The second button of a deletion, which names what it deletes."""
    if dataset_id is None:
        return gr.Button(visible=False)
    return gr.Button(f"Yes, delete {store.get(dataset_id)['name']}", visible=True)
