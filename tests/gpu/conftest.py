"""What the GPU tests share."""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import learned


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Gets the logits of every model as its adapter is written: its own, and its base's."""
    from plumbline.checkpoints import artifact

    seen: list[Any] = []
    honest = artifact.write

    def write(folder: Path, model: Any, *rest: Any) -> None:
        with model.disable_adapter():
            of_base = learned.logits(model)
        seen.append((learned.logits(model), of_base))
        honest(folder, model, *rest)

    monkeypatch.setattr(artifact, "write", write)
    return seen
