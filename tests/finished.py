"""One short real run on the starter, shared by the tests that only look at it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Finished:
    """A workspace with one completed run."""

    home: Path
    run_id: int

    @property
    def folder(self) -> Path:
        return self.home / "runs" / str(self.run_id)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    from plumbline.data.selection import datasets
    from tests.runs import add, do, recipe

    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(home))
        datasets.ensure_samples()
        run_id = add(recipe(training={"max_steps": 20, "eval_steps": 10, "save_steps": 10}))
        job = do("train", run_id)
        assert job["state"] == "completed", (home / "runs" / str(run_id) / "log.txt").read_text()
    return Finished(home, run_id)


@pytest.fixture
def finished(_finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Iterator[Finished]:
    monkeypatch.setenv("PLUMBLINE_HOME", str(_finished.home))
    yield _finished
