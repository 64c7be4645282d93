"""Numbers of steps that follow from a recipe."""

import math

from plumbline.config.schema import RunConfig


def total_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of a run over this many rows (transformers' own arithmetic)."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    per_epoch = math.ceil(rows / config.training.effective_batch)
    return max(1, math.ceil(config.training.epochs * per_epoch))


def intervals(config: RunConfig, steps: int) -> tuple[int, int]:
    """Optimizer steps between evaluations, and between checkpoints."""
    training = config.training
    evaluated = training.eval_steps or max(1, steps // 10)
    saved = training.save_steps or max(1, steps // 5)
    # What is resumed from must not be older than the evaluations that the best came from.
    return evaluated, evaluated if training.load_best_model_at_end else saved
