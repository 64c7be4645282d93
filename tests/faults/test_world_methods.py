"""Methods that learn from judgements: several processes compute what one does, over gloo on a CPU."""

from pathlib import Path
from typing import Any

import numpy
import pytest

from plumbline.batches.packing import Packer
from plumbline.batches.pair_packing import Judged
from plumbline.data.tokens.encode import Encoded
from plumbline.distributed.process_group import ProcessGroup
from plumbline.models.out_of_memory import OomBackoff
from tests.faults.test_world import _together

JUDGED = ("dpo", "orpo", "kto")
METHODS = (*JUDGED, "grpo")


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
    _same(method, alone[method], shared[0][method])


def _same(method: str, one: dict[str, Any], both: dict[str, Any]) -> None:
    assert one["error"] is both["error"] is None and len(one["losses"]) == 4
    for name in ("losses", "held_out", "norms", "logged"):
        found, wanted = numpy.array(both[name]), numpy.array(one[name])
        print(f"\n{method} {name}: apart by {numpy.abs(found - wanted).max():.1e}, of {wanted.round(3)}")
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_with_a_sharded_base_they_learn_the_same(alone: dict[str, Any], tmp_path: Path) -> None:
    first, second = _together(tmp_path / "two", 2, "--shard", "--methods", ",".join(JUDGED))
    assert first == second
    for method in JUDGED:
        _same(method, alone[method], first[method])


def test_only_the_first_process_keeps_the_references(shared: tuple[dict[str, Any], Path]) -> None:
    found = {path.relative_to(shared[1]).parts[0] for path in shared[1].rglob("reference*")}
    assert found == {"home-0"}


def test_f18_all_processes_compute_less_at_once_when_memory_ran_out_in_one() -> None:
    """The other one runs out with 8 at once, and again with 4."""
    other = {8: True, 4: True, 2: False}
    told: list[str] = []
    here = OomBackoff(
        8, "answers", lambda text, level: told.append(text), lambda ran: ran or other[here.limit]
    )
    assert here.run("trying", lambda limit: limit, 1, 100) == 2 and len(told) == 2
    other[2] = True
    with pytest.raises(MemoryError, match="another process"):
        here.run("trying", lambda limit: limit, 2, 100)


def test_a_process_without_judged_rows_still_computes_as_many_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Encoded(list(range(40)), list(range(40)), [], 0)]
    for rank, held in ((0, ((0,),)), (1, ((),))):
        monkeypatch.setattr("plumbline.batches.pair_packing.current", lambda rank=rank: ProcessGroup(rank, 2))
        step = Judged(Packer(64, even=True), rows, rows, True)([{"number": 0}])["step"]
        assert step.rows == held and (step.tokens, step.supervised) == (80, 78)
