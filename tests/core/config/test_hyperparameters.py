"""Bad hyperparameters: form, recipe file, flag and API give the same verdict, and name the setting."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline import api
from plumbline.config import schema
from plumbline.errors import RecipeError, StudioError
from plumbline.models import load
from plumbline.planner import overview, plan
from plumbline.planner.overview import Outlook
from plumbline.store import runs
from plumbline_studio import forms
from plumbline_studio.tabs.train import before_start
from tests.runs import add, do, recipe

NAN, INF = float("nan"), float("inf")
LR, TRAINING, LORA = "training.learning_rate", "training", "lora"
REFUSED: list[tuple[str, str, Any]] = [
    *(("D41", "training.learning_rate", value) for value in (NAN, INF, -INF, -1, 0, "abc", 10, "")),
    *(("D42", "training.effective_batch", value) for value in (0, -1, 2.5, 4097, NAN)),
    *(("D42", "training.micro_batch_tokens", value) for value in (0, -2, 100.5)),
    *(("D43", "training.epochs", value) for value in (0, NAN, -1, 1e9)),
    *(("D43", "training.max_steps", value) for value in (0, -5, 1.5)),
    *(("D43", "training.warmup_steps", value) for value in (-1, 0.5)),
    *(("D43", "training.warmup_ratio", value) for value in (-0.1, 1, NAN)),
    *(("D44", "training.weight_decay", value) for value in (NAN, -0.1, 2)),
    *(("D44", "training.max_grad_norm", value) for value in (NAN, 0, -1)),
    *(("D44", "training.adam_beta1", value) for value in (1.5, 1, -0.1, NAN)),
    *(("D44", "training.adam_beta2", value) for value in (1.5, 1, -0.1)),
    *(("D44", "training.adam_epsilon", value) for value in (0, -1e-8, NAN)),
    *(("D44", "training.label_smoothing", value) for value in (1, -0.1, NAN)),
    *(("D44", "training.neftune_alpha", value) for value in (-1, NAN)),
    *(("D45", "lora.r", value) for value in (0, -1, 2.5, 10_000, NAN)),
    *(("D45", "lora.alpha", value) for value in (NAN, 0, -4)),
    *(("D45", "lora.dropout", value) for value in (-0.1, 1.0, NAN)),
    *(("D45", "lora.loraplus_lr_ratio", value) for value in (0.5, -1, NAN)),
    *(
        ("D45", "lora.init_lora_weights", value)
        for value in ("pisa", "pissa_niter_x", "pissa_niter_-1", True)
    ),
    *(("D45", "lora.layers", value) for value in ("3-1", "all", "-1", "0-999999999")),
    *(("D46", "lora.target_modules", value) for value in (["(a+)+$"], [], ["q_proj", ".*"], [1])),
    *(("D46", "lora.modules_to_save", value) for value in (["(a+)+$"], ["q_proj"])),
    *(("D47", "training.max_length", value) for value in (0, -1, 7, 2**40, 32.5)),
    *(("D48", "data.held_out_share", value) for value in (0, 1.0, 1.5, NAN)),
    *(("D50", "training.seed", value) for value in (-1, 2**70, 0.5)),
    *(("D50", "training.save_steps", value) for value in (0, -1)),
    *(("D50", "training.eval_steps", value) for value in (0, -1)),
    *(("D50", "training.keep_checkpoints", value) for value in (0, -3)),
    *(("D50", "training.logging_steps", value) for value in (0, -1)),
    *(("D50", "training.early_stopping_patience", value) for value in (0, -1)),
    *(("D50", "training.min_improvement", value) for value in (1, -0.1)),
    *(("D50", "training.optimizer", value) for value in ("adam", "")),
    *(("D50", "training.lr_scheduler_type", value) for value in ("polynomial", 3)),
]


@pytest.mark.parametrize(
    ("id_", "key", "value"), REFUSED, ids=[f"{id_} {key} {value}" for id_, key, value in REFUSED]
)
def test_a_value_that_makes_no_sense_is_refused_by_every_way_in(
    tmp_path: Path, id_: str, key: str, value: Any
) -> None:
    section, _, name = key.partition(".")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({section: {name: value}}))
    keys = [setting.key for setting in schema.settings()]
    shown = dict(zip(keys, forms.values(schema.RunConfig(), keys), strict=True)) | {key: value}
    ways: dict[str, Any] = {
        "API": lambda: schema.validated({section: {name: value}}),
        "form": lambda: schema.validated(forms.raw(keys, list(shown.values()))),
        "file": lambda: schema.read_recipe(file),
    }
    if value not in ("", []):  # an empty flag means the default
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        ways["flag"] = lambda: schema.changed(schema.RunConfig(), {key: text})
    if value == [1]:
        del ways["flag"]  # there it is the name "1"
    for way, enter in ways.items():
        with pytest.raises(RecipeError) as caught:
            enter()
        assert list(caught.value.problems) == [key], way
        assert len(caught.value.text) <= 400


@pytest.mark.parametrize(("key", "value"), [(LR, "1e-4"), ("lora.r", "8"), ("training.max_steps", "5")])
def test_d41_d45_a_number_that_is_written_as_text_is_that_number(key: str, value: str) -> None:
    section, _, name = key.partition(".")
    config = schema.validated({section: {name: value}})
    assert getattr(getattr(config, section), name) == float(value)


def notes(config: schema.RunConfig) -> list[str]:
    """What the panel before Start marks as worth a look."""
    found = overview.outlook(config)
    assert not found.blocked
    shown = [check.text for check in found.checks if check.level == "warning"]
    assert all(text.split("'")[0] in before_start.inside(found) for text in shown)
    return shown


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        pytest.param({TRAINING: {"learning_rate": 0.02}}, "learning rate of 0.02 is high", id="D41"),
        pytest.param({TRAINING: {"warmup_steps": 9}}, "warmup of 9 steps does not end", id="D43"),
        pytest.param({LORA: {"target_modules": ["q_proj", "lm_head"]}}, "share their weights", id="D46 head"),
        pytest.param({LORA: {"modules_to_save": ["embed_tokens"]}}, "share their weights", id="D46 whole"),
        pytest.param({LORA: {"bias": "all"}}, "there are no such biases", id="D46 bias"),
    ],
)
def test_what_is_allowed_but_seldom_meant_is_noted_before_start(
    samples: Path, sections: dict[str, Any], said: str
) -> None:
    before = notes(recipe())
    (new,) = [text for text in notes(recipe(**sections)) if text not in before]
    assert said in new


MISFITS = [
    pytest.param({LORA: {"r": 65}}, "lora.r", "self_attn.k_proj (320 x 64), got 65", id="D45"),
    pytest.param({LORA: {"layers": "6-8"}}, "lora.layers", "has layers 0 to 7, got 8", id="D45 layers"),
    pytest.param(
        {LORA: {"target_modules": ["q_proj", "query", "key"]}},
        "lora.target_modules",
        "query, key matches no linear layer of starter: it has down_proj, gate_proj",
        id="D46",
    ),
    pytest.param(
        {LORA: {"modules_to_save": ["wte"]}},
        "lora.modules_to_save",
        "wte is no module of starter: it has down_proj, embed_tokens",
        id="D46 whole",
    ),
    pytest.param(
        {LORA: {"target_modules": ["q_proj"], "modules_to_save": ["up_proj"]}},
        "lora.modules_to_save",
        "is held in nf4 and cannot be trained itself",
        id="D46 quantised",
    ),
    pytest.param(
        {TRAINING: {"max_length": 1025}}, "training.max_length", "16 to 1,024 for starter", id="D47"
    ),
]


@pytest.mark.parametrize(("sections", "field", "said"), MISFITS)
def test_what_the_base_cannot_have_is_refused_before_start_and_by_the_run(
    samples: Path, sections: dict[str, Any], field: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(**sections)
    before = len(runs.listed())
    for refuse in (overview.outlook, api.add):
        with pytest.raises(RecipeError) as caught:
            refuse(config)
        assert list(caught.value.problems) == [field] and said in caught.value.problems[field]
    assert len(runs.listed()) == before, "nothing is stored"
    # A run that was stored otherwise meets the same words, once the base is there.
    job = do("train", add(config))
    assert job["state"] == "failed" and said in job["error"]


@pytest.mark.parametrize(
    ("lora", "quantisation", "said"),
    [
        ({"init_lora_weights": "loftq"}, {"method": "none"}, "there is none"),
        ({"init_lora_weights": "loftq", "use_dora": True}, {}, "does not go with DoRA"),
        ({"init_lora_weights": "orthogonal", "r": 5}, {}, "even rank, lora.r is 5"),
        ({"use_dora": True}, {"method": "int8"}, "does not go with int8"),
        ({"modules_to_save": ["norm", "q_proj"]}, {}, "has q_proj, which gets an adapter already"),
    ],
)
def test_a_variant_that_cannot_be_says_why(lora: Any, quantisation: Any, said: str) -> None:
    (problem,) = schema.problems({"lora": lora, "quantisation": quantisation}).values()
    assert said in problem


def test_d48_held_out_rows_never_take_all(workspace: Path, tmp_path: Path) -> None:
    from plumbline.data.importing.importer import add as add_file
    from plumbline.data.readers.source_files import Source

    verdicts = {}
    for count in (1, 2, 3):
        file = tmp_path / f"rows{count}.jsonl"
        file.write_text('{"prompt": "Where?", "completion": "There."}\n' * count)
        add_file([Source(file, file.name)])
        config = recipe(data={"dataset": f"rows{count}", "held_out_share": 0.5, "max_rows": None})
        try:
            verdicts[count] = overview.outlook(config).figures[0][1]
        except StudioError as error:
            verdicts[count] = error.text
    assert verdicts[1].startswith("data.held_out_share: would take all")
    assert verdicts[2] == "1 train + 1 held out"
    assert verdicts[3] == "1 train + 2 held out"


def test_d49_what_cannot_fit_is_said_with_its_figures_before_start(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "free_bytes", lambda: 40.0 * 1024**2)
    found: Outlook = overview.outlook(recipe(training={"max_length": 1024}))
    assert found.blocked
    (said,) = [check.text for check in found.checks if check.level == "bad"]
    assert "GiB is the least for these settings" in said and "GiB can be used" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: {r: 8}\nlora: {r: 4}", "mine.yaml line 2: gives 'lora' a second time"),
        ('{"training": {"seed": 1,\n"seed": 2}}', "mine.yaml line 2: gives 'seed' a second time"),
        ("training: {learning_rat: 1}", "training.learning_rat is not a known setting, did you mean"),
        ("learning_rate: 1", "did you mean training.learning_rate?"),
        (
            "lora: {rank: 8, lora_alpha: 3}",
            "lora.lora_alpha is not a known setting, did you mean lora.alpha?",
        ),
        ("loras: {}", "loras is not a known setting, did you mean lora?"),
        ("a: &x [1]\nb: *x", "line 2: holds an alias"),
        ("a: " + "[" * 5000, "is nested deeper than 32"),
        ("seed: " + "9" * 5000, "is not valid YAML"),
        ("when: 2024-99-99", "is not valid YAML"),
        ("[1, 2]", "must be a mapping of sections"),
        ("training: {seed: 1}\n" + "#" * 10_000_000, "is longer than 256 kB"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_d50_a_recipe_file_that_is_none_names_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(StudioError) as caught:
        schema.read_recipe(file)
    assert said in caught.value.text and len(caught.value.text) <= 400


def test_d50_all_unknown_settings_are_listed() -> None:
    raw = {"training": {"gradient_accumulation_steps": 4, "optim": "sgd"}, "extra": 1}
    found = schema.problems(raw)
    assert set(found) == {"training.gradient_accumulation_steps", "training.optim", "extra"}


def test_a_look_at_the_base_before_start_loads_no_weights(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "base_model", lambda config: pytest.fail("weights were loaded"))
    assert notes(recipe(lora={"init_lora_weights": "pissa", "use_dora": True})) == notes(recipe())
