"""Processes of the GPU tests: a worker's child whose memory can be limited, and a run that is killed."""

import os
import signal
from typing import Any

from plumbline import python_process
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.worker import child, worker

READY = "it has imported everything"
START = python_process.START.replace("MODULE", "tests.gpu.child")


def main() -> None:
    """As a worker's child, but it says when it is ready, and limits the GPU for a job that says ``limit``."""
    get_ready, perform = child._get_ready, worker.perform

    def told() -> None:
        get_ready()
        print(READY, flush=True)

    def limited(job: Job) -> None:
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
    from plumbline.training.loop.trainer import Trainer

    def step(trainer: Any, *given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 2.50 GiB.")

    Trainer.training_step = step  # type: ignore[method-assign]


def killed(job_id: int, number: int) -> None:
    """Do a training job, and be killed before a step of it."""
    from plumbline.training.loop.trainer import Trainer

    honest = Trainer.training_step

    def step(trainer: Trainer, *given: Any, **named: Any) -> Any:
        if trainer.state.global_step + 1 == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(trainer, *given, **named)

    Trainer.training_step = step  # type: ignore[method-assign]
    worker.work_on(Job(queue.get(job_id)))
