"""F02, F03, F04: a save that is cut off, that finds no room, or whose files are damaged afterwards."""

import contextlib
import ctypes
import errno
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.checkpoints import disk_space, folders, resume
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.store.database import database
from tests.faults import forked
from tests.faults.conftest import Workspace
from tests.faults.forked import Fault, curve, healthy

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EDQUOT": errno.EDQUOT}
OF = {"settings": {}, "recipe": "1"}


def save(folder: Path, step: int) -> None:
    """A small save, as the trainer makes one."""
    staged = folder / folders.STAGING / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "adapter_model.safetensors").write_bytes(bytes(range(256)) * step)
    (staged / "trainer_state.json").write_text("{}")
    folders.publish(staged, folder / staged.name, OF)
    folders.rotate(folder, 2)


def with_two(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for step in (10, 20):
        save(folder, step)
    return folder


def in_order(folder: Path) -> Path:
    """What there is to go on from; nothing else is left of a save."""
    found, bad = folders.newest_good(folder)
    assert found is not None and bad == {}
    assert [path.name for path in folder.iterdir() if folders.fault(path) is not None] == []
    assert len(list(folder.iterdir())) in (2, 3)
    return found


def test_f02_a_kill_at_each_call_of_a_save_leaves_the_save_before_or_this_one(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "checkpoints")
    code, last = forked.run(save, tmp_path, Fault("/checkpoints"), folder, 30)
    assert code == 0 and last > 15
    found = []
    for number in range(1, last + 1):
        folder = with_two(folder)
        assert forked.run(save, tmp_path, Fault("/checkpoints", number), folder, 30)[0] == -9
        begun = (folder / folders.STAGING / "checkpoint-30").exists()
        lost = folders.recover(folder)
        found.append(folders.step_of(in_order(folder)))
        if found[-1] == 20 and begun:
            assert lost == ["the save of step 30 had not ended and was removed"]
        else:
            assert lost == []
    # First the old one, and from a certain call on the new one.
    assert found == sorted(found) and set(found) == {20, 30}


def fail_each(folder: Path, error: int) -> None:
    """In a fork: every call of a save fails once, and all that come after it."""
    library = ctypes.CDLL(forked.shim_path())
    number = 0
    while True:
        number += 1
        with_two(folder)
        library.fault_arm(b"/checkpoints", ctypes.c_long(number), error, 1)
        try:
            save(folder, 30)
        except OSError as raised:
            library.fault_arm(b"", ctypes.c_long(0), 0, 0)
            assert raised.errno == error
            assert disk_space.explained(raised, folder, 1000) is not None
            folders.recover(folder)
            assert all(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            assert folders.step_of(in_order(folder)) in (20, 30)
        else:
            library.fault_arm(b"", ctypes.c_long(0), 0, 0)
            assert number > 10
            return


@pytest.mark.parametrize("error", ERRORS, ids=lambda name: f"F03-{name}")
def test_a_call_of_a_save_that_fails_leaves_the_save_before_or_this_one(tmp_path: Path, error: str) -> None:
    if not forked.shim():
        pytest.skip("needs a C compiler and /proc")
    code, _ = forked.run(fail_each, tmp_path, None, tmp_path / "checkpoints", ERRORS[error])
    assert code == 0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9], ids=lambda share: f"F02-trainer-{share}")
def test_a_run_that_was_killed_in_a_save_says_what_was_lost(tiny: Workspace, share: float) -> None:
    run_id, job_id = tiny.add()
    fault = Fault("/checkpoints", int(share * tiny.whole.calls["/checkpoints"]))
    assert tiny.run(job_id, fault)[0] == -9
    staged = folders.listed(tiny.checkpoints(run_id) / folders.STAGING)
    cut = [path for path in staged if folders.fault(path) is not None]
    queue.mark_orphans()
    assert tiny.run(queue.resume_run(run_id))[0] == 0
    told = [event["text"] for event in runs.events(run_id)]
    for path in cut:
        step = folders.step_of(path)
        assert f"the save of step {step} had not ended and was removed" in told
        assert any(text.startswith(f"resumed from step {step - 3}") for text in told)
    assert curve(run_id) == tiny.whole.curves["autograd"]


FULL = [
    *[("/checkpoints", share, name, True) for share in (0.1, 0.4, 0.8) for name in ERRORS],
    *[("/metrics_history.jsonl", 0.0, name, True) for name in ERRORS],
    *[("plumbline.db", share, name, False) for share in (0.4, 0.6) for name in ("ENOSPC", "EIO")],
    ("/artifact", 0.0, "ENOSPC", True),
]


