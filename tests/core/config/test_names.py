"""Names of settings: those that are written, and those of earlier versions and other tools that are read."""

from pathlib import Path
from typing import Any

import gradio
import pytest
import yaml

from plumbline.checkpoints import identity
from plumbline.cli import main, settings
from plumbline.config import schema
from plumbline.errors import RecipeError
from plumbline_studio import forms
from tests.core.config.test_settings import another, flag, value_of

OTHERS = [(setting, key) for setting in schema.settings() for key in setting.other_keys]
IDS = [key for _, key in OTHERS]
# What commit 98131f9 wrote, and what other tools call the same.
NAMES = {
    "quantisation.double": "quantisation.double_quant",
    "lora.init": "lora.init_lora_weights",
    "lora.plus_ratio": "lora.loraplus_lr_ratio",
    "training.schedule": "training.lr_scheduler_type",
    "training.min_rate_share": "training.min_lr_ratio",
    "training.warmup_share": "training.warmup_ratio",
    "training.global_batch_size": "training.effective_batch",
    "training.best_at_end": "training.load_best_model_at_end",
    "training.early_stopping": "training.early_stopping_patience",
    "machines.hosts": "machines.num_machines",
    "machines.address": "machines.main_process_ip",
}


def raw(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {section: {name: value}}


def needed(setting: schema.Setting) -> dict[str, Any]:
    """What a recipe must say beside a setting."""
    several = {"main_process_ip": "10.0.0.7", "gpus": 1}
    return {"machines": several} if setting.key == "machines.num_machines" else {}


def with_needed(setting: schema.Setting, key: str) -> dict[str, Any]:
    made = raw(key, another(setting))
    for section, values in needed(setting).items():
        made[section] = values | made[section]
    return made


def test_every_other_name_has_its_setting() -> None:
    assert {key: setting.key for setting, key in OTHERS} == NAMES


@pytest.mark.parametrize(("setting", "key"), OTHERS, ids=IDS)
def test_another_name_is_read_and_the_settings_own_is_written(setting: schema.Setting, key: str) -> None:
    config = schema.validated(with_needed(setting, setting.key))
    assert value_of(config, setting) != value_of(schema.RunConfig(), setting)
    assert schema.loads(yaml.safe_dump(with_needed(setting, key))) == config
    written = schema.dumps(config)
    assert schema.loads(written) == config
    assert setting.name in yaml.safe_load(written)[setting.section]
    assert key.partition(".")[2] not in yaml.safe_load(written)[setting.section]
    changes = {
        f"{section}.{name}": value for section, one in needed(setting).items() for name, value in one.items()
    }
    changed = schema.changed(schema.RunConfig(), changes | {key: another(setting)})
    assert changed == config
    given = [flag(known, value_of(config, known)) for known in schema.settings() if known.key in changes]
    given.append(flag(setting, value_of(config, setting)).replace(setting.key, key, 1))
    assert settings.recipe(main.build("plumbline").parse_args(["train", "default", *given])) == config


@pytest.mark.parametrize(("setting", "key"), OTHERS, ids=IDS)
def test_two_names_with_two_values_are_refused_and_both_named(setting: schema.Setting, key: str) -> None:
    default, name = value_of(schema.RunConfig(), setting), key.partition(".")[2]
    both = raw(setting.key, another(setting))
    both[setting.section][name] = another(setting)
    for known, values in needed(setting).items():
        both[known] |= values
    schema.validated(both)  # they agree
    both[setting.section][name] = default
    with pytest.raises(RecipeError) as caught:
        schema.validated(both)
    assert f"{setting.key} is " in caught.value.text
    assert f"under its other name {name}; give one of the two" in caught.value.text
    with pytest.raises(RecipeError) as caught:
        schema.changed(schema.RunConfig(), {setting.key: another(setting), key: default})
    assert list(caught.value.problems) == [setting.key] and f"its other name {key};" in caught.value.text


def test_the_method_of_answers_is_called_sft() -> None:
    config = schema.loads("method: {name: supervised}")
    assert config == schema.loads("method: {name: sft}") and "name: sft" in schema.dumps(config)
    assert schema.changed(config, {"method.name": "supervised"}) == config
    with pytest.raises(RecipeError, match="method.name must be one of 'sft', 'pretraining'"):
        schema.loads("method: {name: supervise}")


def test_help_shows_the_names_that_are_written(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main.main(["train", "--help"], lambda *_: None)
    printed = capsys.readouterr().out
    for setting, key in OTHERS:
        assert f"--{setting.key} " in printed and f"--{key} " not in printed


def test_a_draft_that_a_browser_kept_of_the_version_before_fills_the_form(samples: Path) -> None:
    with gradio.Blocks():
        form = forms.build(True, schema.RunConfig()) | forms.build(False, schema.RunConfig())
    draft = {"training.warmup_share": 0.2, "method.name": "supervised", "training.early_stopping": "3"}
    fit, others = forms.taken_back(draft, form)
    assert others == []
    assert fit == {
        "training.warmup_ratio": 0.2,
        "method.name": "sft",
        "training.early_stopping_patience": "3",
    }


def test_a_checkpoint_with_the_names_of_the_version_before_is_of_the_same_run() -> None:
    config = schema.loads("training: {warmup_ratio: 0.2}\nlora: {init_lora_weights: pissa}")
    now = {"settings": identity.counted(config)}
    names = {new: old for old, new in NAMES.items()}
    was = {names.get(key, key): value for key, value in now["settings"].items()}
    was["method.name"] = "supervised"
    assert "training.warmup_share" in was
    identical = {"data": {}, "base": {}, "tokenizer": {}}
    assert identity.differences({"settings": was}, now | identical) == []
    was["lora.init"] = "olora"
    (difference,) = identity.differences({"settings": was}, now | identical)
    assert difference == "lora.init_lora_weights was olora, is pissa"
