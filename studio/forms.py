"""The training form, made from the schema: one component a setting, label and help included."""

import types
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from pydantic.fields import FieldInfo

from core import config as schema
from core.config import RunConfig, Setting

SECTIONS = {
    "": "Run",
    "model": "Model",
    "quantisation": "Quantisation",
    "lora": "LoRA",
    "data": "Data",
    "training": "Training",
    "evaluation": "Evaluation",
}
# Shown as text, because 2e-4 reads better than 0.0002 and number boxes rewrite it.
AS_TEXT = {"training.learning_rate"}


def component(setting: Setting) -> Any:
    """The input for one setting, at its default."""
    info = setting.info
    common = {
        "label": info.title,
        "info": info.description,
        "elem_id": "set-" + setting.key.replace(".", "-"),
    }
    kind = info.annotation
    default = info.default
    if setting.key == "model.base":
        return gr.Dropdown([default], value=default, allow_custom_value=True, **common)
    if setting.key == "data.dataset":
        return gr.Dropdown([], value=None, **common)
    if setting.key in AS_TEXT:
        return gr.Textbox(f"{default:g}", **common)
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), value=default, **common)
    if kind is bool:
        return gr.Checkbox(value=default, **common)
    if get_origin(kind) is tuple:
        return gr.Dropdown(
            list(default), value=list(default), multiselect=True, allow_custom_value=True, **common
        )
    if _plain(kind) in (int, float):
        return gr.Number(value=default, precision=0 if _plain(kind) is int else None, **common)
    return gr.Textbox(default or "", **common)


def _plain(kind: Any) -> Any:
    """int for ``int | None``."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def build(simple: bool) -> dict[str, Any]:
    """Components by key for the short form, or for all the other settings, under headings."""
    chosen = [setting for setting in schema.settings() if setting.simple is simple]
    made: dict[str, Any] = {}
    if simple:
        for row in _rows(chosen, 3):
            with gr.Row(equal_height=True):
                for setting in row:
                    made[setting.key] = component(setting)
        return made
    for section, title in SECTIONS.items():
        in_section = [setting for setting in chosen if setting.section == section]
        if in_section:
            gr.Markdown(f"#### {title}")
        for row in _rows(in_section, 2):
            with gr.Row(equal_height=True):
                for setting in row:
                    made[setting.key] = component(setting)
    return made


def _rows(settings: list[Setting], width: int) -> list[list[Setting]]:
    return [settings[start : start + width] for start in range(0, len(settings), width)]


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
    shown = []
    for key in keys:
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section), name) if section else getattr(config, name)
        if key in AS_TEXT:
            value = f"{value:g}"
        shown.append(list(value) if isinstance(value, tuple) else value)
    return shown


def label(key: str) -> str:
    """A setting's label, or the key itself when the schema has no such setting."""
    return next((s.info.title or key for s in schema.settings() if s.key == key), key)
