"""Evaluation: token-weighted loss, honest intervals, base and adapter on the same rows."""

import math
import random

import pytest

from core.data.xray import IGNORED, prompt_ids
from core.evaluation import compare
from core.evaluation.generate import Task, answers, task_of
from core.evaluation.loss import held_out_loss
from core.evaluation.score import exact_match, paired_difference, token_f1
from core.models import load
from core.store import evaluations, runs
from core.training.prepare import prepare
from tests.runs import do, recipe
from tests.unit.conftest import Finished


def test_held_out_loss_weighs_every_supervised_token_alike(finished: Finished) -> None:
    import torch

    config = recipe()
    model = load.base_model(config).eval()
    rows = prepare(config).held_out
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1].float()
        targets = torch.tensor(row.labels[1:])
        keep = targets != IGNORED
        total += torch.nn.functional.cross_entropy(logits[keep], targets[keep], reduction="sum").item()
        count += int(keep.sum())
    pad = load.tokenizer("starter").pad_token_id
    for batch in (1, 3, 8):
        measured = held_out_loss(model, rows, pad, batch)
        assert measured.tokens == count
        # bfloat16 products differ a little with the batch's shape
        assert measured.loss == pytest.approx(total / count, rel=2e-3)
    assert measured.perplexity == pytest.approx(math.exp(measured.loss))


def test_an_evaluation_may_be_stopped_between_batches(finished: Finished) -> None:
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        raise Stop

    model = load.base_model(recipe())
    with pytest.raises(Stop):
        held_out_loss(model, prepare(recipe()).held_out, 0, 4, stop)
    assert model.training is False


def test_base_and_adapter_are_compared_on_the_same_rows(finished: Finished) -> None:
    job = do("evaluate", finished.run_id)
    assert job["error"] is None
    found = evaluations.latest(finished.run_id)
    result, run = found["result"], runs.get(finished.run_id)
    assert found["rows"] == result["rows"] == 8
    # Training measures in its packs, this the model as it is used: they are apart by bfloat16's rounding.
    assert result["base"]["loss"] == pytest.approx(run["base_eval_loss"], rel=2e-2)
    assert result["adapter"]["loss"] == pytest.approx(run["eval_loss"], rel=2e-2)
    answers = evaluations.answers(found["id"])
    assert len(answers) == 8
    assert result["adapter"]["exact_match"] == sum(row["adapter_score"] for row in answers) / 8
    assert any(row["base_answer"] != row["adapter_answer"] for row in answers)


def test_a_run_without_an_adapter_is_not_evaluated(samples: object) -> None:
    from tests.runs import add

    job = do("evaluate", add(recipe()))
    assert job["state"] == "failed" and "has no adapter yet" in job["error"]


def test_scores() -> None:
    assert exact_match(" Ruby lives in Seoul [2].\n", "Ruby lives in Seoul [2].") == 1
    assert exact_match("Ruby lives in Seoul [1].", "Ruby lives in Seoul [2].") == 0
    assert token_f1("Ruby lives in Seoul [1].", "ruby lives in Seoul [2]") == pytest.approx(0.8)
    assert token_f1("", "x") == 0 and token_f1("", "") == 1


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = random.Random(0)
    hits = 0
    for seed in range(200):
        base = [float(rng.random() < 0.3) for _ in range(100)]
        adapter = [float(rng.random() < 0.5) for _ in range(100)]
        interval = paired_difference(base, adapter, seed)
        hits += interval.low <= 0.2 <= interval.high
    assert 0.90 <= hits / 200 <= 0.985


def test_the_sentence_says_when_nothing_can_be_told() -> None:
    side = {"perplexity": 2.0, "loss": 0.7, "tokens": 10}
    result = {"base": side, "adapter": side, "difference": {"mean": 0.02, "low": -0.05, "high": 0.09}}
    assert "cannot be told apart" in compare.sentence(result)
    result["difference"] = {"mean": -0.41, "low": -0.46, "high": -0.36}
    assert "The adapter answers 41 points fewer rows exactly (36 to 46)." in compare.sentence(result)


def test_an_answer_that_the_limit_ended_is_marked(finished: Finished) -> None:
    tokenizer = load.tokenizer("starter")
    model = load.base_model(recipe())
    prompts = [prompt_ids([{"role": "user", "content": "Hello!"}], tokenizer)]
    (whole,) = answers(model, tokenizer, prompts, 200, 1)
    (short,) = answers(model, tokenizer, prompts, 2, 1)
    assert not whole.cut and short.cut and whole.text.startswith(short.text)


def test_a_bases_own_generation_settings_do_not_change_what_is_measured(finished: Finished) -> None:
    """Published bases bring a penalty on repetition: the greedy answer is the likeliest one all the same."""
    tokenizer = load.tokenizer("starter")
    model = load.base_model(recipe())
    prompts = [prompt_ids([{"role": "user", "content": "Count: one one one one"}], tokenizer)]
    plain = answers(model, tokenizer, prompts, 40, 1)
    model.generation_config.repetition_penalty = 2.5
    assert answers(model, tokenizer, prompts, 40, 1) == plain
    assert model.generation_config.repetition_penalty == 2.5


def test_the_tools_of_a_row_are_part_of_its_prompt() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}]
    turns = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]},
        {"role": "tool", "content": "20"},
        {"role": "assistant", "content": "Yes."},
    ]
    task = task_of({"messages": turns, "tools": tools})
    assert task == Task(turns[:3], "Yes.", tools)
    assert task_of({"messages": turns[:2], "tools": tools}) == Task(turns[:1], "", tools)
    assert task_of({"text": "No answer."}) is None