@pytest.mark.parametrize(
    ("below", "share", "name", "stays"), FULL, ids=[f"F03-{f[0].strip('/')}-{f[1]}-{f[2]}" for f in FULL]
)
def test_a_run_that_finds_no_room_fails_with_figures_and_goes_on_when_there_is(
    tiny: Workspace, below: str, share: float, name: str, stays: bool
) -> None:
    path = "decoder" if below == "plumbline.db" else "autograd"
    run_id, job_id = tiny.add(path)
    number = max(2, int(share * tiny.whole.calls.get(below, 0)))
    assert tiny.run(job_id, Fault(below, number, ERRORS[name], stays))[0] == 0
    run = runs.get(run_id)
    wanted = "disk: could not be written" if name == "EIO" else "disk full, needs "
    assert run["state"] == "failed" and run["error"].startswith(wanted), run["error"]
    assert healthy()
    folder = tiny.checkpoints(run_id)
    assert all(folders.fault(path) is None for path in folders.listed(folder))
    assert not (folder / folders.STAGING).exists()
    empty = [path for path in folder.parent.rglob("*") if path.is_file() and not path.stat().st_size]
    assert [path.name for path in empty] in ([], ["metrics_history.jsonl"])
    assert tiny.run(queue.resume_run(run_id))[0] == 0
    assert (runs.get(run_id)["state"], runs.get(run_id)["error"]) == ("completed", None)
    assert curve(run_id) == tiny.whole.curves[path]


@pytest.fixture
def small_disk(tiny: Workspace) -> Iterator[Workspace]:
    """The workspace on a disk of its own, with room for a few checkpoints."""
    moved = tiny.home.with_name("moved")
    tiny.home.rename(moved)
    tiny.home.mkdir()
    used = sum(path.stat().st_size for path in moved.rglob("*") if path.is_file())
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={used + 8_000_000}", "none", str(tiny.home)]
    if not shutil.which("mount") or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        shutil.copytree(moved, tiny.home, dirs_exist_ok=True)
        yield tiny
    finally:
        subprocess.run(["umount", "-l", str(tiny.home)], check=True)


def work_while_it_fills(job_id: int, filler: Path) -> None:
    """In a fork: somebody else takes all of the disk at step 5."""
    from plumbline.training.loop.trainer import Trainer

    honest = Trainer.training_step

    def step(trainer: Any, *given: Any, **named: Any) -> Any:
        if trainer.state.global_step == 4:
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while file.write(bytes(1000)):
                    pass
        return honest(trainer, *given, **named)

    Trainer.training_step = step  # type: ignore[method-assign]
    forked.work(job_id)


def test_f03_a_disk_that_somebody_else_fills_ends_the_run_with_figures(small_disk: Workspace) -> None:
    run_id, job_id = small_disk.add()
    filler = small_disk.home / "filler"
    assert forked.run(work_while_it_fills, small_disk.home, None, job_id, filler)[0] == 0
    run = runs.get(run_id)
    assert run["state"] == "failed", (run["state"], run["error"])
    assert re.match(r"disk full, needs [\d.]+ MB, 0\.[0-9] MB are free\. Free some space", run["error"])
    assert healthy()
    filler.unlink()
    folder = small_disk.checkpoints(run_id)
    assert [path.name for path in folders.listed(folder)] == ["checkpoint-3"]
    assert folders.fault(folder / "checkpoint-3") is None
    assert small_disk.run(queue.resume_run(run_id))[0] == 0
    assert (runs.get(run_id)["state"], runs.get(run_id)["error"]) == ("completed", None)
    assert curve(run_id) == small_disk.whole.curves["autograd"]
    database().close()


def test_f03_room_is_asked_for_before_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900 * disk_space.MB))
    disk_space.require(tmp_path, 350 * disk_space.MB)  # 700 MB for two of them, 200 MB for the rest
    with pytest.raises(Exception, match="disk full, needs 902 MB, 900 MB are free. Free some space"):
        disk_space.require(tmp_path, 351 * disk_space.MB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=disk_space.MB))
    disk_space.require(tmp_path, 250_000)  # a tiny run needs no 200 MB beside its checkpoints


HARMS = ["missing", "cut", "zeroed", "flipped"]


