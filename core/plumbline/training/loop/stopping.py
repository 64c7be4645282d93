"""What held-out losses decide: when to stop early, and which step's adapter a run ends with.

The best adapters wait in files of their own, so no checkpoint has to be kept for them. All is read
from what was evaluated and from those files: a resumed run goes on as if it had not stopped.
"""

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from plumbline.config.schema import RunConfig
from plumbline.jobs.job import Job
from plumbline.store import runs


class LastEvaluation(TrainerCallback):
    """Has the last step evaluated where it counts like any other."""

    def __init__(self, config: RunConfig) -> None:
        self.counts = config.training.chooses

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.counts and state.global_step >= state.max_steps:
            control.should_evaluate = True


class Ending(TrainerCallback):
    """Stops early, keeps the adapter of the best evaluation, and puts it back at the end.

    :param folder: where the best adapters are kept
    :ivar taken: the step whose adapter was put back; None when the last one's stays
    """

    def __init__(self, config: RunConfig, job: Job, model: Any, folder: Path) -> None:
        self.training, self.job, self.model, self.folder = config.training, job, model, folder
        metric = config.training.best_metric
        self.metric = f"eval_loss/{metric}" if metric else "eval_loss"
        self.begun = False  # a step was made
        self.taken: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for path in self._kept():
            if _step(path) > state.global_step:  # the steps that it came after are gone through again
                path.unlink()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            return
        losses = evaluated(state.log_history, self.metric)
        if not losses:
            return
        if self.training.load_best_model_at_end and losses[-1][1] <= min(loss for _, loss in losses):
            self._keep(state.global_step)
        waited = without_improvement(losses, self.training.min_improvement)
        patience = self.training.early_stopping_patience
        # An evaluation that is made up for before a first step is too late to end there.
        ended = patience is not None and waited >= patience and self.begun
        if ended and state.global_step < state.max_steps:
            text = (
                f"stopped early after step {state.global_step} of {state.max_steps}: "
                f"{waited} evaluations without improvement"
            )
            runs.event(text, self.job.run_id, self.job.id)
            # It has ended, not been interrupted: there is nothing to resume.
            state.max_steps = state.global_step
            runs.update(self.job.run_id, total_steps=state.max_steps)
            control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the best adapter back, unless the user stopped the run before its end."""
        if not self.training.load_best_model_at_end or state.global_step < state.max_steps:
            return
        losses = dict(evaluated(state.log_history, self.metric))
        kept = [path for path in self._kept() if _step(path) in losses]
        if not kept:
            return
        best = min(kept, key=lambda path: (losses[_step(path)], -_step(path)))
        self._load(best)
        self.taken = step = _step(best)
        loss = dict(evaluated(state.log_history, "eval_loss"))[step]
        runs.update(self.job.run_id, eval_loss=loss)
        before = [
            entry[self.metric] for entry in state.log_history if self.metric in entry and not entry["step"]
        ]
        if not before or losses[step] < before[0]:
            runs.update(self.job.run_id, best_eval_loss=loss, best_step=step)
        else:
            at_first = next(entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry)
            runs.update(self.job.run_id, best_eval_loss=at_first, best_step=0)
        text = f"the adapter is that of step {step}, the best by {self.metric} ({losses[step]:.4g})"
        runs.event(text, self.job.run_id, self.job.id)

    def _kept(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), key=_step)

    def _keep(self, step: int) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step-{step}.safetensors"
        staged = final.with_suffix(".new")
        save_file({name: p.detach().cpu().contiguous() for name, p in _trained(self.model)}, staged)
        with open(staged, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(staged, final)
        # Should newer checkpoints not verify, an older best is gone back to as well.
        for path in self._kept()[: -(self.training.keep_checkpoints + 1)]:
            path.unlink()

    def _load(self, path: Path) -> None:
        from safetensors.torch import load_file

        held = load_file(path)
        for name, parameter in _trained(self.model):
            # Into the same memory: the engine computes from it.
            parameter.data.copy_(held[name])


def evaluated(history: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Steps and held-out losses so far, the base's own (step 0) left out."""
    return [(entry["step"], entry[metric]) for entry in history if metric in entry and entry["step"]]


def without_improvement(losses: list[tuple[int, float]], least: float) -> int:
    """Evaluations since the last that was better than all before by at least this share."""
    best, waited = float("inf"), 0
    for _, loss in losses:
        if loss < best - abs(best) * least if best < float("inf") else True:
            best, waited = loss, 0
        else:
            waited += 1
    return waited


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
