"""Buttons of the Runs tab: branch, train again, the smaller plan, delete. Each is pressed as a user does."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from plumbline.home import home
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.store.database import writing
from tests.browser.conftest import open_tab, watch, white_slabs
from tests.faults.waiting import until
from tests.runs import add, do, recipe
from tests.server import Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with a run that has two checkpoints, and this process in its workspace."""
    from plumbline.data.selection import datasets

    place = tmp_path_factory.mktemp("runs") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(place))
        datasets.ensure_samples()
        assert do("train", add(recipe()))["error"] is None
        running = Studio(place, "--worker", "thread")
        yield running
        running.close()


def out_of_memory() -> int:
    """A run that failed for lack of memory and left a smaller plan."""
    with writing():  # the studio's worker sees it when it has failed
        run_id = add(recipe())
        job_id = queue.enqueue("train", run_id)
        queue.suggest(job_id, {"training.micro_batch_tokens": 256, "training.max_length": 128})
        queue.set_state(job_id, "failed", "out of memory at step 2")
    return run_id


def shown(page: Page, studio: Studio, run_id: int) -> None:
    page.goto(f"{studio.url}?run={run_id}")
    expect(page.locator("#run-head")).to_contain_text(f"run {run_id}")


def pick(page: Page, run_id: int) -> None:
    """Choose a run in the list."""
    cells = page.locator("#runs-table").get_by_text(str(run_id), exact=True)
    cells.locator("visible=true").first.click()
    expect(page.locator("#run-head")).to_contain_text(f"run {run_id}")


def newest() -> int:
    return runs.listed(1)[0]["id"]


def test_a_branch_is_started_from_a_step_with_other_settings(page: Page, studio: Studio) -> None:
    shown(page, studio, 1)
    page.get_by_role("button", name="Branch, or train it again").click()
    others = page.get_by_label("Other settings")
    others.fill("lora.dropot: 0.1")
    page.locator("#branch").click()
    expect(page.locator("#branch-trouble")).to_contain_text("lora.dropot does not exist, did you mean")
    assert newest() == 1
    others.fill("training.max_steps: 2")
    page.locator("#lineage").get_by_label("Learning rate").fill("1e-4")
    page.get_by_label("From step").click()
    page.get_by_role("option", name="2", exact=True).click()
    page.locator("#branch").dblclick()
    expect(page.locator("#run-head")).to_contain_text("run 2 · from step 2 of run 1")
    expect(page.locator("#branch")).to_be_hidden()
    expect(page.locator("#runs-table")).to_contain_text("from step 2 of run 1")
    expect(page.locator("#run-head")).to_contain_text("State completed", timeout=120_000)
    config = runs.recipe(2)
    assert (newest(), config.training.learning_rate, config.training.max_steps) == (2, 1e-4, 2)
    assert runs.get(2)["parent_step"] == 2
    # What was typed for one run is not there for the next.
    page.get_by_role("button", name="Branch, or train it again").click()
    expect(page.locator("#lineage").get_by_label("Learning rate")).to_have_value("")
    expect(others).to_have_value("")


def test_training_again_says_whether_the_curves_agree(page: Page, studio: Studio) -> None:
    shown(page, studio, 1)
    before = newest()
    page.get_by_role("button", name="Branch, or train it again").click()
    page.locator("#reproduce").dblclick()
    expect(page.locator("#run-head")).to_contain_text(f"run {before + 1} · run 1 again")
    expect(page.locator("#run-head .pl-good")).to_contain_text(
        "The curves agree bit for bit over 4 steps", timeout=120_000
    )
    assert newest() == before + 1


def test_a_run_that_ran_out_of_memory_starts_again_with_the_smaller_plan(page: Page, studio: Studio) -> None:
    shown(page, studio, 1)
    expect(page.locator("#smaller")).to_be_hidden()
    failed = out_of_memory()
    pick(page, failed)
    expect(page.locator("#smaller-plan")).to_contain_text("Micro-batch tokens 256, Max length 128.")
    page.locator("#smaller").dblclick()
    expect(page.locator("#run-head")).to_contain_text(f"run {failed + 1}")
    expect(page.locator("#smaller")).to_be_hidden()
    training = runs.recipe(failed + 1).training
    assert (newest(), training.micro_batch_tokens, training.max_length) == (failed + 1, 256, 128)
    expect(page.locator("#run-head")).to_contain_text("State completed", timeout=120_000)


def test_deleting_a_run_asks_first_and_other_pages_follow(
    page: Page, browser: Browser, studio: Studio
) -> None:
    first, second = out_of_memory(), out_of_memory()
    shown(page, studio, second)
    other = browser.new_page()
    troubles = watch(other)
    shown(other, studio, second)
    page.locator("#delete").click()
    expect(page.locator("#delete-panel")).to_contain_text("This deletes for good: its adapter, curves")
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#sure")).to_be_hidden()
    page.locator("#delete").click()
    expect(page.locator("#sure")).to_have_text(f"Yes, delete run {second}")
    # Another run is chosen in between: the question is taken back.
    pick(page, first)
    expect(page.locator("#sure")).to_be_hidden()
    pick(page, second)
    page.locator("#delete").click()
    page.locator("#sure").dblclick()
    expect(page.locator("#run-head")).to_contain_text(f"run {first}")
    expect(other.locator("#run-head")).to_contain_text(f"run {first}")
    assert not runs.exists(second) and runs.exists(first)
    # The pages follow its rows, which go before its folder.
    until(lambda: not (home() / "runs" / str(second)).exists())
    for tab in ("Evaluate", "Chat", "Export", "Runs"):
        open_tab(other, tab)
    expect(other.locator("#runs-table")).not_to_contain_text(f"run {second}")
    other.close()
    assert troubles == []


def test_a_run_in_use_is_not_deleted(page: Page, studio: Studio) -> None:
    """One that is trained has no button for it; one that another run needs says which."""
    with writing():  # the studio's worker takes up neither
        child = runs.add(recipe(), 1, 1, 2, "branch")
        queue.enqueue("train", child)
        queue.stop_run(child)
        waiting = add(recipe())
        queue.set_state(queue.enqueue("train", waiting), "stopping")
    shown(page, studio, waiting)
    expect(page.locator("#delete")).to_have_text("Delete (stop it first)")
    expect(page.locator("#delete")).to_be_disabled()
    queue.set_state(queue.latest(waiting, "train")["id"], "stopped")  # type: ignore[index]
    expect(page.locator("#delete")).to_be_enabled()
    pick(page, 1)
    page.locator("#delete").click()
    expect(page.locator("#delete-panel")).to_contain_text("from it and stay")
    page.locator("#sure").click()
    expect(page.locator("#delete-panel .pl-bad")).to_contain_text(f"run 1: is needed by run {child}")
    assert runs.exists(1)


@pytest.mark.parametrize("width", [1280, 800])
def test_the_open_panels_fit_and_are_dark(page: Page, studio: Studio, width: int) -> None:
    run_id = out_of_memory()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{studio.url}?run={run_id}&__theme=dark")
    expect(page.locator("#smaller")).to_be_visible()
    page.locator("#delete").click()
    expect(page.locator("#sure")).to_be_visible()
    page.get_by_role("button", name="Branch, or train it again").click()
    expect(page.get_by_label("Other settings")).to_be_visible()
    assert white_slabs(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
