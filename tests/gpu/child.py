"""Processes of the GPU tests: a worker's child whose memory can be limited, and a run that is killed."""

import os
import signal
from typing import Any

from core.jobs import child, queue, worker

READY = "it has imported everything"
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tests.gpu.child import main; main()"


def main() -> None:
    """As core.jobs.child, but it says when it is ready, and limits the GPU for a job that says ``limit``."""
    get_ready, perform = child._get_ready, worker.perform

    def told() -> None:
        get_ready()
        print(READY, flush=True)

    def limited(job: worker.Job) -> None:
        if "limit" in job.payload:
            limit(job.payload["limit"])
        perform(job)

    child._get_ready, worker.perform = told, limited
    child.main()


def limit(size: int) -> None:
    """Let this process have no more than so many bytes of the GPU; without one, no training step at all."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
        return
    from core.training.trainer import Trainer

    def step(trainer: Any, *given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 2.50 GiB.")

    Trainer.training_step = step  # type: ignore[method-assign]


def killed(job_id: int, number: int) -> None:
    """Do a training job, and be killed before a step of it."""
    from core.training.trainer import Trainer

    honest = Trainer.training_step

    def step(trainer: Trainer, *given: Any, **named: Any) -> Any:
        if trainer.state.global_step + 1 == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(trainer, *given, **named)

    Trainer.training_step = step  # type: ignore[method-assign]
    worker.work_on(worker.Job(queue.get(job_id)))
