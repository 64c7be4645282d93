"""One save of a run: what may not be saved is refused, room is asked for, the result is put in place."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plumbline.checkpoints import disk_space, folders
from plumbline.store import runs
from plumbline.training.loop import guard

SMALL_FILES = 100_000  # bytes of settings and states beside the tensors


def save(trainer: Any, write: Callable[[], None]) -> None:
    """Make a checkpoint of the trainer's state.

    :param write: writes its files into ``trainer.args.output_dir``
    :raises StudioError: when a weight is not finite, or the disk is full; earlier checkpoints stay then
    """
    folder, step = Path(str(trainer.args.output_dir)), trainer.state.global_step
    staging, name = folder / folders.STAGING, f"checkpoint-{step}"
    guard.check_finite_weights(trainer.model, trainer.optimizer, step)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    size = expected_bytes(trainer, folder)
    disk_space.require(folder, size)
    trainer.args.output_dir = str(staging)
    try:
        write()
        folders.publish(staging / name, folder / name, trainer.identity)
        folders.rotate(folder, trainer.keep, runs.awaited_steps(trainer.job.run_id))
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        if found := disk_space.explained(error, folder, size):
            raise found from error
        raise
    finally:
        trainer.args.output_dir = str(folder)
        shutil.rmtree(staging, ignore_errors=True)


def expected_bytes(trainer: Any, folder: Path) -> int:
    """The size of the last checkpoint; of the first, that of its tensors."""
    if before := folders.listed(folder):
        return folders.size_of(before[-1])
    weights = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    states = guard.tensors(dict(trainer.optimizer.state)) if trainer.optimizer is not None else []
    return SMALL_FILES + sum(tensor.numel() * tensor.element_size() for tensor in weights + states)
