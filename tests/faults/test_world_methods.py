"""Methods that learn from judgements: several processes compute what one does, over gloo on a CPU."""

from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.faults.test_world import _together

METHODS = ("dpo", "orpo", "kto", "grpo")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _together(tmp_path_factory.mktemp("alone") / "one", 1, "--methods", ",".join(METHODS))[0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the first of two processes has measured, the same as the second, and where."""
    folder = tmp_path_factory.mktemp("shared") / "two"
    first, second = _together(folder, 2, "--methods", ",".join(METHODS))
    assert first == second
    return first, folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_from_judgements_as_one_does(
    alone: dict[str, Any], shared: tuple[dict[str, Any], Path], method: str
) -> None:
    one, both = alone[method], shared[0][method]
    assert one["error"] is both["error"] is None and len(one["losses"]) == 4
    for name in ("losses", "held_out", "norms", "logged"):
        found, wanted = numpy.array(both[name]), numpy.array(one[name])
        print(f"\n{method} {name}: apart by {numpy.abs(found - wanted).max():.1e}, of {wanted.round(3)}")
        assert found == pytest.approx(wanted, rel=5e-3, abs=1e-5)


def test_only_the_first_process_keeps_the_references(shared: tuple[dict[str, Any], Path]) -> None:
    found = {path.relative_to(shared[1]).parts[0] for path in shared[1].rglob("reference*")}
    assert found == {"home-0"}
