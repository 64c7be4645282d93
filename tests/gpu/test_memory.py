"""What jobs leave on the GPU, and what becomes of a run that does not fit: pytest -m gpu -s tests/gpu

On a machine without a GPU the same is done, and nothing is measured.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plumbline import api, python_process
from plumbline.chat import session
from plumbline.config import schema
from plumbline.evaluation.generate import Task
from plumbline.jobs import queue
from plumbline.jobs.process import Process
from plumbline.models import hardware
from plumbline.planner import cost
from plumbline.store import datasets, runs
from plumbline.training import assembly
from plumbline.training.loop import record
from plumbline.training.loop.trainer import Trainer
from plumbline.worker import supervisor, worker
from tests.faults.waiting import until
from tests.gpu import child
from tests.runs import add, do, recipe

pytestmark = pytest.mark.gpu
MIB = 1024**2
OF_CHILD, OF_THREAD, DRIFT = 8 * MIB, 64 * MIB, 32 * MIB
ROOM = 2048 * MIB  # for a run that needs three times as much
SECONDS = 120.0


def cuda() -> bool:
    return hardware.device().value == "cuda"


def used() -> int:
    """Bytes of the GPU that any process holds."""
    if not cuda():
        return 0
    import torch

    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def kept() -> tuple[int, int]:
    """Bytes that torch's tensors hold in this process, and bytes that it keeps for more."""
    import torch

    return hardware.allocated_bytes(), torch.cuda.memory_reserved() if cuda() else 0


def told(sizes: Any) -> str:
    return ", ".join(f"{size / MIB:.1f}" for size in sizes) + " MiB"


def long_rows(folder: Path) -> str:
    """A dataset whose rows are cut at 1,024 tokens."""
    path = folder / "long.jsonl"
    answer = "the road goes ever on and on, down from the door where it began. " * 100
    rows = [{"prompt": f"Go on. ({number})", "completion": f"{number}: {answer}"} for number in range(160)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return datasets.get(api.add_data(path))["name"]


def hungry(dataset: str) -> schema.RunConfig:
    """Settings that take about 7 GiB on a GPU; without one, a few rows."""
    rows = 128 if cuda() else 2
    return recipe(
        data={"dataset": dataset, "max_rows": rows},
        training={
            "max_length": 1024,
            "effective_batch": rows,
            "micro_batch_tokens": 1024 * rows,
            "gradient_checkpointing": "none",
            "max_steps": 2,
            "eval_steps": 2,
        },
        evaluation={"max_rows": 2},
    )


@contextmanager
def before_step(number: int, act: Callable[[Trainer], None]) -> Iterator[None]:
    honest = Trainer.training_step

    def step(trainer: Trainer, *given: Any, **named: Any) -> Any:
        if trainer.state.global_step + 1 == number:
            act(trainer)
        return honest(trainer, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "WRITE_SECONDS", 0.0)  # Stop is heard at once
        patch.setattr(Trainer, "training_step", step)
        yield


def take_everything(trainer: Trainer) -> None:
    """Ask for more until the GPU has no more; what was had stays in this frame."""
    import torch

    if not cuda():
        raise torch.OutOfMemoryError("Tried to allocate 8.00 GiB.")
    held = []
    while True:
        held.append(torch.empty(8 * hardware.GIB, dtype=torch.uint8, device="cuda"))


def complete() -> None:
    assert do("train", add(recipe()))["state"] == "completed"


def stop() -> None:
    with before_step(2, lambda trainer: queue.stop(trainer.job.id)):
        assert do("train", add(recipe()))["state"] == "stopped"


def run_out() -> None:
    with before_step(2, take_everything):
        job = do("train", add(recipe()))
    assert job["state"] == "failed" and re.match(r"out of (GPU )?memory at step 2: 8.00 GiB", job["error"])


def chat() -> None:
    """The run that was completed last is talked to."""
    run_id = next(run["id"] for run in runs.listed() if run["state"] == "completed")
    asked = Task([{"role": "user", "content": "Hello, who are you?"}], "")
    settings = session.Generation(max_new_tokens=8)
    answers = session.answer(run_id, dict.fromkeys(session.SIDES, asked), settings, threading.Event())
    assert list(answers)
    del answers
    assert session.close() is not None
    hardware.release_memory()


ENDS: tuple[Callable[[], None], ...] = (complete, stop, run_out, chat)


def test_b7_f19_jobs_of_a_thread_leave_no_memory_behind(samples: Path) -> None:
    for end in ENDS:
        end()  # the context and the kernels that were loaded stay, once
    idle, left, stay = used(), [], []
    for number in range(10):
        ENDS[number % len(ENDS)]()
        left.append(used() - idle)
        stay.append(kept())
    most = [max(each) for each in zip(*stay, strict=True)]
    print(f"\nten jobs of a thread left {told(left)}; torch held and kept at most {told(most)}")
    assert max(left) <= OF_THREAD and max(most) <= OF_THREAD
    assert left[-1] - left[0] <= DRIFT


def test_b7_a_forecast_keeps_no_memory(samples: Path) -> None:
    complete()
    held, idle = kept(), used()
    cost.device_speed.cache_clear()
    cost.device_speed(hardware.device().value, "bfloat16")
    after = kept()
    print(f"\nmeasuring the device left {told([used() - idle])}; torch held and kept {told(after)}")
    assert after[1] - held[1] <= OF_THREAD and used() - idle <= OF_THREAD


@contextmanager
def working() -> Iterator[worker.Worker]:
    made = worker.Worker("process", poll_seconds=0.02)
    made.start()
    try:
        yield made
    finally:
        made.end(10)
        made.join(30)


def spare(made: worker.Worker) -> Process | None:
    """The child that waits, once it has imported everything."""
    assert made._supervisor is not None
    waiting = made._supervisor._spare
    return waiting if waiting is not None and child.READY.encode() in waiting._last else None


def watched(made: worker.Worker, job_id: int, look: Callable[[], None] = lambda: None) -> int:
    """Wait for a job and the end of its process. :returns: the most of the GPU that was in use meanwhile"""
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, used())
        look()
        assert made._supervisor is not None
        return queue.get(job_id)["state"] in queue.ENDED and made._supervisor._running is None

    until(over, SECONDS)
    return most


