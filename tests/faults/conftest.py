"""A workspace with a tiny base and the curves of runs that nothing happened to."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plumbline.jobs import queue
from plumbline.store import runs
from tests.faults import forked
from tests.runs import add

PATHS = {"autograd": {"dropout": 0.1}, "decoder": {"dropout": 0.0}}
COUNTED = {"/checkpoints": "autograd", "plumbline.db": "decoder"}  # calls, and the path they are counted on


@dataclass(frozen=True)
class Whole:
    """:param curves: of the uninterrupted run, by training path
    :param calls: how many calls change files of its checkpoints, and of the database
    """

    home: Path
    base: str
    curves: dict[str, list[tuple[Any, ...]]]
    calls: dict[str, int]


@dataclass(frozen=True)
class Workspace:
    """One test's copy of it, which PLUMBLINE_HOME names."""

    home: Path
    whole: Whole

    def add(self, path: str = "autograd", **training: Any) -> tuple[int, int]:
        """:returns: a new run's id, and that of its waiting job"""
        run_id = add(forked.tiny_recipe(self.whole.base, PATHS[path], **training))
        return run_id, queue.enqueue("train", run_id)

    def run(self, job_id: int, fault: forked.Fault | None = None) -> tuple[int, int]:
        return forked.run(forked.work, self.home, fault, job_id)

    def checkpoints(self, run_id: int) -> Path:
        return self.home / "runs" / str(run_id) / "checkpoints"


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    from plumbline.data.selection import datasets

    folder = tmp_path_factory.mktemp("whole")
    base, home = forked.tiny_base(folder / "tiny"), folder / "home"
    curves: dict[str, list[tuple[Any, ...]]] = {}
    calls: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(home))
        datasets.ensure_samples()
        shutil.copytree(home, folder / "empty")
        for below, path in COUNTED.items():
            run_id = add(forked.tiny_recipe(base, PATHS[path]))
            fault = forked.Fault(below) if forked.shim() else None
            code, calls[below] = forked.run(forked.work, home, fault, queue.enqueue("train", run_id))
            assert code == 0 and runs.get(run_id)["error"] is None
            assert runs.decisions(run_id)["training path"]["value"].endswith(path)
            curves[path] = forked.curve(run_id)
    return Whole(folder / "empty", base, curves, calls)


@pytest.fixture
def tiny(_whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    home = tmp_path / "home"
    shutil.copytree(_whole.home, home)
    monkeypatch.setenv("PLUMBLINE_HOME", str(home))
    yield Workspace(home, _whole)
