"""What a recipe decides about the end of its run, in words."""

from plumbline.config.schema import RunConfig
from plumbline.config.steps import intervals
from plumbline.models.hardware import Choice


def choices(config: RunConfig, steps: int) -> dict[str, Choice]:
    """What was decided about the end of a run, as far as the recipe leaves the usual way."""
    training, decisions = config.training, {}
    evaluated, saved = intervals(config, steps)
    if training.load_best_model_at_end:
        replaces_setting = training.save_steps not in (None, saved)
        why = f", in place of {training.save_steps}" if replaces_setting else ""
        decisions["checkpoints"] = Choice(
            f"every {saved} steps", f"with every evaluation, for the best one{why}"
        )
    if training.early_stopping_patience is not None:
        after = f"after {training.early_stopping_patience} evaluations, every {evaluated} steps"
        share = (
            f"an improvement of {training.min_improvement:.3g}" if training.min_improvement else "improvement"
        )
        decisions["early stopping"] = Choice(after, f"without {share}")
    return decisions
