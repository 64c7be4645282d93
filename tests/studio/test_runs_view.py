"""What the Runs tab says of runs that come from others, and what its fields of a branch mean."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.errors import StudioError
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.runs import delete, retry, start
from plumbline.store import runs
from plumbline_studio.tabs.runs import lineage, tab
from tests.runs import add, recipe


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (("", "", "", ""), {}),
        ((" 1e-4 ", "", "", ""), {"training.learning_rate": "1e-4"}),
        (("", "2", "", ""), {"training.epochs": "2", "training.max_steps": ""}),
        (("", "", "mine", ""), {"data.dataset": "mine", "data.mix": "", "data.mapping": ""}),
        (("", "", "", "lora.dropout: 0.1, training.seed: 7"), {"lora.dropout": 0.1, "training.seed": 7}),
        (("", "", "", "lora: {dropout: 0.1}"), {"lora.dropout": 0.1}),
        (("", "", "", "{lora: {dropout: 0.1}}"), {"lora.dropout": 0.1}),
        (("", "", "", "data.mapping: {prompt: a}"), {"data.mapping": {"prompt": "a"}}),
        (("", "1", "", "training.max_steps: 9"), {"training.epochs": "1", "training.max_steps": 9}),
    ],
)
def test_the_fields_of_a_branch_are_changes(
    fields: tuple[str, str, str, str], wanted: dict[str, Any]
) -> None:
    assert lineage.changes(*fields) == wanted


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ("lora.dropout: [", "other settings line 1: is not valid YAML"),
        ("training.learning_rate: 1", "training.learning_rate: has a field of its own above"),
        ("lora.r: 4, lora.r: 8", "gives 'lora.r' a second time"),
        ("x" * 300_000, "is longer than"),
    ],
)
def test_other_settings_that_are_none_are_refused(others: str, what: str) -> None:
    with pytest.raises(StudioError, match=what):
        lineage.changes("1e-4", "", "", others)


def test_a_branch_with_another_dataset_leaves_the_mix_behind(samples: Path) -> None:
    mixed = add(recipe(data={"mix": [{"dataset": "cited-answers"}, {"dataset": "plain-style"}]}))
    (run_folder(mixed) / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    child = start.branch(mixed, 2, lineage.changes("", "", "ticket-triage", ""), "click")
    assert [part.dataset for part in runs.recipe(child).data.parts] == ["ticket-triage"]


@pytest.fixture
def family(samples: Path) -> tuple[int, int, int, int]:
    """A run, its branch, the next stage after it, and its reproduction; all have ended."""
    first = add(recipe(lora={"r": 4}))
    given: list[Any] = [(2, "branch"), (None, "rank"), (None, "reproduction")]
    made = [runs.add(recipe(), 1, first, step, relation) for step, relation in given]
    for run_id in (first, *made):
        queue.set_state(queue.enqueue("train", run_id), "completed")
        runs.record(run_id, [(1, {"loss": 2.0}), (2, {"loss": 1.0})])
    return first, *made


def test_the_head_and_the_list_say_where_a_run_comes_from(family: tuple[int, int, int, int]) -> None:
    first, branch, stage, same = family
    assert f"run {branch} · from step 2 of run {first}<" in tab._head(branch)
    assert f"run {stage} · after run {first} (rank 4)<" in tab._head(stage)
    assert f"run {same} · run {first} again<" in tab._head(same)
    assert f">run {first}<" in tab._head(first)
    said = {row[0]: row[2] for row in tab._listing(None)}
    assert said == {
        first: "-",
        branch: f"from step 2 of run {first}",
        stage: f"after run {first}",
        same: f"run {first} again",
    }
    before = tab._state(branch)
    delete.remove(first)
    assert tab._state(branch) != before, "the head is drawn again"
    assert f"from step 2 of run {first} (deleted)<" in tab._head(branch)
    assert f"after run {first} (deleted)<" in tab._head(stage)


def test_a_reproduction_shows_whether_the_curves_agree(family: tuple[int, int, int, int]) -> None:
    first, branch, _, same = family
    assert "pl-good" in tab._head(same) and "agree bit for bit over 2 steps" in tab._head(same)
    assert "agree" not in tab._head(branch)
    runs.record(same, [(2, {"loss": 1.5})])
    assert "pl-warning" in tab._head(same) and "do not agree" in tab._head(same)
    queue.set_state(queue.enqueue("train", same), "running")
    assert "agree" not in tab._head(same), "it is not over"
    queue.set_state(queue.latest(same, "train")["id"], "completed")  # type: ignore[index]
    delete.remove(first)
    assert "there is no curve to compare with" in tab._head(same)


def test_the_smaller_plan_names_its_settings_and_where_it_begins(samples: Path) -> None:
    run_id = add(recipe())
    job_id = queue.enqueue("train", run_id)
    assert lineage._smaller(run_id)[1] == ""
    queue.suggest(job_id, {"training.micro_batch_tokens": 256})
    queue.set_state(job_id, "failed")
    assert "Micro-batch tokens 256. It begins anew, as a new run." in lineage._smaller(run_id)[1]
    (run_folder(run_id) / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert "It goes on from step 2." in lineage._smaller(run_id)[1]
    retry.start(run_id)
    assert lineage._smaller(run_id)[1] == ""
