"""Every method learns on the GPU, and plain peft reads what it wrote: pytest -m gpu -s tests/gpu"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from plumbline import api
from plumbline.store import datasets, runs
from tests.gpu import learned
from tests.runs import do, recipe

pytestmark = pytest.mark.gpu
QUESTIONS = ("What is the plan?", "Where is it?", "Who said so?", "When was that?", "Why not?", "How many?")
SHORT = {"max_steps": 12, "effective_batch": 4, "eval_steps": 6, "save_steps": 6, "learning_rate": 3e-3}
TEXT = "The road goes ever on and on, down from the door where it began. " * 12


def _add(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return datasets.get(api.add_data(path))["name"]


def _run(dataset: str, method: dict[str, Any], **sections: Any) -> int:
    config = recipe(
        data={"dataset": dataset, "max_rows": None}, method=method, **({"training": SHORT} | sections)
    )
    return runs.add(config, datasets.by_name(dataset)["id"])


def _answers() -> list[tuple[str, str, str]]:
    """Questions with a better answer, short and polite, and a worse one."""
    return [
        (f"{question} ({number})", f"Kindly: {number}.", f"No idea about {number}, go away now.")
        for number in range(8)
        for question in QUESTIONS
    ]


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_the_better_answers_win(samples: Path, tmp_path: Path, trained: list[Any], method: str) -> None:
    rows = [{"prompt": asked, "chosen": good, "rejected": bad} for asked, good, bad in _answers()]
    run_id = _run(_add(tmp_path, rows), {"name": method})
    assert do("train", run_id)["error"] is None
    losses, accuracy = learned.losses(run_id), learned.history(run_id, "eval_rewards/accuracy")
    near = learned.refuse_other_logits(run_id, trained)
    print(
        f"\n{method} ({learned.path(run_id)}): {losses[0]:.3f} -> {losses[-1]:.3f}, {accuracy[-1]=}; {near}"
    )
    assert losses[-1] < 0.8 * losses[0] and accuracy[-1] >= 0.9
    if method == "dpo":
        # The first step is computed as the reference was: nothing is preferred yet.
        assert losses[0] == pytest.approx(math.log(2), abs=0.02)


def test_good_answers_are_rewarded_and_bad_ones_not(
    samples: Path, tmp_path: Path, trained: list[Any]
) -> None:
    rows = [
        {"prompt": asked, "completion": answer, "label": label}
        for asked, good, bad in _answers()[:24]
        for answer, label in ((good, True), (bad, False))
    ]
    run_id = _run(_add(tmp_path, rows), {"name": "kto"})
    assert do("train", run_id)["error"] is None
    losses, accuracy = learned.losses(run_id), learned.history(run_id, "eval_rewards/accuracy")
    near = learned.refuse_other_logits(run_id, trained)
    print(f"\nkto ({learned.path(run_id)}): {losses[0]:.3f} -> {losses[-1]:.3f}, {accuracy[-1]=}; {near}")
    assert losses[0] == pytest.approx(0.5, abs=0.02) and losses[-1] < 0.4 and accuracy[-1] >= 0.9


def test_what_passes_the_check_becomes_likelier(samples: Path, tmp_path: Path, trained: list[Any]) -> None:
    rows = [{"prompt": f"Say it. ({number})", "completion": "yes"} for number in range(24)]
    run_id = _run(
        _add(tmp_path, rows),
        {"name": "grpo", "check": "regex", "pattern": "[aeiou]$", "answers": 8},
        training={"effective_batch": 4, "learning_rate": 3e-3, "max_steps": 14, "eval_steps": 7},
        evaluation={"max_new_tokens": 4, "max_rows": 4},
    )
    assert do("train", run_id)["error"] is None
    rewards, held_out = learned.history(run_id, "reward"), learned.history(run_id, "eval_reward")
    near = learned.refuse_other_logits(run_id, trained)
    told = [round(reward, 2) for reward in rewards]
    print(f"\ngrpo ({learned.path(run_id)}): reward {told}, held out {held_out}; {near}")
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.5


def test_pretraining_learns_every_window(samples: Path, tmp_path: Path, trained: list[Any]) -> None:
    name = _add(tmp_path, [{"text": f"{number}. {TEXT}"} for number in range(12)])
    run_id = _run(name, {"name": "pretraining"}, training=SHORT | {"max_length": 64})
    assert do("train", run_id)["error"] is None
    losses = learned.losses(run_id)
    near = learned.refuse_other_logits(run_id, trained)
    print(f"\npretraining ({learned.path(run_id)}): {losses[0]:.3f} -> {losses[-1]:.3f}; {near}")
    assert losses[-1] < 0.6 * losses[0]
