"""Evaluate on a run that learned from judged answers: preference accuracy, margins, rewards."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from plumbline import api
from plumbline.evaluation import compare, preference, report
from plumbline.store import datasets, evaluations, runs
from tests import tiny
from tests.runs import do, recipe

ROWS = {
    "pairs": [
        {"prompt": f"Which? ({n})", "chosen": f"Kindly: {n}.", "rejected": f"Go away now, {n}."}
        for n in range(24)
    ],
    "verdicts": [
        {"prompt": f"Which? ({n})", "completion": answer, "label": good}
        for n in range(12)
        for answer, good in ((f"Kindly: {n}.", True), (f"Go away now, {n}.", False))
    ],
}


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_an_evaluation_shows_how_held_out_answers_are_judged(
    samples: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "verdicts" if method == "kto" else "pairs"
    file = tmp_path / f"{kind}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]), encoding="utf-8")
    dataset = api.add_data(file)
    config = recipe(
        model={"base": tiny.saved(tmp_path / "base", num_key_value_heads=4)},
        data={"dataset": datasets.get(dataset)["name"], "max_rows": None, "held_out_share": 0.3},
        method={"name": method},
        training={"max_steps": 4, "eval_steps": 4, "effective_batch": 8, "learning_rate": 1e-2},
        evaluation={"max_new_tokens": 2, "max_rows": 100},
    )
    run_id = runs.add(config, dataset)
    assert do("train", run_id)["error"] is None
    assert do("evaluate", run_id)["error"] is None
    result = evaluations.latest(run_id)["result"]  # type: ignore[index]
    found, last = result["preference"], runs.metrics(run_id)[-1]["rewards"]
    # The same held-out rows, judged by transformers here and in packs there.
    assert found["adapter"]["accuracy"] == pytest.approx(last["eval_rewards/accuracy"], abs=0.15)
    better, worse = found["adapter"]["chosen"], found["adapter"]["rejected"]
    assert found["adapter"]["margin"] == pytest.approx(better - worse, rel=1e-6)
    assert (found["base"] is None) == (method != "orpo")
    shown = {name: values for name, *values in report.figures(result)}
    assert shown["preference accuracy"][1].endswith("%") and "reward margin" in shown
    assert not any("perplexity" in name for name in shown)
    assert "perplexity" not in compare.sentence(result).lower()
    assert f"of {found['rows']} held-out {kind}" in report.notes(result)[0]
    if method != "orpo":
        first = runs.metrics(run_id)[0]["rewards"]["eval_rewards/accuracy"]
        assert first == 0.5, "nothing is preferred before the first step"
        assert shown["preference accuracy"][0] == "-"


def test_a_tie_counts_half() -> None:
    for margins in (numpy.array([0.0, 0.0, 1.0, -1.0]), torch.tensor([0.0, 0.0])):
        assert float(preference.accuracy(margins)) == 0.5
