"""Runs that come from runs: branches, growing ranks, reproductions, end to end on the starter."""

from pathlib import Path

import pytest
import torch

from plumbline import api
from plumbline.checkpoints import inherit
from plumbline.config import schema
from plumbline.errors import RecipeError, StudioError
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.models import adapters, load
from plumbline.runs import lineage
from plumbline.runs import start as jobs_start
from plumbline.store import datasets, runs
from plumbline.worker.worker import work_on
from tests.finished import Finished
from tests.runs import add, do, recipe

SHORT = {"max_steps": 6, "eval_steps": 3, "save_steps": 3}


def _losses(run_id: int) -> list[float]:
    return [point["loss"] for point in runs.metrics(run_id) if point["loss"] is not None]


def test_a_branch_goes_on_from_a_step_with_other_settings(samples: Path) -> None:
    parent = add(recipe(training=SHORT))
    assert do("train", parent)["error"] is None
    assert inherit.steps(parent) == [3, 6]
    child = lineage.branch(parent, 3, {"training.learning_rate": "1e-4", "training.max_steps": 2}).store()
    row = runs.get(child)
    assert (row["parent"], row["parent_step"], row["relation"]) == (parent, 3, "branch")
    assert runs.recipe(child).training.learning_rate == 1e-4
    assert do("train", child)["error"] is None
    at_step_3 = next(p["eval_loss"] for p in runs.metrics(parent) if p["step"] == 3)
    begins = runs.metrics(child)[0]["eval_loss"]
    print(f"\nparent at step 3: {at_step_3:.4f}, branch at step 0: {begins:.4f}, ends {_losses(child)}")
    assert begins == pytest.approx(at_step_3, rel=2e-3)
    assert any(f"run {parent}, step 3" in event["text"] for event in runs.events(child))


def test_a_branch_that_cannot_be_is_refused(finished: Finished) -> None:
    count = len(runs.listed())
    with pytest.raises(StudioError, match=r"Kept are: 10, 20"):
        lineage.branch(finished.run_id, 7)
    with pytest.raises(StudioError, match=r"lora.r: cannot become smaller"):
        lineage.branch(finished.run_id, 10, {"lora.r": 2, "lora.alpha": 4})
    with pytest.raises(StudioError, match=r"lora.target_modules: cannot change"):
        lineage.branch(finished.run_id, 10, {"lora.target_modules": "q_proj"})
    with pytest.raises(RecipeError) as caught:
        lineage.branch(finished.run_id, 10, {"training.learning_rat": 1})
    assert "training.learning_rate" in caught.value.problems["training.learning_rat"]
    queued = add(recipe())
    with pytest.raises(StudioError, match="has no checkpoint"):
        lineage.branch(queued)
    assert len(runs.listed()) == count + 1


def test_a_larger_adapter_computes_what_the_smaller_one_did(finished: Finished) -> None:
    child = lineage.branch(
        finished.run_id, 20, {"lora.r": 24, "lora.alpha": 20, "lora.use_rslora": True}
    ).store()
    config = runs.recipe(child)
    ids = torch.tensor([[1, 40, 41, 300, 500, 7]])
    grown = adapters.attach(load.base_model(config), config)
    told = inherit.inherit(grown, child)
    assert told == f"begins with the adapter of run {finished.run_id}, step 20"
    opened = adapters.opened(load.base_model(config), finished.folder / "artifact")
    with torch.no_grad():
        wanted, found = opened(ids).logits.float(), grown.eval()(ids).logits.float()
    assert float((wanted - found).abs().max()) < 0.05 * float(wanted.abs().max())
    assert torch.equal(wanted.argmax(-1), found.argmax(-1))
    assert all(p.shape[0] == 24 for n, p in grown.named_parameters() if "lora_A" in n)


def test_ranks_are_trained_one_after_the_other(samples: Path) -> None:
    config = recipe(lora={"r": 16, "alpha": 32, "rank_schedule": [4, 8, 16]}, training=SHORT)
    first = jobs_start.start(config, datasets.by_name(config.data.dataset)["id"], "a click")
    assert jobs_start.start(config, 0, "a click") == first
    while row := queue.next_queued():
        work_on(Job(row))
    stages = [row for row in reversed(runs.listed()) if row["id"] >= first]
    assert [runs.recipe(row["id"]).lora.r for row in stages] == [4, 8, 16]
    assert [runs.recipe(row["id"]).lora.alpha for row in stages] == [8, 16, 32]
    assert [row["parent"] for row in stages] == [None, first, first + 1]
    assert [row["state"] for row in stages] == ["completed"] * 3
    held_out = [row["eval_loss"] for row in stages]
    print(f"\nheld-out loss after r 4, 8, 16: {held_out}")
    assert held_out[2] < held_out[1] < held_out[0]
    for before, after in zip(stages, stages[1:], strict=False):
        began = runs.metrics(after["id"])[0]["eval_loss"]
        assert began == pytest.approx(before["eval_loss"], rel=2e-3)
        # The base's own figure is the base's, however the run begins.
        assert after["base_eval_loss"] == pytest.approx(stages[0]["base_eval_loss"], rel=1e-6)


def test_a_stage_does_not_begin_with_half_of_the_one_before(samples: Path) -> None:
    config = recipe(lora={"rank_schedule": [4, 8]}, training=SHORT)
    first, second = jobs_start.store(config, datasets.by_name(config.data.dataset)["id"])
    queue.set_state(queue.enqueue("train", first), "stopped")
    assert "was stopped" in do("train", second)["error"]


def test_a_reproduction_says_whether_the_curves_agree(samples: Path, capsys: pytest.CaptureFixture) -> None:
    parent = add(recipe(training=SHORT))
    do("train", parent)
    found = api.reproduce(parent)
    assert (found.steps, found.largest, found.held_out, found.differences) == (6, 0.0, 0.0, ())
    assert found.agrees and found.sentence == "The curves agree bit for bit over 6 steps."
    again = runs.listed()[0]["id"]
    runs.record(again, [(2, {"loss": _losses(parent)[1] + 0.5})])
    metadata = run_folder(again) / "artifact" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"torch": "', '"torch": "0.'))
    found = lineage.agreement(again)
    assert not found.agrees and found.largest == pytest.approx(0.5, abs=1e-6)
    assert "do not agree: at most 0.5 nats apart" in found.sentence and "torch" in found.sentence
    with pytest.raises(StudioError, match="is no reproduction"):
        lineage.agreement(parent)


def test_a_reproduction_of_a_branch_begins_as_the_branch_did(samples: Path) -> None:
    parent = add(recipe(training=SHORT))
    do("train", parent)
    child = lineage.branch(parent, 3, {"training.max_steps": 2}).store()
    assert do("train", child)["error"] is None
    again = lineage.reproduce(child)
    assert do("train", again)["error"] is None
    assert lineage.agreement(again).sentence == "The curves agree bit for bit over 2 steps."


def test_changes_are_checked_as_a_recipe_is() -> None:
    config = schema.changed(schema.RunConfig(), {"lora.r": "8", "training.learning_rate": ""})
    assert config.lora.r == 8 and config.training.learning_rate == 2e-4
    with pytest.raises(RecipeError):
        schema.changed(schema.RunConfig(), {"lora.r": "0"})
