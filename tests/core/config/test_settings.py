"""Every setting goes from the form to a recipe file, to the command line, to SQLite and back."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from plumbline.cli import main, settings
from plumbline.config import schema
from plumbline.store import datasets, runs
from plumbline_studio import forms

# What cannot be made up from a setting's kind and limits.
VALUES: dict[str, Any] = {
    "name": "a name",
    "model.base": "org/name",
    "model.revision": "v1.2",
    "lora.target_modules": ["attention", "up_proj"],
    "lora.layers": "0-3,6",
    "lora.modules_to_save": ["embed_tokens", "lm_head"],
    "lora.init_lora_weights": "pissa_niter_8",
    "data.dataset": "ticket-triage",
    "data.split_column": "label",
    "data.mix": [{"dataset": "cited-answers", "weight": 2.0}, {"dataset": "plain-style", "prefix": "Hi, "}],
    "data.order_column": "level",
    "data.mapping": {"prompt": "question", "answer": "reply"},
    "training.best_metric": "plain-style",
    "lora.rank_schedule": [4, 8],
    "method.pattern": "[0-9]+",
    "machines.main_process_ip": "10.0.0.7",
    "data.day": "2026-01-31",
}


def another(setting: schema.Setting) -> Any:
    """A value that is not the default's."""
    if setting.key in VALUES:
        return VALUES[setting.key]
    kind, default = setting.info.annotation, setting.info.default
    if get_origin(kind) is Literal:
        return next(value for value in get_args(kind) if value != default)
    if kind is bool:
        return not default
    if default is None:
        return 32
    if kind is int:
        return default + 1
    return default / 2 if default else 0.125


def everything() -> schema.RunConfig:
    raw: dict[str, Any] = {}
    for setting in schema.settings():
        target = raw.setdefault(setting.section, {}) if setting.section else raw
        target[setting.name] = another(setting)
    raw["data"]["order"] = "short to long"
    return schema.validated(raw)


def value_of(config: schema.RunConfig, setting: schema.Setting) -> Any:
    return getattr(getattr(config, setting.section), setting.name) if setting.section else config.name


def flag(setting: schema.Setting, value: Any) -> str:
    if setting.key in forms.AS_YAML:
        text = forms._line_of_yaml(value)
    elif isinstance(value, tuple):
        text = ",".join(map(str, value))
    else:
        text = "" if value is None else str(value)
    return f"--{setting.key}={text}"


def test_every_setting_survives_form_file_flags_and_store(samples: Path) -> None:
    config = everything()
    known = list(schema.settings())
    for setting in known:
        assert value_of(config, setting) != value_of(schema.RunConfig(), setting), setting.key
    keys = [setting.key for setting in known]
    # What a browser sends is JSON.
    shown = json.loads(json.dumps(forms.values(config, keys)))
    from_form = schema.validated(forms.raw(keys, shown))
    from_file = schema.loads(schema.dumps(from_form))
    flags = [flag(setting, value_of(from_file, setting)) for setting in known]
    arguments = main.build("plumbline").parse_args(["train", "default", *flags])
    from_flags = settings.recipe(arguments)
    stored = runs.recipe(runs.add(from_flags, datasets.by_name("cited-answers")["id"]))
    for made in (from_form, from_file, from_flags, stored):
        for setting in known:
            assert value_of(made, setting) == value_of(config, setting), setting.key
        assert made == config
    assert json.loads(json.dumps(forms.values(stored, keys))) == shown


def test_a_flag_takes_a_value_back_to_what_leaving_it_out_means() -> None:
    config = everything()
    texts = {setting.key: "" for setting in schema.settings() if setting.key != "data.mix"}
    emptied = schema.changed(config, texts | {"data.mix": ""})
    assert emptied == schema.RunConfig()


@pytest.mark.parametrize("verb", ["train", "forecast"])
def test_the_help_of_the_command_line_explains_every_setting(
    verb: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main.main([verb, "--help"], lambda *_: None)
    said = " ".join(capsys.readouterr().out.split())
    for setting in schema.settings():
        assert f"--{setting.key}" in said
        assert (setting.info.title or "?") in said


def test_every_setting_is_once_in_the_form_under_its_section() -> None:
    groups = [(section, forms._groups(section)) for section in forms.SECTIONS]
    shown = [key for _, found in groups for keys in found.values() for key in keys]
    shown += [key for row in forms.SIMPLE_ROWS for key in row]
    assert sorted(shown) == sorted(setting.key for setting in schema.settings())
    assert all(len(keys) > 1 for _, found in groups for heading, keys in found.items() if heading)
    for setting in schema.settings():
        made: Any = forms.component(setting, forms.values(everything(), [setting.key])[0])
        assert made.label == setting.info.title and made.info == setting.info.description


def test_a_recipe_of_the_version_before_still_loads() -> None:
    text = yaml.safe_dump(
        {
            "quantisation": {"method": "nf4", "double": True, "compute_dtype": "auto"},
            "lora": {"r": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": list(schema.PROJECTIONS)},
            "training": {"schedule": "linear", "warmup_share": 0.1, "eval_steps": 5, "save_steps": 3},
        }
    )
    config = schema.loads(text)
    assert config.lora == schema.RunConfig().lora and config.training.save_steps == 3
