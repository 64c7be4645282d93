"""Every action of the page, the Runs tab's too, stands behind the gate."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.store.database import writing
from tests.runs import add, recipe
from tests.server import Studio

ME = ("me", "secret")


@pytest.fixture
def studio(samples: Path) -> Iterator[Studio]:
    """A studio with a password and with one run that could be deleted, branched and trained again."""
    queue.set_state(queue.enqueue("train", add(recipe())), "completed")
    running = Studio(samples, PLUMBLINE_AUTH=":".join(ME))
    yield running
    running.close()


def test_f25_a_start_removes_what_a_crash_left_of_a_deleted_run(samples: Path) -> None:
    run_id = add(recipe())
    left = run_folder(run_id) / "checkpoints"
    left.mkdir()
    with writing():
        runs.remove(run_id, [])
    Studio(samples).close()
    assert not left.parent.exists()


def test_no_action_is_open_to_strangers_or_to_other_sites(studio: Studio) -> None:
    config = httpx.get(f"{studio.url}config", auth=ME).json()
    actions: list[dict[str, Any]] = config["dependencies"]
    ids = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
    for name in ("stop", "resume", "branch", "reproduce", "smaller", "delete", "sure"):
        own = [action for action in actions if [ids[name], "click"] in action["targets"]]
        assert {action["api_visibility"] for action in own} == {"private"}, name
    join = f"{studio.url}gradio_api/queue/join"
    for action in actions:
        asked = {"data": [None] * len(action["inputs"]), "fn_index": action["id"], "session_hash": "s"}
        assert httpx.post(join, json=asked).status_code == 401
        foreign = {"Origin": "https://evil.example"}
        assert httpx.post(join, json=asked, headers=foreign, auth=ME).status_code == 403
    assert [row["id"] for row in runs.listed()] == [1] and queue.waiting() == 0
