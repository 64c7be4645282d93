"""Train: choose, see what Start would do and take, measure it, start."""

import json
import uuid
from pathlib import Path
from typing import Any

import gradio as gr

from plumbline.config import schema
from plumbline.config.schema import RunConfig
from plumbline.data.selection.datasets import described, fitting
from plumbline.errors import RecipeError, StudioError
from plumbline.jobs import queue
from plumbline.models import fit
from plumbline.models.load import is_shared_id
from plumbline.planner.overview import outlook
from plumbline.program import command
from plumbline.runs import start as jobs_start
from plumbline.store import datasets, probes
from plumbline_studio import forms
from plumbline_studio.held import Choice, Held
from plumbline_studio.live import Page, View
from plumbline_studio.messages import box, empty, error_box, guarded
from plumbline_studio.tabs.train import before_start
from plumbline_studio.tabs.train import measure as measuring

Shown = tuple[str, str] | None
PRESETS = {
    "Starter": "starter",
    "Default": "default",
    "Quick test": "quick_test",
    "High capacity": "high_capacity",
    "Small memory": "memory_efficient",
}


def build(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=3):
            told = gr.HTML(visible=False, elem_id="taken-back")
            preset = gr.Radio(
                list(PRESETS),
                value="Starter",
                label="Preset",
                info="Sets every field below; change any of them after",
            )
            form = forms.build(True, schema.preset("starter"))
            count = sum(not setting.simple for setting in schema.settings())
            with gr.Accordion(f"All settings ({count})", open=False):
                form |= forms.build(False, schema.preset("starter"))
        with gr.Column(scale=2):
            panel = gr.HTML(empty("Counting what would be learned…"), elem_id="before-you-start")
            with gr.Row(equal_height=True):
                start = gr.Button("Start training", variant="primary", elem_id="start", min_width=200)
                measure = gr.Button(measuring.TEXT, elem_id="measure", size="md", min_width=200)
            progress = gr.HTML(visible=False, elem_id="measuring")
            halt = gr.Button("Stop measuring", size="sm", visible=False)
            # Hidden, not absent: a component that is not on the page cannot say that it changed.
            moved = gr.Textbox(visible="hidden", elem_id="queue-moved")
            with gr.Accordion("Recipe", open=False):
                recipe = gr.Code(
                    label=f"YAML, for {command('train', 'recipe.yaml')}", language="yaml", interactive=False
                )
                upload = gr.UploadButton("Load a recipe", file_types=[".yaml", ".yml", ".json"], size="sm")
                trouble = gr.HTML()
    page.form = form
    forms.follow_method(form)
    keys, inputs = list(form), list(form.values())
    token, measure_token = Held(), Held()
    shown = gr.State(None)  # the recipe's key and its forecast, as they stand in the panel
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def check(*values: Any) -> tuple[Any, ...]:
        return _check(keys, list(values))

    def choose(name: str, dataset: str | None) -> list[Any]:
        preset = _keep_dataset(forms.values(schema.preset(PRESETS[name]), keys), keys, dataset)
        return [
            method_for(dataset, value) if key == "method.name" else value
            for key, value in zip(keys, preset, strict=True)
        ]

    def load_recipe(path: str) -> list[Any]:
        try:
            config = schema.read_recipe(Path(path), "recipe")
        except StudioError as error:
            return [error_box(error), *[gr.skip() for _ in keys]]
        return [box("good", "Recipe loaded."), *forms.values(config, keys)]

    def begin(click: str, forecast: Shown, *values: Any) -> tuple[Any, ...]:
        run_id = start_run(forms.raw(keys, list(values)), click, forecast)
        return run_id, gr.Tabs(selected="runs"), uuid.uuid4().hex

    def look(click: str, *values: Any) -> str:
        measuring.start(valid(forms.raw(keys, list(values))), click)
        return uuid.uuid4().hex

    def take_back(draft: Any) -> list[Any]:
        """The form as it was before this page was loaded again."""
        fit, lost = forms.taken_back(draft, {"preset": preset, **form})
        named = ", ".join(forms.label(key) for key in lost)
        warning = box("warning", f"Not taken over from before this page was loaded again: {named}.")
        return [gr.HTML(warning, visible=bool(lost)), fit]

    outputs = [panel, start, measure, recipe, shown]
    # One listener for all of them: separate ones could answer out of order. A job that starts or ends
    # changes what the buttons may do, and a measurement changes the figures.
    changes = [field.change for field in [*inputs, moved, page.returned]]
    gr.on(changes, check, inputs, outputs, trigger_mode="always_last", **quiet)
    page.blocks.load(check, inputs, outputs, **quiet)
    draft, fit, kept = Held(), Held(), [preset, *inputs]
    names = json.dumps(["preset", *keys])
    keep = f"(...values) => plumbline.keepFields({names}, values)"
    gr.on([field.change for field in inputs] + [preset.input], None, kept, None, js=keep, **quiet)
    page.blocks.load(None, None, draft, js="() => plumbline.takenFields()", **quiet)
    draft.change(take_back, draft, [told, fit], queue=False, **quiet)
    fill = f"fit => plumbline.fill({names}, fit)"
    fit.change(None, fit, kept, js=fill, **quiet)
    tokens = "() => [plumbline.token(), plumbline.token()]"
    page.blocks.load(None, None, [token, measure_token], js=tokens, **quiet)
    # A mix stands in for the dataset; choosing one dataset takes it back.
    form["data.dataset"].input(lambda: "", None, form["data.mix"], queue=False, **quiet)
    method = form["method.name"]
    form["data.dataset"].input(method_for, [form["data.dataset"], method], method, queue=False, **quiet)
    preset.input(choose, [preset, form["data.dataset"]], inputs, **quiet)
    upload.upload(load_recipe, upload, [trouble, *inputs], **quiet)
    start.click(guarded(begin), [token, shown, *inputs], [page.run, page.tabs, token], **quiet)
    page.actions.append(measure.click(guarded(look), [measure_token, *inputs], measure_token, **quiet))
    page.actions.append(halt.click(guarded(measuring.stop), None, None, **quiet))

    page.views += [
        View(
            [form["data.dataset"]],
            lambda run_id: datasets.names(),
            lambda run_id: [Choice(choices=datasets.names())],
        ),
        View([progress, halt], lambda run_id: measuring.signature(), lambda run_id: measuring.shown()),
        View([moved], lambda run_id: measuring.moved(), lambda run_id: [measuring.moved()]),
    ]


