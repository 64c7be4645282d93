"""A process beside the first of a run: it computes its share of every step, and writes nothing down.

It gets everything from the first: recipe, tokens, and the checkpoint to go on from. It needs the base
model where the recipe says, and no workspace.
"""

import os
import sys
import tempfile
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.errors import StopRequested, message_of
from core.jobs import process
from core.jobs.worker import Job, release_memory
from core.models import stack
from core.training import world
from core.training.crew import FAILED, OUT_OF_MEMORY
from core.training.plan import Plan
from core.training.prepare import Prepared


@dataclass(frozen=True)
class Order:
    """What the first process has the others do.

    :param checkpoint: the files to go on from by name; None begins anew
    """

    config: RunConfig
    prepared: Prepared
    plan: Plan
    checkpoint: dict[str, bytes] | None

    @classmethod
    def of(cls, config: RunConfig, prepared: Prepared, plan: Plan, checkpoint: Path | None) -> "Order":
        files = None
        if checkpoint is not None and plan.processes > 1:
            # What was drawn was drawn by the first process: the others draw numbers of their own.
            found = (
                path for path in checkpoint.rglob("*") if path.is_file() and "rng_state" not in path.name
            )
            files = {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in found}
            files["step"] = checkpoint.name.encode()
        return cls(config, prepared, plan, files)

    def begun(self) -> "Order":
        """Without the checkpoint, once it is where it is needed."""
        return replace(self, checkpoint=None)

    def unpacked(self, folder: Path) -> Path | None:
        """The checkpoint in a folder of this process's own."""
        if self.checkpoint is None:
            return None
        files = dict(self.checkpoint)
        found = folder / files.pop("step").decode()
        for name, data in files.items():
            path = found / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return found


class Following(Job):
    """The job as a process sees it that follows: nothing is told, and only the first is asked to stop."""

    def __init__(self, order: Order) -> None:
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
    process.live_with_parent()
    process.listen()
    code = serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> int:
    """Follow until the first process has nothing more to do. :returns: the exit code"""
    world.place()  # before anything asks for a GPU
    stack.ready()
    joined = world.join()
    try:
        while (order := joined.from_first(None)) is not None:
            _follow(order)
            del order
            release_memory()
    except Exception as error:
        from core.training import memory

        traceback.print_exc()
        print(message_of(error), flush=True)
        return OUT_OF_MEMORY if memory.ran_out(error) else FAILED
    world.leave()
    return 0


def _follow(order: Order) -> None:
    from core.training import run

    with tempfile.TemporaryDirectory(prefix="plumbline-") as folder:
        job, checkpoint = Following(order), order.unpacked(Path(folder))
        built = run.build(job, order.begun(), Path(folder), checkpoint, _silent())
        run.begin_alike(built.model)
        try:
            run.steps(built.trainer, job, checkpoint)
        except StopRequested:
            return  # before a first step: the first process ends this one
        run.agreed_digest(built.model)


def _silent() -> Any:
    """In place of `core.training.record.Record`."""
    import torch
    from transformers import TrainerCallback

    class Silent(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Dropout and noise of its own: the same for all would count as one drawing.
            torch.manual_seed(args.seed + 1_000_003 * world.current().rank + state.global_step)

        def step_done(self, step: int, tokens: int, seconds: float) -> None:
            return

        def write(self, state: Any = None, sync: bool = False) -> None:
            return

    return Silent()
