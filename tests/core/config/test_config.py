"""The schema: every problem at once, by field; recipes go out and come back the same."""

import pytest

from plumbline.config import schema
from plumbline.errors import RecipeError, StudioError
from plumbline_studio import forms


def test_every_setting_has_a_label_and_help() -> None:
    for setting in schema.settings():
        assert setting.info.title, setting.key
        assert setting.info.description and len(setting.info.description) > 15, setting.key


def test_all_problems_are_reported_at_once_and_by_field() -> None:
    found = schema.problems(
        {
            "training": {"learning_rate": "abc", "epochs": float("nan"), "max_steps": 2.5, "bogus": 1},
            "lora": {"r": 0, "dropout": 1.0},
            "quantisation": {"method": "nf5"},
            "nonsense": {},
        }
    )
    assert found["training.learning_rate"] == 'must be a number, got "abc"'
    assert found["training.epochs"].startswith("must be a finite number")
    assert found["training.max_steps"].startswith("must be a whole number")
    assert found["training.bogus"] == found["nonsense"] == "is not a known setting"
    assert found["lora.r"] == "must be at least 1, got 0"
    assert found["lora.dropout"].startswith("must be less than 1")
    assert "nf4" in found["quantisation.method"]


@pytest.mark.parametrize("value", [float("inf"), -1, 0, "1e5", None])
def test_a_learning_rate_that_makes_no_sense_is_refused(value: object) -> None:
    assert "training.learning_rate" in schema.problems({"training": {"learning_rate": value}})


def test_a_learning_rate_written_as_text_is_understood() -> None:
    assert schema.validated({"training": {"learning_rate": "1e-4"}}).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("micro_batch_tokens", 8, "must be at least 16, got 8"),
        ("micro_batch_tokens", "4k", 'must be a whole number, got "4k"'),
        ("micro_batch_tokens", 2_000_000, "must be at most 1,048,576, got 2000000"),
        ("gradient_checkpointing", "on", "must be one of 'auto', 'none', 'selective', 'full' or 'offload'"),
        ("optimizer", "adamw", "must be one of 'auto', 'adamw_torch', 'adamw_8bit' or 'paged_adamw_8bit'"),
        ("price_per_hour", "2,50", 'must be a number, got "2,50"'),
        ("price_per_hour", "$2.50", 'must be a number, got "$2.50"'),
        ("price_per_hour", -1, "must be at least 0, got -1"),
        ("effective_batch", 0, "must be at least 1, got 0"),
    ],
)
def test_a_value_that_a_hand_slipped_on_is_told_what_it_may_be(field: str, value: object, said: str) -> None:
    assert schema.problems({"training": {field: value}})[f"training.{field}"].startswith(said)


def test_any_effective_batch_will_do_whatever_is_computed_at_once() -> None:
    assert schema.problems({"training": {"effective_batch": 10, "micro_batch_tokens": 4096}}) == {}


@pytest.mark.parametrize(
    ("written", "meant"), [("true", "full"), ("false", "none"), ("no", "none"), ("none", "none")]
)
def test_a_recipe_of_an_earlier_version_is_understood(written: str, meant: str) -> None:
    text = f"training: {{effective_batch: 10, micro_batch: 4, gradient_checkpointing: {written}}}"
    training = schema.loads(text).training
    assert training.gradient_checkpointing == meant and training.effective_batch == 10
    assert training.micro_batch_tokens is None and "micro_batch:" not in schema.dumps(schema.loads(text))


def test_what_an_earlier_version_did_not_know_is_still_refused() -> None:
    assert schema.problems({"training": {"micro_batch": 4, "bogus": 1}}) == {
        "training.bogus": "is not a known setting"
    }
    assert "training" in schema.problems({"training": [4]})


@pytest.mark.parametrize("name", schema.preset_names())
def test_a_preset_survives_yaml_and_json(name: str) -> None:
    config = schema.preset(name)
    assert schema.loads(schema.dumps(config)) == config
    assert schema.loads(schema.dumps(config, "json")) == config


def test_the_default_preset_is_the_usual_qlora() -> None:
    config = schema.preset("default")
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.0)
    assert config.lora.target_modules == schema.PROJECTIONS
    assert (config.training.learning_rate, config.training.lr_scheduler_type) == (2e-4, "cosine")
    assert (config.training.warmup_ratio, config.training.effective_batch) == (0.03, 16)
    assert config.training.optimizer == config.training.gradient_checkpointing == "auto"
    assert config.training.micro_batch_tokens is None
    small = schema.preset("memory_efficient").training
    assert (small.gradient_checkpointing, small.optimizer) == ("offload", "paged_adamw_8bit")
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


def test_a_number_that_may_be_left_out_is_text_in_the_form_and_a_number_in_the_recipe() -> None:
    """An empty number box of Gradio 6 turns into 0 as soon as its accordion opens."""
    keys = ["training.micro_batch_tokens", "training.price_per_hour", "data.max_rows"]
    assert forms.values(schema.preset("default"), keys) == ["", "", ""]
    config = schema.validated({"training": {"micro_batch_tokens": 1_048_576, "price_per_hour": 0.25}})
    assert forms.values(config, keys) == ["1048576", "0.25", ""]
    assert schema.validated(forms.raw(keys, forms.values(config, keys))) == config
    for setting in schema.settings():
        if setting.info.default is None and setting.key != "data.mapping":
            assert type(forms.component(setting, "")).__name__ == "Textbox", setting.key
