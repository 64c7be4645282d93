"""F10, F16, F18, F21, F22: what ends a run early, and what it leaves then."""

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.batches import prepare
from plumbline.checkpoints import folders
from plumbline.errors import Interrupted
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.models import load, out_of_memory
from plumbline.store import runs
from plumbline.training import outputs
from plumbline.training import run as training
from plumbline.training.loop import guard, record
from plumbline.training.loop.held_out import HeldOut
from plumbline.training.loop.trainer import Trainer
from tests.faults import forked
from tests.faults.conftest import Workspace
from tests.faults.forked import curve
from tests.runs import do

TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB of which "
    "1.25 GiB is free. Process 1 has 6.75 GiB memory in use."
)


@pytest.fixture(autouse=True)
def heard_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop is looked for at most once a second otherwise."""
    monkeypatch.setattr(record, "WRITE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the runs that these are compared with
    yield
    torch.set_num_threads(before)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, what: Callable[[Trainer], Any]) -> None:
    """Have something happen before a step is computed."""
    honest = Trainer.training_step

    def step(trainer: Trainer, *given: Any, **named: Any) -> Any:
        if trainer.state.global_step + 1 == number:
            what(trainer)
        return honest(trainer, *given, **named)

    monkeypatch.setattr(Trainer, "training_step", step)


def spoil(trainer: Trainer, value: float = math.nan) -> None:
    weights = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        weights[0].fill_(value)


def kept(tiny: Workspace, run_id: int) -> list[str]:
    folder = tiny.checkpoints(run_id)
    assert all(folders.fault(path) is None for path in folders.listed(folder))
    return [path.name for path in folders.listed(folder)]


def earlier_artifact(monkeypatch: pytest.MonkeyPatch, tiny: Workspace, run_id: int) -> Path:
    """An adapter that is there once the run has begun: a run whose folder holds one before does not start."""
    folder = tiny.home / "runs" / str(run_id) / "artifact"

    def write(_: Trainer) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"an earlier one")

    at_step(monkeypatch, 1, write)
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("path", ["autograd", "decoder"])
@pytest.mark.parametrize("every", [1, 5])
def test_f21_weights_that_become_nan_end_the_run_at_that_step(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch, path: str, every: int
) -> None:
    at_step(monkeypatch, 6, spoil)
    run_id, _ = tiny.add(path, logging_steps=every)
    earlier = earlier_artifact(monkeypatch, tiny, run_id)
    job = do("train", run_id)
    assert job["state"] == "failed" and job["error"].startswith("loss became NaN at step 6. Halve ")
    assert kept(tiny, run_id) == ["checkpoint-3"]  # a save was due at 6
    assert earlier.read_bytes() == b"an earlier one"
    assert max(step for step, *_ in curve(run_id)) == 6 and runs.get(run_id)["step"] == 6


def test_f21_a_gradient_that_is_infinite_ends_the_run_at_that_step(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Trainer._clip_grad_norm

    def infinite(trainer: Trainer, *given: Any) -> Any:
        norm = honest(trainer, *given)
        return torch.tensor(math.inf) if trainer.state.global_step == 4 else norm

    monkeypatch.setattr(Trainer, "_clip_grad_norm", infinite)
    run_id, _ = tiny.add()
    job = do("train", run_id)
    assert job["error"].startswith("gradient norm became infinite at step 5.")
    assert kept(tiny, run_id) == ["checkpoint-3"]


@pytest.mark.parametrize("last", [False, True], ids=["in a save", "at the end"])
def test_f21_weights_that_are_spoilt_after_their_loss_are_never_written(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """The loss of step 6 is finite still, what the optimizer made of the weights is not."""
    name = "on_train_end" if last else "on_step_end"
    honest = getattr(record.Record, name, None)

    def spoilt(self: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        if honest is not None:
            honest(self, args, state, control, **named)
        if last or state.global_step == 6:
            weights = [p for p in named["model"].parameters() if p.requires_grad]
            weights[0].data.fill_(math.inf)

    monkeypatch.setattr(record.Record, name, spoilt)
    run_id, _ = tiny.add(eval_steps=12)  # so that at the end nothing measures them
    earlier = earlier_artifact(monkeypatch, tiny, run_id)
    job = do("train", run_id)
    assert job["state"] == "failed"
    if not last:
        assert "adapter of " in job["error"] and "became infinite at step 6." in job["error"]
    assert kept(tiny, run_id) == (["checkpoint-9", "checkpoint-12"] if last else ["checkpoint-3"])
    assert earlier.read_bytes() == b"an earlier one"
    assert [each.name for each in earlier.parent.parent.iterdir() if "artifact" in each.name] == ["artifact"]


def test_f21_states_of_the_optimizer_are_looked_at_too() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    guard.check_finite_weights(model, optimizer, 3)
    optimizer.state[model.bias]["exp_avg"][0] = math.nan
    with pytest.raises(Exception, match="optimizer state of bias became NaN at step 3"):
        guard.check_finite_weights(model, optimizer, 3)


def test_f21_a_loss_that_leaps_is_told_and_training_goes_on(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Trainer.training_step

    def leaping(trainer: Trainer, *given: Any, **named: Any) -> Any:
        loss = honest(trainer, *given, **named)
        return loss * 1000 if trainer.state.global_step == 6 else loss

    monkeypatch.setattr(Trainer, "training_step", leaping)
    run_id, _ = tiny.add()
    assert do("train", run_id)["state"] == "completed"
    told = [event for event in runs.events(run_id) if "leapt" in event["text"]]
    assert len(told) == 1 and told[0]["level"] == "warning" and "at step 7;" in told[0]["text"]


ENDS = {
    "torch": lambda: torch.OutOfMemoryError(TORCH_SAYS),
    "host": lambda: MemoryError(),
    "cuda": lambda: RuntimeError("CUDA error: out of memory"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_f18_memory_that_runs_out_at_a_step_is_explained_with_smaller_settings(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def out(trainer: Trainer) -> None:
        raise ENDS[kind]()

    at_step(monkeypatch, 6, out)
    run_id, _ = tiny.add(micro_batch_tokens=1024)
    job = do("train", run_id)
    assert job["state"] == "failed"
    assert job["error"].startswith("out of memory at step 6: ")  # this machine's, not a GPU's
    if kind == "torch":
        assert "step 6: 2.50 GiB were needed, 1.25 GiB free. " in job["error"]
    settings = job["result"]["suggestion"]
    assert settings and all(key.startswith("training.") for key in settings)
    for key, value in settings.items():
        assert f"{key.removeprefix('training.')} {value}" in job["error"]
    assert kept(tiny, run_id) == ["checkpoint-3"]
    assert [step for step, *_ in curve(run_id)] == list(range(6))
    assert "Traceback" in (tiny.checkpoints(run_id).with_name("log.txt")).read_text()


def test_f18_memory_that_runs_out_in_a_save_keeps_the_checkpoint_before(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Trainer._save_optimizer_and_scheduler

    def out(trainer: Trainer, folder: str) -> None:
        if trainer.state.global_step == 6:
            raise torch.OutOfMemoryError(TORCH_SAYS)
        honest(trainer, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", out)
    run_id, _ = tiny.add()
    job = do("train", run_id)
    assert job["error"].startswith("out of memory in the save at step 6: 2.50 GiB were needed")
    assert kept(tiny, run_id) == ["checkpoint-3"]
    assert not (tiny.checkpoints(run_id) / folders.STAGING).exists()


@pytest.mark.parametrize("fits", [True, False])
def test_f18_an_evaluation_that_does_not_fit_is_tried_in_halves(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    honest, limits = HeldOut.sums_within, []

    def out(held_out: HeldOut, limit: int) -> Any:
        limits.append(limit)
        if len(limits) > 1 and (not fits or limits.count(limits[0]) > 1 and limit == limits[0]):
            raise torch.OutOfMemoryError(TORCH_SAYS)
        return honest(held_out, limit)

    monkeypatch.setattr(HeldOut, "sums_within", out)
    run_id, _ = tiny.add()
    job = do("train", run_id)
    told = [event["text"] for event in runs.events(run_id) if "ran out of memory" in event["text"]]
    assert told[0].startswith("the evaluation at step 4 ran out of memory with ")
    assert limits[2] == limits[1] // 2
    if fits:
        assert job["state"] == "completed" and len(told) == 1
        assert limits[2:] == [limits[2]] * (len(limits) - 2)  # it stays with what fits
    else:
        assert job["error"].startswith("out of memory in the evaluation at step 4: 2.50 GiB were needed")
        assert kept(tiny, run_id) == ["checkpoint-3"]


def test_f18_other_errors_are_no_lack_of_memory() -> None:
    assert not out_of_memory.ran_out(RuntimeError("CUDA error: device-side assert triggered"))
    assert not out_of_memory.ran_out(ValueError("out of memory"))


def test_f22_a_clock_that_jumps_in_a_save_moves_neither_rotation_nor_durations(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, jumps, real = Trainer._save_checkpoint, iter([-3600.0, 86400.0, -1e6, 0.0]), time.time

    def jumping(trainer: Trainer, *given: Any) -> None:
        moved = next(jumps)
        monkeypatch.setattr(time, "time", lambda: real() + moved)
        honest(trainer, *given)

    monkeypatch.setattr(Trainer, "_save_checkpoint", jumping)
    run_id, _ = tiny.add()
    assert do("train", run_id)["state"] == "completed"
    assert kept(tiny, run_id) == ["checkpoint-9", "checkpoint-12"]
    assert [step for step, *_ in curve(run_id)] == list(range(13))
    run = runs.get(run_id)
    summary, outcome = json.loads(run["summary"]), json.loads(run["outcome"])
    assert 0 < outcome["seconds_per_step"] * 12 < summary["seconds"] < 3600
    assert all(p["tokens_per_second"] is None or p["tokens_per_second"] > 0 for p in runs.metrics(run_id))


def on_call(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, act: Callable[[], None]) -> None:
    honest = getattr(place, name)

    def acting(*given: Any, **named: Any) -> Any:
        act()
        return honest(*given, **named)

    monkeypatch.setattr(place, name, acting)


# In which call of what Stop comes, and how it ends.
PHASES = {
    "reading data": (prepare, "encode_all", 1, "stopped"),
    "model load": (load, "base_model", 1, "stopped"),
    "first step": (Trainer, "training_step", 1, "stopped"),
    "evaluation of the base": (HeldOut, "sums_within", 1, "stopped"),
    "evaluation": (HeldOut, "sums_within", 2, "stopped"),
    "last evaluation": (HeldOut, "sums_within", 4, "stopped"),
    "save": (folders, "publish", 1, "stopped"),
    "final save": (outputs, "write", 1, "completed"),
}


@pytest.mark.parametrize("ask", [queue.stop, queue.end], ids=["F16-stop", "F10-end"])
@pytest.mark.parametrize("phase", PHASES)
def test_stop_and_end_are_heard_within_a_step_in_every_phase(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch, phase: str, ask: Callable[[int], None]
) -> None:
    place, name, number, state = PHASES[phase]
    run_id, job_id = tiny.add()
    steps: list[int] = []
    calls = itertools.count(1)

    def act() -> None:
        if next(calls) == number:
            ask(job_id)
            steps.append(-1)

    on_call(monkeypatch, Trainer, "training_step", lambda: steps.append(1))
    on_call(monkeypatch, place, name, act)
    assert queue.claim(job_id)
    raised = None
    try:
        training.train(Job(queue.get(job_id)))
    except Exception as error:
        raised = error
    if state == "completed":
        assert raised is None
    else:
        assert type(raised).__name__ == ("Interrupted" if ask is queue.end else "StopRequested")
    assert sum(step for step in steps[steps.index(-1) :] if step > 0) <= 1
    made = sum(step for step in steps if step > 0)
    if made:
        assert f"checkpoint-{made}" in kept(tiny, run_id)  # nothing is lost, and a save is whole
    if isinstance(raised, Interrupted):
        assert not (tiny.checkpoints(run_id).with_name("artifact")).exists()
    if raised is not None:
        queue.set_state(job_id, "interrupted")
        monkeypatch.undo()
        monkeypatch.setenv("PLUMBLINE_HOME", str(tiny.home))
        assert tiny.run(queue.resume_run(run_id))[0] == 0
    else:
        queue.set_state(job_id, "completed")
    assert curve(run_id) == tiny.whole.curves["autograd"]


def test_f10_stop_goes_before_end(tiny: Workspace) -> None:
    _, job_id = tiny.add()
    queue.claim(job_id)
    queue.end(job_id)
    assert queue.stop_requested(job_id) and queue.ending(job_id)
    queue.stop(job_id)
    assert queue.stop_requested(job_id) and not queue.ending(job_id)
    queue.end(job_id)
    assert not queue.ending(job_id)


def test_f10_a_run_that_has_made_its_last_step_is_finished_and_not_trained_on(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, job_id = tiny.add(max_steps=9, save_steps=9)
    on_call(monkeypatch, outputs, "summary", lambda: queue.end(job_id))
    fault = forked.Fault("/artifact", 1)
    assert tiny.run(job_id, fault)[0] == -9
    queue.mark_orphans()
    before = curve(run_id)
    code, made = tiny.run(queue.resume_run(run_id))
    assert (code, made) == (0, 0) and runs.get(run_id)["state"] == "completed"
    assert curve(run_id) == before and [step for step, *_ in before] == list(range(10))
