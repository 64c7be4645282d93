"""The mixing desk: several datasets with weights, what each comes to, and the split and order of all."""

from typing import Any, get_args

import gradio as gr

from plumbline.config import schema
from plumbline.config.schema import DataSection
from plumbline.data.selection import mix
from plumbline.errors import StudioError
from plumbline.planner import overview
from plumbline.store import datasets as store
from plumbline_studio import forms
from plumbline_studio.held import Choice, Held
from plumbline_studio.live import Page, View
from plumbline_studio.messages import MARKS, bar, box, empty, error_box, escape

SLOTS = 8
SPLITS = list(get_args(DataSection.model_fields["split"].annotation))
ORDERS = list(get_args(DataSection.model_fields["order"].annotation))


def build(page: Page) -> None:
    chosen = Choice(
        [], multiselect=True, label=f"Datasets (at most {SLOTS})", max_choices=SLOTS, elem_id="mix-datasets"
    )
    weights: list[Any] = []
    prefixes: list[Any] = []
    rows: list[Any] = []
    for number in range(SLOTS):
        with gr.Row(visible=False) as row:
            weights.append(gr.Number(1, label="weight", min_width=110, elem_id=f"weight-{number}"))
            prefixes.append(gr.Textbox(label="task prefix", scale=3, min_width=180))
        rows.append(row)
    gr.HTML(
        '<p class="pl-muted">The weight says how often each row is shown in an epoch: 2 = twice, '
        "0.5 = a random half. A task prefix begins every first question.</p>"
    )
    with gr.Row():
        split = gr.Dropdown(SPLITS, value="random", label="Split", info=_help("split"))
        split_column = gr.Textbox(label="Split column", info="empty: label, or group")
        share = gr.Number(0.1, label="Held-out share", info="where there is no held-out file")
    with gr.Row():
        order = gr.Dropdown(ORDERS, value="shuffled", label="Order", info=_help("order"))
        order_column = gr.Textbox(label="Order column")
    result = gr.HTML(empty("Choose two or more datasets."), elem_id="mix-result")
    use = gr.Button("Use this mix on the Train tab", variant="primary", elem_id="use-mix")
    used = gr.HTML()
    names = Held([])
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    form = page.form
    knobs = [*weights, *prefixes, split, split_column, share, order, order_column]
    inputs = [chosen, form["model.base"], form["training.max_length"], *knobs]
    shown = {**quiet, "concurrency_id": "mix", "concurrency_limit": 1, "trigger_mode": "always_last"}
    placed = chosen.change(
        _place, [chosen, names, *weights, *prefixes], [names, *rows, *weights, *prefixes], **quiet
    )
    placed.then(_result, inputs, result, **shown)
    changes = [knob.change for knob in knobs]
    gr.on(
        [*changes, form["training.max_length"].change, form["model.base"].change],
        _result,
        inputs,
        result,
        **shown,
    )
    target = [form[f"data.{name}"] for name in TARGETS]
    use.click(_use, [chosen, *knobs], [used, form["data.dataset"], *target], **quiet)
    form["data.dataset"].input(lambda: "", None, used, queue=False, **quiet)
    page.views.append(
        View([chosen], lambda run_id: store.names(), lambda run_id: [Choice(choices=store.names())])
    )


TARGETS = ("mix", "split", "split_column", "held_out_share", "order", "order_column")


def _help(name: str) -> str:
    return DataSection.model_fields[name].description or ""


def _place(chosen: list[str], names: list[str], *values: Any) -> list[Any]:
    """A line for every chosen dataset; what was set for one stays with it when others come and go.

    A line that keeps its dataset is sent no values: one may be typed while this is on its way.
    """
    weights, prefixes = values[:SLOTS], values[SLOTS:]
    known = {name: (weights[n], prefixes[n]) for n, name in enumerate(names[:SLOTS])}
    titles = [*chosen, *[""] * (SLOTS - len(chosen))]
    were = [*names, *[""] * (SLOTS - len(names))]
    kept = [gr.skip() if title == before else None for title, before in zip(titles, were, strict=True)]
    lines = [known.get(title, (1, "")) for title in titles]
    return [
        chosen,
        *(gr.Row(visible=bool(title)) for title in titles),
        *(
            same or gr.Number(value=weight, label=f"{title}: weight")
            for same, title, (weight, _) in zip(kept, titles, lines, strict=True)
        ),
        *(same or gr.Textbox(value=prefix) for same, (_, prefix) in zip(kept, lines, strict=True)),
    ]


