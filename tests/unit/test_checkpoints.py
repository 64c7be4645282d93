"""Checkpoints are whole or not used, and rotate by step."""

import os
from pathlib import Path

import pytest

from core.training import checkpoints


def make(folder: Path, step: int) -> Path:
    staged = folder / "staging" / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "adapter_model.safetensors").write_bytes(bytes(range(256)) * step)
    (staged / "trainer_state.json").write_text("{}")
    (staged / "training_args.bin").write_bytes(b"pickle")
    checkpoints.publish(staged, folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{step}"


def test_a_published_checkpoint_verifies_and_holds_no_pickled_arguments(tmp_path: Path) -> None:
    made = make(tmp_path, 10)
    assert checkpoints.verifies(made)
    assert not (made / "training_args.bin").exists()


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "missing", "no manifest", "broken manifest"])
def test_a_harmed_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path: Path, harm: str) -> None:
    good, bad = make(tmp_path, 10), make(tmp_path, 20)
    file, manifest = bad / "adapter_model.safetensors", bad / checkpoints.MANIFEST
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[100] ^= 1
        file.write_bytes(data)
    elif harm == "cut":
        file.write_bytes(data[:-1])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "missing":
        file.unlink()
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    assert checkpoints.newest_good(tmp_path) == (good, ["checkpoint-20"])
    assert (tmp_path / "quarantine" / "checkpoint-20").exists()
    assert checkpoints.newest_good(tmp_path) == (good, [])


def test_rotation_goes_by_step_even_when_the_clock_went_back(tmp_path: Path) -> None:
    for step in (10, 20, 100):
        make(tmp_path, step)
    os.utime(tmp_path / "checkpoint-100", (0, 0))
    checkpoints.rotate(tmp_path, 2)
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoints.newest_good(tmp_path) == (None, [])