def test_b7_children_give_back_every_byte_and_one_that_waits_takes_none(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_process, "START", child.START)
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.0)
    whole = add(recipe())
    endless = add(recipe(training={"max_steps": 100_000, "eval_steps": 100_000, "save_steps": 100_000}))
    too_large = add(hungry(long_rows(tmp_path)))
    idle, rows = used(), []

    def stop_when_it_has_begun() -> None:
        if runs.get(endless)["step"] and runs.get(endless)["state"] == "running":
            queue.stop_run(endless)

    with working() as made:
        until(lambda: spare(made), SECONDS)
        waits = used() - idle
        for run_id, state, look, payload in (
            (whole, "completed", lambda: None, {}),
            (endless, "stopped", stop_when_it_has_begun, {}),
            (too_large, "failed", lambda: None, {"limit": ROOM}),
            (whole, "completed", lambda: None, {}),
        ):
            job_id = queue.enqueue("train", run_id, **payload)
            most = watched(made, job_id, look)
            job = queue.get(job_id)
            assert job["state"] == state, job["error"]
            until(lambda: used() - idle <= OF_CHILD, 15)  # the driver takes a moment
            rows.append((most - idle, used() - idle))
            if state == "failed":
                assert job["error"].startswith("out of ") and job["result"]["suggestion"]
                print(f"\n{job['error']}")
    print(
        f"\na child that waits takes {told([waits])}; children that completed, were stopped, ran out of "
        f"memory, completed took {told(row[0] for row in rows)}, left {told(row[1] for row in rows)}"
    )
    assert waits <= OF_CHILD
    if cuda():
        assert min(most for most, _ in rows) > 100 * MIB  # else what is looked at shows nothing


@contextmanager
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Once a run is planned, somebody else takes the GPU's memory, but for ROOM."""
    import torch

    taken: list[Any] = []
    honest = assembly.planned

    def planned(*given: Any, **named: Any) -> Any:
        outcome = honest(*given, **named)
        if cuda():
            torch.cuda.empty_cache()
            size = torch.cuda.mem_get_info()[0] - ROOM
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        return outcome

    def out(trainer: Trainer) -> None:
        if not cuda() and trainer.packer.limit > 1024:
            raise torch.OutOfMemoryError(
                "Tried to allocate 2.50 GiB. GPU 0 has 8.00 GiB, of which 1.25 GiB is free."
            )

    with monkeypatch.context() as patch, before_step(1, out):
        patch.setattr(assembly, "planned", planned)
        yield taken


def test_f18_a_run_that_does_not_fit_is_told_with_numbers_and_what_it_suggests_fits(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete()  # the context and the kernels that were loaded stay
    idle = used()
    config = hungry(long_rows(tmp_path))
    with crowded(monkeypatch) as taken:
        for tries in range(1, 7):
            run_id = add(config)
            job = do("train", run_id)
            taken.clear()
            hardware.release_memory()
            if job["state"] == "completed":
                break
            print(f"\ntry {tries}: {job['error']}")
            found = re.match(
                r"out of (?:GPU )?memory (?:at step 1|in the evaluation at step \d): (?:about )?([\d.]+) GiB "
                r"were needed, ([\d.]+) GiB free\. Start again with ",
                job["error"],
            )
            assert found and float(found[2]) <= ROOM / hardware.GIB
            assert runs.get(run_id)["state"] == "failed" and kept()[0] <= OF_THREAD
            assert used() - idle <= OF_THREAD
            config = schema.changed(config, job["result"]["suggestion"])
    print(f"\nthe run trained at try {tries}, with {config.training.micro_batch_tokens} tokens at once")
    assert job["state"] == "completed" and tries > 1
    complete()
    assert used() - idle <= OF_THREAD and max(kept()) <= OF_THREAD
