"""A process beside the first of a run: it computes its share of every step, and writes nothing down.

It gets everything from the first: recipe, tokens, and the checkpoint to go on from. It needs the base
model where the recipe says, and no workspace.
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from plumbline import environment
from plumbline.distributed import process_group
from plumbline.errors import StopRequested, message_of
from plumbline.jobs import process
from plumbline.jobs.job import Job
from plumbline.models import out_of_memory, stack
from plumbline.models.hardware import release_memory
from plumbline.training.ranks.launcher import FAILED, OUT_OF_MEMORY
from plumbline.training.ranks.task import RankTask


class NullJob(Job):
    """The job as a process sees it that follows: nothing is told, and only the first is asked to stop."""

    def __init__(self, order: RankTask) -> None:
        self.payload: dict[str, Any] = {"resume": order.checkpoint is not None}

    def event(self, text: str, level: str = "info") -> None:
        return

    def log(self, text: str) -> None:
        return

    def running(self) -> None:
        return

    def report(self, phase: str, progress: float | None = None) -> None:
        return

    def stop_requested(self) -> bool:
        return False


def main() -> None:
    """A process that the first one of its machine has started."""
    environment.set_defaults()
    environment.quiet_libraries()
    process.live_with_parent()
    process.listen()
    code = serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> int:
    """Follow until the first process has nothing more to do. :returns: the exit code"""
    process_group.rank_and_size()  # before anything asks for a GPU
    stack.ready()
    joined = process_group.init()
    try:
        while (order := joined.broadcast(None)) is not None:
            _follow(order)
            del order
            release_memory()
    except Exception as error:
        traceback.print_exc()
        print(message_of(error), flush=True)
        return OUT_OF_MEMORY if out_of_memory.ran_out(error) else FAILED
    process_group.destroy()
    return 0


def _follow(order: RankTask) -> None:
    from plumbline.training import run

    with tempfile.TemporaryDirectory(prefix="plumbline-") as folder:
        job, checkpoint = NullJob(order), order.unpacked(Path(folder))
        built = run.build(job, order.begun(), Path(folder), checkpoint, _silent())
        run.begin_alike(built.model)
        try:
            run.steps(built.trainer, job, checkpoint)
        except StopRequested:
            return  # before a first step: the first process ends this one
        run.agreed_digest(built.model)


def _silent() -> Any:
    """In place of `plumbline.training.loop.record.Record`."""
    import torch
    from transformers import TrainerCallback

    class Silent(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Dropout and noise of its own: the same for all would count as one drawing.
            torch.manual_seed(args.seed + 1_000_003 * process_group.current().rank + state.global_step)

        def step_done(self, step: int, tokens: int, seconds: float) -> None:
            return

        def write(self, state: Any = None, sync: bool = False) -> None:
            return

    return Silent()
