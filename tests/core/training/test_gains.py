"""What a run gained, told truly: its rates, the base's own figure, and that nothing was learned."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline import api
from plumbline.checkpoints import base_digest, summary
from plumbline.cli import main
from plumbline.config import schema
from plumbline.config.steps import intervals
from plumbline.home import run_folder
from plumbline.models import adapters, load
from plumbline.planner import overview
from plumbline.store import datasets, runs
from plumbline.training.optimizers import schedule, warmup
from plumbline_studio import plots
from plumbline_studio.tabs.runs import tab
from tests import tiny
from tests.runs import add, do, recipe


@pytest.mark.parametrize("least", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_a_schedule_rises_from_0_has_the_whole_rate_and_wastes_no_step(
    steps: int, kind: str, least: float
) -> None:
    for given in ({"warmup_ratio": 0.03}, {"warmup_ratio": 0.99}, {"warmup_steps": 0}, {"warmup_steps": 500}):
        config = recipe(training={"lr_scheduler_type": kind, "min_lr_ratio": least} | given)
        share, rising = schedule(config, steps), warmup(config, steps)
        rates = [share(taken) for taken in range(steps)]
        assert rising <= steps and max(rates) == pytest.approx(1.0) and min(rates) > 0
        # In equal parts from 0, whatever the schedule falls to after.
        assert rates[:rising] == pytest.approx([(taken + 1) / rising for taken in range(rising)])
        assert rates[rising:] == sorted(rates[rising:], reverse=True)
        assert share(steps) == pytest.approx(1.0 if kind == "constant" or rising == steps else least)


@pytest.mark.parametrize("name", schema.preset_names())
def test_a_run_is_evaluated_at_least_five_times_where_it_has_the_steps(name: str) -> None:
    for steps in (5, 9, 19, 48, 1000):
        every, _ = intervals(schema.preset(name), steps)
        assert steps // every >= 5
    given = recipe(training={"eval_steps": 40})
    assert intervals(given, 50)[0] == 40


def test_the_lowest_point_is_no_star_where_it_is_before_training() -> None:
    losses = [0.69, 0.7, 0.8]
    points = [
        {"step": step, "loss": None, "eval_loss": loss, "sources": {}} for step, loss in enumerate(losses)
    ]
    mark = plots.loss(points, 0).data[-1]
    assert (mark.x[0], mark.text[0], mark.marker.symbol) == (0, "lowest: before training", "circle-open")
    assert plots.loss(points, 1).data[-1].marker.symbol == "star"
    (told,) = summary.verdicts({"steps": 2, "best_step": 0, "best_eval_loss": 0.69, "eval_loss": 0.8})
    assert told == "nothing was gained: the held-out loss was lowest before training (0.69, now 0.8)"


def tiny_base(folder: Path) -> dict[str, Any]:
    return {"model": {"base": tiny.saved(folder / "base", num_key_value_heads=4)}}


def small(folder: Path, **sections: Any) -> Any:
    """A recipe on a tiny llama."""
    given = {"lora": {"r": 4, "alpha": 8}, "data": {"max_rows": 16}, "evaluation": {"max_rows": 4}}
    training = {"max_steps": 2, "eval_steps": 1, "effective_batch": 8, "max_length": 128}
    for name, values in sections.items():
        given[name] = given.get(name, {}) | values
    given["training"] = training | sections.get("training", {})
    return recipe(**(tiny_base(folder) if "model" not in given else {}), **given)


def test_one_step_learns_at_the_whole_rate_and_few_steps_are_told_before_start(
    samples: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"What is {n} plus one?", "completion": str(n + 1)} for n in range(10)]
    file = tmp_path / "ten-rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = api.add_data(file)
    data = {"dataset": datasets.get(dataset)["name"], "max_rows": None}
    config = small(tmp_path, data=data, training={"max_steps": None, "epochs": 1, "effective_batch": 16})
    warned = [check.text for check in overview.outlook(config).checks if check.level == "warning"]
    assert any("1 optimizer step learns next to nothing" in text for text in warned)
    run_id = runs.add(config, dataset)
    assert do("train", run_id)["error"] is None
    (rate,) = [p["learning_rate"] for p in runs.metrics(run_id) if p["learning_rate"] is not None]
    assert rate == pytest.approx(config.training.learning_rate)
    summary = json.loads(runs.get(run_id)["summary"])
    assert summary["steps"] == 1 and summary["learned_nothing"] is False


def test_a_grpo_run_whose_answers_never_pass_says_that_nothing_was_learned(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "never.jsonl"
    rows = [{"prompt": name, "completion": "qqq zzz qqq zzz"} for name in "abcdef"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = api.add_data(file)
    config = small(
        tmp_path,
        data={"dataset": datasets.get(dataset)["name"], "max_rows": None},
        method={"name": "grpo", "answers": 2},
        training={"effective_batch": 2, "weight_decay": 0.1},
        evaluation={"max_new_tokens": 3},
    )
    before = [check.text for check in overview.outlook(config).checks if check.level == "warning"]
    assert any("rows have answers of more than 3 tokens: no answer that is tried" in text for text in before)
    run_id = runs.add(config, dataset)
    assert do("train", run_id)["error"] is None
    warned = [event["text"] for event in runs.events(run_id) if event["level"] == "warning"]
    assert any("none of the" in text and "pass the check before training" in text for text in warned)
    said = "nothing was learned: the adapter is what it began as"
    assert any(text.startswith(said) for text in warned)
    assert said in tab._head(run_id)
    assert main.main(["show", str(run_id)], lambda *_: None) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    card = (run_folder(run_id) / "artifact" / "README.md").read_text(encoding="utf-8")
    assert said.capitalize() in card and "perplexity" not in card


def test_the_figure_of_the_base_is_the_bases_however_an_adapter_begins(samples: Path, tmp_path: Path) -> None:
    found, began = {}, {}
    for init in ("default", "loftq", "pissa", "olora", "eva"):
        config = small(
            tmp_path, lora={"init_lora_weights": init}, training={"max_steps": 1, "learning_rate": 1e-5}
        )
        run_id = add(config)
        assert do("train", run_id)["error"] is None
        found[init], began[init] = runs.get(run_id)["base_eval_loss"], runs.metrics(run_id)[0]["eval_loss"]
    assert len(set(found.values())) == 1, found
    assert began["default"] == found["default"] and abs(began["loftq"] - found["loftq"]) > 1e-3


def test_experts_with_adapters_of_their_own_leave_the_base_as_it_was(samples: Path, tmp_path: Path) -> None:
    base = tiny.saved(tmp_path / "base", "qwen3_next")
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config = small(tmp_path, model={"base": base}, lora={"r": 1, "target_modules": projections})
    run_id = add(config)
    assert do("train", run_id)["error"] is None
    folder = run_folder(run_id) / "artifact"
    opened = adapters.opened(load.base_model(config), folder)
    assert any("experts" in name and "lora_A" in name for name, _ in opened.named_parameters())


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_of_a_row_are_no_change_of_the_base(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 16}
    changes = {"max_position_embeddings": 16 if kind == "dynamic" else 64, "rope_parameters": rope}
    model = tiny.base("llama", **changes)
    before = base_digest.base_digest(model)
    frequencies = model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 43)[None], use_cache=False)
    assert not torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert base_digest.base_digest(model) == before
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert base_digest.base_digest(model) != before
