"""What many tests share: a workspace of their own, the sample dataset, a short run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline import environment

pytest_plugins = ["tests.finished"]
environment.set_defaults()
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty workspace; one variable moves everything."""
    home = tmp_path / "home"
    monkeypatch.setenv("PLUMBLINE_HOME", str(home))
    yield home


@pytest.fixture
def samples(workspace: Path) -> Path:
    """A workspace with the sample datasets."""
    from plumbline.data.selection import datasets

    datasets.ensure_samples()
    return workspace
