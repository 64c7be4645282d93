"""The training form, made from the schema: one component a setting, label and help included."""

import types
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
import yaml
from pydantic.fields import FieldInfo

from plumbline.config import schema
from plumbline.config.schema import RunConfig, Setting
from plumbline.config.sections import GROUPS, INITIALISATIONS
from plumbline.errors import RecipeError
from plumbline.store import datasets
from plumbline_studio.held import Choice

SECTIONS = {
    "": "Run",
    "model": "Model",
    "quantisation": "Quantisation",
    "lora": "LoRA",
    "data": "Data",
    "method": "Method",
    "training": "Training",
    "evaluation": "Evaluation",
    "machines": "GPUs and machines",
}
# Shown as text, because 2e-4 reads better than 0.0002 and number boxes rewrite it.
AS_TEXT = {"training.learning_rate", "training.adam_epsilon"}
# Names that the list offers beside what is chosen; any other may be typed.
OFFERED = {
    "lora.target_modules": (*GROUPS, *schema.PROJECTIONS),
    "lora.modules_to_save": ("embed_tokens", "lm_head"),
    "lora.rank_schedule": ("4", "8", "16", "32"),
}
# Shown as a line of YAML: other parts of the page, or a recipe, fill them in.
AS_YAML = {"data.mix", "data.mapping"}
SIMPLE_ROWS = (
    ("model.base", "data.dataset"),
    ("training.epochs", "training.learning_rate", "training.max_length"),
    ("method.name", "lora.r", "training.effective_batch"),
)


def component(setting: Setting, default: Any) -> Any:
    """The input for one setting."""
    info = setting.info
    common: dict[str, Any] = {
        "label": info.title,
        "info": info.description,
        "elem_id": "set-" + setting.key.replace(".", "-"),
        "visible": seen(setting, "sft"),
    }
    kind = info.annotation
    if setting.key == "model.base":
        return gr.Dropdown([default], value=default, allow_custom_value=True, **common)
    if setting.key == "data.dataset":
        names = datasets.names()
        return Choice(names, value=default if default in names else next(iter(names), None), **common)
    if setting.key in AS_TEXT or setting.key in AS_YAML or _may_be_empty(kind):
        return gr.Textbox(default, **common)
    if setting.key == "lora.init_lora_weights":
        return gr.Dropdown(list(INITIALISATIONS), value=default, allow_custom_value=True, **common)
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), value=default, **common)
    if kind is bool:
        return gr.Checkbox(value=default, **common)
    if get_origin(kind) is tuple:
        offered = list(dict.fromkeys([*OFFERED[setting.key], *default]))
        return gr.Dropdown(offered, value=default, multiselect=True, allow_custom_value=True, **common)
    if kind in (int, float):
        return gr.Number(value=default, precision=0 if kind is int else None, **common)
    return gr.Textbox(default or "", **common)


def seen(setting: Setting, method: str) -> Any:
    """Whether a method uses a setting. Hidden, not absent: what is not on the page could not be sent."""
    return True if not setting.methods or method in setting.methods else "hidden"


def follow_method(form: dict[str, Any]) -> None:
    """Show the settings that the chosen method uses, and only those."""
    some = {setting.key: setting for setting in schema.settings() if setting.methods}

    def show(method: str) -> list[Any]:
        return [gr.update(visible=seen(setting, method)) for setting in some.values()]

    outputs = [form[key] for key in some]
    form["method.name"].change(show, form["method.name"], outputs, queue=False, show_progress="hidden")


def _may_be_empty(kind: Any) -> bool:
    """Whether a number may be left out. Such ones are text: an empty number box of Gradio 6 says 0."""
    return get_origin(kind) in (Union, types.UnionType) and bool({int, float} & set(get_args(kind)))


