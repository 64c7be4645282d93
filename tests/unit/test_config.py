"""The schema: every problem at once, by field; recipes go out and come back the same."""

import pytest

from core import config as schema
from core.errors import RecipeError, StudioError
from studio import forms


def test_every_setting_has_a_label_and_help() -> None:
    for setting in schema.settings():
        assert setting.info.title, setting.key
        assert setting.info.description and len(setting.info.description) > 15, setting.key


def test_all_problems_are_reported_at_once_and_by_field() -> None:
    found = schema.problems(
        {
            "training": {"learning_rate": "abc", "epochs": float("nan"), "micro_batch": 2.5, "bogus": 1},
            "lora": {"r": 0, "dropout": 1.0},
            "quantisation": {"method": "nf5"},
            "nonsense": {},
        }
    )
    assert found["training.learning_rate"] == 'must be a number, got "abc"'
    assert found["training.epochs"].startswith("must be a finite number")
    assert found["training.micro_batch"].startswith("must be a whole number")
    assert found["training.bogus"] == found["nonsense"] == "is not a known setting"
    assert found["lora.r"] == "must be at least 1, got 0"
    assert found["lora.dropout"].startswith("must be less than 1")
    assert "nf4" in found["quantisation.method"]


@pytest.mark.parametrize("value", [float("inf"), -1, 0, "1e5", None])
def test_a_learning_rate_that_makes_no_sense_is_refused(value: object) -> None:
    assert "training.learning_rate" in schema.problems({"training": {"learning_rate": value}})


def test_a_learning_rate_written_as_text_is_understood() -> None:
    assert schema.validated({"training": {"learning_rate": "1e-4"}}).training.learning_rate == 1e-4


def test_an_effective_batch_that_micro_batches_cannot_fill_is_refused() -> None:
    found = schema.problems({"training": {"effective_batch": 10, "micro_batch": 4}})
    assert "multiple of training.micro_batch (4)" in found["training.effective_batch"]


def test_accumulation_fills_the_effective_batch() -> None:
    config = schema.validated({"training": {"effective_batch": 12, "micro_batch": 4}})
    assert config.accumulation == 3
    assert schema.validated({"training": {"effective_batch": 2, "micro_batch": 8}}).accumulation == 1


@pytest.mark.parametrize("name", schema.preset_names())
def test_a_preset_survives_yaml_and_json(name: str) -> None:
    config = schema.preset(name)
    assert schema.loads(schema.dumps(config)) == config
    assert schema.loads(schema.dumps(config, "json")) == config


def test_the_default_preset_is_the_usual_qlora() -> None:
    config = schema.preset("default")
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.05)
    assert config.lora.target_modules == schema.PROJECTIONS
    assert (config.training.learning_rate, config.training.schedule) == (2e-4, "cosine")
    assert (config.training.warmup_share, config.training.effective_batch) == (0.03, 16)
    assert config.training.optimizer == "paged_adamw_8bit"
    assert schema.preset("high_capacity").lora.r == 64


def test_broken_yaml_names_its_line() -> None:
    with pytest.raises(StudioError, match="recipe line 2"):
        schema.loads("training:\n\tepochs: 1")


def test_a_recipe_error_lists_its_fields() -> None:
    with pytest.raises(RecipeError) as caught:
        schema.loads("lora: {r: 0}\ntraining: {epochs: -1}", "mine.yaml")
    assert set(caught.value.problems) == {"lora.r", "training.epochs"}
    assert caught.value.text.startswith("mine.yaml: ")


def test_the_form_shows_every_setting_once_and_gives_back_the_same_recipe() -> None:
    simple = {key for row in forms.SIMPLE_ROWS for key in row}
    assert simple == {setting.key for setting in schema.settings() if setting.simple}
    keys = [setting.key for setting in schema.settings()]
    for name in schema.preset_names():
        config = schema.preset(name)
        assert schema.validated(forms.raw(keys, forms.values(config, keys))) == config