def method_for(dataset: str | None, method: str) -> str:
    """The method for a dataset that was chosen: as it is, unless its rows want another one."""
    if not dataset or dataset not in datasets.names():
        return method
    return fitting(datasets.by_name(dataset), method)


def _keep_dataset(values: list[Any], keys: list[str], dataset: str | None) -> list[Any]:
    """A preset says how to train; what to train on stays as chosen."""
    return [
        gr.skip() if key == "data.dataset" and dataset else value
        for key, value in zip(keys, values, strict=True)
    ]


def start_run(raw: dict[str, Any], token: str, shown: Shown = None) -> int:
    """Store a run and queue it. :raises StudioError: when the recipe has problems

    :param token: one per click, so that a double click starts one run
    :param shown: the forecast in the panel, which the run is held against if it is of this recipe
    """
    config = valid(raw)
    fit.check_fits(config)
    dataset = datasets.by_name(config.data.parts[0].dataset)
    forecast = shown[1] if shown is not None and shown[0] == probes.key(config) else None
    return jobs_start.start(described(config), dataset["id"], token, forecast)


def valid(raw: dict[str, Any]) -> RunConfig:
    """A recipe that a browser may start. :raises RecipeError: with every problem, by field"""
    config = schema.validated(raw)
    if not is_shared_id(config.model.base):
        raise RecipeError({"model.base": "must be 'starter' or a Hub id like org/name"})
    return config


def _check(keys: list[str], values: list[Any]) -> tuple[Any, ...]:
    """The panel, the buttons (which say what is missing), the recipe, and what was forecast for it."""
    raw = forms.raw(keys, values)
    if not raw["data"]["dataset"] and not raw["data"]["mix"]:
        return _refused(empty("Add a dataset on the Data tab."), "Choose a dataset")
    try:
        config = valid(raw)
        found = outlook(config)
    except RecipeError as error:
        listed = "".join(
            box("bad", f"{forms.label(field)} {problem}") for field, problem in error.problems.items()
        )
        word = "setting" if len(error.problems) == 1 else "settings"
        return _refused(listed, f"Mend {len(error.problems)} {word} to start")
    except Exception as error:
        return _refused(error_box(error), "Mend what is marked to start")
    if not found.blocked:
        button = _enabled(found.left_out)
    else:
        button = _disabled("It would not fit" if found.learns else "Nothing to learn")
    inside = before_start.inside(found) + before_start.machines(config) + measuring.failure(config)
    panel = before_start.panel(inside)
    shown: Shown = None
    if found.forecast is not None:
        shown = probes.key(config), found.forecast.to_json()
    return panel, button, measuring.button(not found.blocked), schema.dumps(config), shown


def _refused(inside: str, text: str) -> tuple[Any, ...]:
    return before_start.panel(inside), _disabled(text), measuring.button(False), "", None


def _disabled(text: str) -> Any:
    return gr.Button(text, interactive=False)


def _enabled(left_out: int) -> Any:
    """The button names what is given up by pressing it."""
    busy = queue.active() is not None or queue.waiting() > 0
    text = "Queue behind the running job" if busy else "Start training"
    without = f" without {left_out:,} row{'s' if left_out > 1 else ''}" if left_out else ""
    return gr.Button(text + without, interactive=True)