def _section(chosen: list[str], knobs: tuple[Any, ...]) -> dict[str, Any]:
    """The recipe's data section that the desk shows. :raises StudioError: with the dataset of a bad weight"""
    weights, prefixes = knobs[:SLOTS], knobs[SLOTS : 2 * SLOTS]
    split, split_column, share, order, order_column = knobs[2 * SLOTS :]
    for name, weight in zip(chosen, weights, strict=False):
        if not isinstance(weight, (int, float)) or not 0 < weight <= 100:
            raise StudioError(f"weight of {name}", f"is {weight}", "Give a number above 0, at most 100.")
    parts = [
        {"dataset": name, "weight": weight, **({"prefix": prefix} if prefix else {})}
        for name, weight, prefix in zip(chosen, weights, prefixes, strict=False)
    ]
    return {
        "mix": parts,
        "split": split,
        "split_column": split_column or "",
        "held_out_share": share,
        "order": order,
        "order_column": order_column or "",
    }


def _result(chosen: list[str], base: str, length: Any, *knobs: Any) -> str:
    """What every dataset comes to in an epoch, its share of the loss as a bar, and leaks."""
    if not chosen:
        return empty("Choose two or more datasets.")
    try:
        raw = {"model": {"base": base}, "training": {"max_length": length}, "data": _section(chosen, knobs)}
        config = schema.validated(raw, "mix")
        picked = mix.choose(config.data)
        found = overview.shares(config, picked)
    except Exception as error:
        return error_box(error)
    total = sum(share.supervised for share in found) or 1
    lines = "".join(_line(share, total) for share in found)
    header = "".join(
        f"<th>{name}</th>"
        for name in (
            "dataset",
            "rows an epoch",
            "repeats",
            "tokens",
            "in the loss",
            "held out",
            "share of the loss",
        )
    )
    rows, tokens = sum(share.rows for share in found), sum(share.tokens for share in found)
    said = f"{rows:,} rows and {tokens:,} tokens an epoch, {total:,} of them in the loss."
    foot = f'<p class="pl-muted">{said}</p>'
    leaks = "".join(
        f'<p class="pl-check pl-warning">{MARKS["warning"]} {escape(finding.text)}</p>'
        for finding in mix.leaks(picked)
    )
    body = f'<table class="pl-table"><thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="pl-card pl-wide">{body}{foot}{leaks}</div>'


def _line(share: overview.Share, total: int) -> str:
    part = share.supervised / total
    own = share.chosen.dataset["rows"] - (
        len(share.chosen.held_out) if share.chosen.held_out_part == "train" else 0
    )
    cells = (
        share.chosen.name,
        f"{share.rows:,}",
        f"{share.rows / max(1, own):.2g} ×",
        f"{share.tokens:,}",
        f"{share.supervised:,}",
        f"{len(share.chosen.held_out):,}",
    )
    shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr>{shown}<td><div class="pl-share">{bar(part)}<span>{part:.0%}</span></div></td></tr>'


def _use(chosen: list[str], *knobs: Any) -> list[Any]:
    """The mix in the training form. One dataset of weight 1 is a mix too."""
    if not chosen:
        return [box("warning", "Choose a dataset first."), gr.skip(), *[gr.skip() for _ in TARGETS]]
    try:
        config = schema.validated({"data": _section(chosen, knobs)}, "mix")
        mix.choose(config.data)
    except Exception as error:
        return [error_box(error), gr.skip(), *[gr.skip() for _ in TARGETS]]
    said = " + ".join(f"{part.dataset} × {part.weight:g}" for part in config.data.mix)
    values = forms.values(config, [f"data.{name}" for name in TARGETS])
    shown = gr.Dropdown(value=chosen[0])  # the form shows one dataset: the mix's first, not any other
    return [box("good", f"The Train tab now learns from {said}."), shown, *values]