def harm(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "zeroed":
        path.write_bytes(bytes(len(data)))
    else:
        data[len(data) // 3] ^= 4
        path.write_bytes(data)


@pytest.fixture
def killed(tiny: Workspace) -> tuple[Workspace, int]:
    """A run that was killed at step 11; its checkpoints are those of steps 6 and 9."""
    run_id, job_id = tiny.add()
    assert tiny.run(job_id, Fault(number=11))[0] == -9
    queue.mark_orphans()
    return tiny, run_id


def test_f04_each_damage_to_each_file_of_the_newest_checkpoint_is_seen(killed: Any, tmp_path: Path) -> None:
    tiny, run_id = killed
    names = [path.name for path in (tiny.checkpoints(run_id) / "checkpoint-9").iterdir()]
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "MANIFEST.json"} <= set(names)
    for name in names:
        for how in HARMS:
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(tiny.checkpoints(run_id), copy)
            harm(copy / "checkpoint-9" / name, how)
            found, bad = folders.newest_good(copy)
            assert found == copy / "checkpoint-6", (name, how)
            assert list(bad) == ["checkpoint-9"] and name in bad["checkpoint-9"], (name, how)
            assert (copy / folders.QUARANTINE / "checkpoint-9").is_dir()


def test_f04_a_run_falls_back_one_checkpoint_and_says_so(killed: Any) -> None:
    tiny, run_id = killed
    harm(tiny.checkpoints(run_id) / "checkpoint-9" / "adapter_model.safetensors", "flipped")
    assert tiny.run(queue.resume_run(run_id))[0] == 0
    told = [event["text"] for event in runs.events(run_id)]
    why = "adapter_model.safetensors has another checksum"
    assert f"checkpoint-9 does not verify ({why}) and was set aside" in told
    assert any(text.startswith("resumed from step 6; steps 7 to ") for text in told)
    assert curve(run_id) == tiny.whole.curves["autograd"]


def test_f04_a_run_without_a_good_checkpoint_is_refused_and_nothing_of_it_is_touched(killed: Any) -> None:
    tiny, run_id = killed
    folder, before = tiny.checkpoints(run_id), curve(run_id)
    artifact = folder.with_name("artifact")
    artifact.mkdir()
    (artifact / "adapter_model.safetensors").write_bytes(b"an earlier one")
    for name in ("checkpoint-6", "checkpoint-9"):
        harm(folder / name / "optimizer.pt", "zeroed")
    for _ in range(2):  # what was set aside is not forgotten
        assert tiny.run(queue.resume_run(run_id))[0] == 0
        run = runs.get(run_id)
        assert run["state"] == "failed"
        assert run["error"].startswith("checkpoints: none verifies (checkpoint-6, checkpoint-9)")
    assert curve(run_id) == before and (run["step"] or 0) > 0
    assert [path.name for path in artifact.iterdir()] == ["adapter_model.safetensors"]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(killed: Any) -> None:
    tiny, run_id = killed
    before = curve(run_id)
    recipe = runs.get(run_id)["recipe"]
    runs.update(run_id, recipe=recipe.replace("learning_rate: 0.001", "learning_rate: 0.0005"))
    assert tiny.run(queue.resume_run(run_id))[0] == 0
    run = runs.get(run_id)
    assert run["state"] == "failed" and run["error"] == (
        "checkpoint-9: is of another run: training.learning_rate was 0.001, is 0.0005. "
        "Undo that to resume, or branch a new run from this checkpoint."
    )
    assert curve(run_id) == before and (tiny.checkpoints(run_id) / "checkpoint-9").is_dir()
    # What changes no result may change: saves, and the memory that a step takes.
    changed = recipe.replace("save_steps: 3", "save_steps: 5").replace(
        "price_per_hour: null", "price_per_hour: 2"
    )
    runs.update(run_id, recipe=changed)
    assert tiny.run(queue.resume_run(run_id))[0] == 0
    assert runs.get(run_id)["state"] == "completed"
    assert curve(run_id) == tiny.whole.curves["autograd"]


def test_history_is_whole_whatever_its_rewriting_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics_history.jsonl"
    lines = [json.dumps({"step": step}) for step in range(5)]
    path.write_text("\n".join(lines) + "\n")

    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "replace", full)
    with pytest.raises(OSError):
        resume.cut_history(path, 2)
    assert path.read_text().splitlines() == lines
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
