"""Several processes compute what one does: shared steps, a sharded base, over gloo on a CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from plumbline.batches.packing import Packer
from plumbline.distributed.process_group import ProcessGroup
from plumbline.errors import StudioError
from plumbline.training.loop import guard
from tests import ROOT


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _together(folder: Path, size: int, *options: str) -> list[dict[str, Any]]:
    folder.mkdir()
    told = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    told |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", str(folder), *options],
            cwd=ROOT,
            env=os.environ | told | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = _together(tmp_path_factory.mktemp("alone") / "one", 1)[0]
    assert found["error"] is None and len(found["losses"]) == 4
    return found


@pytest.mark.parametrize("options", [(), ("--shard",)], ids=["shared steps", "sharded base"])
def test_two_processes_train_as_one_does(alone: dict[str, Any], tmp_path: Path, options: Any) -> None:
    first, second = _together(tmp_path / "two", 2, *options)
    assert first["error"] is None and first == second
    for name in ("losses", "held_out", "norms"):
        apart = numpy.abs(numpy.subtract(first[name], alone[name])) / numpy.abs(alone[name])
        print(f"\n{options} {name}: apart by {apart.max():.1e}")
        assert apart.max() < 5e-3


def test_shares_are_all_rows_once_and_about_even() -> None:
    lengths = [300, 20, 50, 200, 90, 10, 400, 30, 60]
    shares = ProcessGroup(0, 3).shares(lengths)
    assert sorted(number for share in shares for number in share) == list(range(9))
    sizes = [sum(lengths[number] for number in share) for share in shares]
    assert max(sizes) - min(sizes) <= 60
    assert ProcessGroup().shares(lengths) == [list(range(9))]


def test_a_process_without_rows_still_computes_as_many_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": list(range(40)), "labels": list(range(40))}]
    for rank, learned in ((0, 39), (1, 0)):
        monkeypatch.setattr("plumbline.batches.packing.current", lambda rank=rank: ProcessGroup(rank, 2))
        step = Packer(64, even=True)(rows)["step"]
        assert [len(one.targets) for one in step.packs] == [learned]
        assert (step.tokens, step.supervised) == (40, 39)


def test_adapters_that_drift_apart_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(3, 2)
    others = [[float(p.double().sum()) for p in model.parameters()]]
    together = SimpleNamespace(size=2, all_gather=lambda mine: [mine, *others])
    monkeypatch.setattr(guard, "current", lambda: together)
    guard.check_same_weights(model, 4)
    others[0][1] += 1e-9
    with pytest.raises(StudioError, match="the adapter: is not the same in all processes at step 4"):
        guard.check_same_weights(model, 4)