def build(simple: bool, start: RunConfig) -> dict[str, Any]:
    """Components by key for the short form, or for all the other settings, under headings."""
    known = {setting.key: setting for setting in schema.settings()}
    shown = dict(zip(known, values(start, list(known)), strict=True))
    made: dict[str, Any] = {}

    def row(keys: tuple[str, ...]) -> None:
        with gr.Row(equal_height=True):
            for key in keys:
                made[key] = component(known[key], shown[key])

    def rows(keys: list[str]) -> None:
        for first in range(0, len(keys), 2):
            row(tuple(keys[first : first + 2]))

    if simple:
        for keys in SIMPLE_ROWS:
            row(keys)
        return made
    for section, title in SECTIONS.items():
        for heading, keys in _groups(section).items():
            if not heading:
                gr.Markdown(f"#### {title}")
                rows(keys)
                continue
            with gr.Accordion(f"{title}: {heading[0].lower()}{heading[1:]}", open=False):
                rows(keys)
    return made


def _groups(section: str) -> dict[str, list[str]]:
    """A section's settings that the short form has not, by heading; those that come first have none."""
    found: dict[str, list[str]] = {}
    heading = ""
    for setting in schema.settings():
        if setting.section == section:
            heading = setting.heading or heading
            if not setting.simple:
                found.setdefault(heading, []).append(setting.key)
    return found


def raw(keys: list[str], values: list[Any]) -> dict[str, Any]:
    """What the components hold, as a recipe that may still have problems."""
    recipe: dict[str, Any] = {}
    fields: dict[str, FieldInfo] = {setting.key: setting.info for setting in schema.settings()}
    for key, value in zip(keys, values, strict=True):
        section, _, name = key.rpartition(".")
        if value == "" and fields[key].default is None:
            value = None
        target = recipe.setdefault(section, {}) if section else recipe
        target[name] = value
    return recipe


def values(config: RunConfig, keys: list[str]) -> list[Any]:
    """What the components show for a recipe."""
    kinds = {setting.key: setting.info.annotation for setting in schema.settings()}
    shown = []
    for key in keys:
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section), name) if section else getattr(config, name)
        if key in AS_TEXT:
            value = f"{value:g}"
        if key == "data.dataset":
            value = datasets.current(value)
        if _may_be_empty(kinds[key]):
            value = "" if value is None else str(value)
        if key in AS_YAML:
            value = _line_of_yaml(value)
        shown.append([str(each) for each in value] if isinstance(value, tuple) else value)
    return shown


def taken_back(draft: Any, form: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the browser kept of the form, perhaps of another version's.

    :param draft: values by key, as the browser sends them
    :returns: those that the form's components can show, and the keys of the others
    """
    kept = _drafted(draft) if isinstance(draft, dict) else {}
    if "data.dataset" in kept:
        kept["data.dataset"] = datasets.current(kept["data.dataset"])
    fit = {key: value for key, value in kept.items() if key in form and _fits(form[key], key, value)}
    return fit, [key for key in kept if key not in fit]


def _drafted(draft: dict[str, Any]) -> dict[str, Any]:
    """A draft by the names that settings have now; as it is when two names of one setting differ."""
    try:
        return schema.by_current_names(draft)
    except RecipeError:
        return dict(draft)


def _fits(component: Any, key: str, value: Any) -> bool:
    """Whether a component can show a value. What is typed wrongly can be shown, and is told of there."""
    if isinstance(component, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(component, gr.Number):
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    if isinstance(component, gr.Dropdown):
        values = value if component.multiselect else [value]
        offered = datasets.names() if key == "data.dataset" else [each for _, each in component.choices]
        return isinstance(values, list) and all(
            each in offered or (component.allow_custom_value and isinstance(each, str)) for each in values
        )
    return isinstance(value, str)


def _line_of_yaml(value: Any) -> str:
    """A structured setting as one line; empty when it is unset."""
    if not value:
        return ""
    plain = [part.model_dump(exclude_defaults=True) for part in value] if isinstance(value, tuple) else None
    plain = value.model_dump(exclude_defaults=True) if plain is None else plain
    return yaml.safe_dump(
        plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    ).strip()


def label(key: str) -> str:
    """A setting's label, or the key itself when the schema has no such setting."""
    return next((s.info.title or key for s in schema.settings() if s.key == key), key)
