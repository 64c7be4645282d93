"""Branches, reproductions and second starts that a click makes: once, whole, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.checkpoints import folders, inherit
from plumbline.errors import RecipeError, StudioError
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.runs import delete, lineage, retry, start
from plumbline.store import runs
from plumbline.store.database import database
from tests.runs import add, recipe


def finished(state: str = "completed", *steps: int) -> int:
    """A run that has ended, with folders as checkpoints of these steps have them."""
    run_id = add(recipe())
    for step in steps:
        (run_folder(run_id) / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    queue.set_state(queue.enqueue("train", run_id), state)
    return run_id


def out_of_memory(settings: dict[str, Any], *steps: int) -> int:
    run_id = finished("failed", *steps)
    job = queue.latest(run_id, "train")
    assert job is not None
    queue.suggest(job["id"], settings)
    return run_id


def counted() -> tuple[int, int]:
    return database().table("runs").count, database().table("jobs").count


def test_f12_one_click_makes_one_branch(samples: Path) -> None:
    parent = finished("stopped", 2, 4)
    child = start.branch(parent, 2, {"training.learning_rate": "1e-4"}, "click")
    assert start.branch(parent, 4, {}, "click") == child
    assert counted() == (2, 2)
    row = runs.get(child)
    assert (row["state"], row["parent"], row["parent_step"], row["relation"]) == ("queued", 1, 2, "branch")
    assert runs.recipe(child).training.learning_rate == 1e-4
    other = start.branch(parent, None, {}, "another click")
    assert runs.get(other)["parent_step"] == 4


def test_a_branch_makes_the_steps_that_were_left(samples: Path) -> None:
    parent = finished("stopped", 2, 4)
    runs.update(parent, total_steps=10)

    def steps(step: int | None, **changes: Any) -> int | None:
        named = {f"training.{name}": value for name, value in changes.items()}
        return runs.recipe(start.branch(parent, step, named, f"{step} {changes}")).training.max_steps

    assert (steps(2), steps(4), steps(2, learning_rate=1e-4)) == (8, 6, 8)
    assert steps(2, max_steps=3) == 3 and steps(2, epochs=1, max_steps="") is None
    runs.update(parent, total_steps=4)
    assert steps(None, seed=2) == 4, "none are left: as many as the recipe says"


@pytest.mark.parametrize(
    ("step", "changes", "what"),
    [
        (3, {}, "step 3: of run 1 was not kept. Kept are: 2, 4"),
        (2, {"training.learning_rate": "abc"}, "training.learning_rate must be a number"),
        (2, {"training.lr": 1}, "training.lr does not exist"),
        (2, {"data.dataset": "nowhere"}, "dataset 'nowhere': does not exist"),
        (2, {"lora.target_modules": ["k_proj"]}, "lora.target_modules: cannot change in a branch"),
        (2, {"data.order": "by column", "data.order_column": "nowhere"}, "nowhere"),
    ],
)
def test_a_branch_that_cannot_be_leaves_nothing(
    samples: Path, step: int, changes: dict[str, Any], what: str
) -> None:
    parent = finished("stopped", 2, 4)
    with pytest.raises(StudioError, match=what):
        start.branch(parent, step, changes, "click")
    assert counted() == (1, 1)
    assert start.branch(parent, 2, {}, "click") == 2, "the click that failed used its token up"


def test_a_branch_that_would_not_fit_leaves_nothing(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(config: Any) -> None:
        raise RecipeError({"training.max_length": "must be at most 1024"})

    monkeypatch.setattr(start.fit, "check_fits", refused)
    with pytest.raises(RecipeError):
        start.branch(finished("stopped", 2), 2, {}, "click")
    assert counted() == (1, 1)


def test_f12_one_click_makes_one_reproduction_of_a_run_that_has_ended(samples: Path) -> None:
    first = finished()
    child = start.reproduce(first, "click")
    assert start.reproduce(first, "click") == child and counted() == (2, 2)
    assert (runs.get(child)["relation"], runs.get(child)["parent"]) == ("reproduction", first)
    with pytest.raises(StudioError, match=f"run {child}: is queued. Train it again when it has ended."):
        start.reproduce(child, "another click")
    assert counted() == (2, 2)


def test_a_smaller_plan_that_changes_nothing_that_is_learned_goes_on_from_the_checkpoint(
    samples: Path,
) -> None:
    run_id = out_of_memory({"training.micro_batch_tokens": 256}, 2, 4)
    plan = retry.offered(run_id)
    assert plan is not None and plan.step == 4
    assert retry.start(run_id) == run_id and retry.start(run_id) == run_id
    assert counted() == (1, 2) and runs.recipe(run_id).training.micro_batch_tokens == 256
    job = queue.latest(run_id, "train")
    assert job is not None and (job["state"], job["payload"]) == ("queued", {"resume": True})
    # It runs out of memory again: that is another failure, with a plan of its own.
    queue.set_state(job["id"], "failed")
    queue.suggest(job["id"], {"training.micro_batch_tokens": 128})
    assert retry.start(run_id) == run_id and runs.recipe(run_id).training.micro_batch_tokens == 128


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"training.micro_batch_tokens": 256}, ()),
        ({"training.micro_batch_tokens": 256, "training.max_length": 64}, (2, 4)),
        ({"training.optimizer": "paged_adamw_8bit"}, (2, 4)),
    ],
    ids=["no checkpoint", "shorter rows", "another optimizer"],
)
def test_a_smaller_plan_begins_a_new_run_where_it_cannot_go_on(
    samples: Path, settings: dict[str, Any], steps: tuple[int, ...]
) -> None:
    run_id = out_of_memory(settings, *steps)
    before = runs.get(run_id)["recipe"]
    plan = retry.offered(run_id)
    assert plan is not None and plan.step is None
    new = retry.start(run_id)
    assert new != run_id and retry.start(run_id) == new and counted() == (2, 2)
    assert runs.get(run_id)["recipe"] == before and runs.get(new)["state"] == "queued"
    was, now = (runs.recipe(each).model_dump() for each in (run_id, new))
    for key, value in settings.items():
        section, _, name = key.partition(".")
        assert now[section][name] == value
        was[section][name] = value
    assert was == now
    assert f"run {run_id} ran out of memory" in runs.events(new)[0]["text"]


def test_a_new_run_with_the_smaller_plan_begins_where_the_failed_one_did(samples: Path) -> None:
    parent = finished("completed", 4)
    run_id = out_of_memory({"training.max_length": 64})
    runs.update(run_id, parent=parent, parent_step=4, relation="branch")
    row = runs.get(retry.start(run_id))
    assert (row["parent"], row["parent_step"], row["relation"]) == (parent, 4, "branch")
    other = out_of_memory({"training.max_length": 64})
    runs.update(other, parent=parent, relation="reproduction")
    row = runs.get(retry.start(other))
    assert (row["parent"], row["relation"]) == (None, None), "a shorter one is no reproduction"


def test_a_branch_whose_run_or_step_goes_while_it_is_looked_at_is_refused(samples: Path) -> None:
    parent = finished("stopped", 2, 4)
    found = lineage.branch(parent, 2)
    folders.rotate(run_folder(parent) / "checkpoints", 1)
    with pytest.raises(StudioError, match=f"step 2: of run {parent} is not kept any more"):
        found.store()
    last = lineage.branch(parent)
    delete.remove(parent)
    with pytest.raises(StudioError, match=f"run {parent}: does not exist"):
        last.store()
    assert counted() == (0, 0)


def test_a_step_that_a_branch_waits_for_is_not_rotated_away(samples: Path) -> None:
    parent = finished("stopped", 2, 4, 6, 8)
    child = start.branch(parent, 2, {}, "click")
    folders.rotate(run_folder(parent) / "checkpoints", 2, runs.awaited_steps(parent))
    assert inherit.steps(parent) == [2, 6, 8]
    runs.update(child, step=1)  # it has begun
    folders.rotate(run_folder(parent) / "checkpoints", 2, runs.awaited_steps(parent))
    assert inherit.steps(parent) == [6, 8]


def test_a_stage_that_was_taken_back_is_not_queued_again(samples: Path) -> None:
    first = out_of_memory({"training.max_length": 64})
    second = runs.add(recipe(), 1, first, None, "rank")
    queue.set_state(queue.enqueue("train", second), "stopped")
    retry.start(first)
    assert runs.get(second)["state"] == "stopped"


def test_an_older_job_that_ends_late_does_not_end_a_run_that_was_queued_again(samples: Path) -> None:
    run_id = add(recipe())
    older, newer = queue.enqueue("train", run_id), queue.enqueue("train", run_id)
    queue.set_state(older, "failed", error="came too early")
    assert (runs.get(run_id)["state"], runs.get(run_id)["error"]) == ("queued", None)
    queue.set_state(newer, "completed")
    assert runs.get(run_id)["state"] == "completed"


@pytest.mark.parametrize(
    ("settings", "steps"), [({"training.max_length": 64}, ()), ({"training.micro_batch_tokens": 256}, (2,))]
)
@pytest.mark.parametrize("second", ["queued", "failed"])
def test_the_later_stages_of_a_rank_schedule_come_after_the_smaller_plan(
    samples: Path, settings: dict[str, Any], steps: tuple[int, ...], second: str
) -> None:
    first = out_of_memory(settings, *steps)
    waits, last = (runs.add(recipe(), 1, first + n, None, "rank") for n in (0, 1))
    for stage, state in ((waits, second), (last, "queued")):
        job_id = queue.enqueue("train", stage)
        if state != "queued":
            queue.set_state(job_id, state)
    other = runs.add(recipe(), 1, first, None, "reproduction")
    new = retry.start(first)
    assert [runs.get(each)["parent"] for each in (waits, last, other)] == [new, waits, first]
    waiting = database().table("jobs").rows_where("state = 'queued'", order_by="id")
    assert [job["run_id"] for job in waiting] == [new, waits, last]
    assert retry.start(first) == new
    assert database().table("jobs").count_where("state = 'queued'") == 3


def test_a_run_without_a_smaller_plan_has_none(samples: Path) -> None:
    assert retry.offered(add(recipe())) is None
    run_id = finished("failed")
    assert retry.offered(run_id) is None
    with pytest.raises(StudioError, match=f"run {run_id}: has no smaller plan to start again with"):
        retry.start(run_id)
    job = queue.latest(out_of_memory({}), "train")
    assert job is not None and json.loads(json.dumps(job["result"])) == {"suggestion": {}}
    assert retry.offered(job["run_id"]) is None


def test_where_a_run_comes_from_is_said(samples: Path) -> None:
    first = finished("completed", 2)
    child = start.branch(first, 2, {}, "a")
    same = start.reproduce(first, "b")
    known = runs.numbers()
    assert lineage.origin(runs.get(first), known) == ""
    assert lineage.origin(runs.get(child), known) == f"from step 2 of run {first}"
    assert lineage.origin(runs.get(same), known) == f"run {first} again"
