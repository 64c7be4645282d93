"""TRL's SFTTrainer with our own held-out evaluation, checkpoints and record of the run."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from trl import SFTTrainer

from core.data.xray import Encoded
from core.errors import StudioError
from core.evaluation.loss import held_out_loss
from core.jobs.worker import Job
from core.models import hardware
from core.store import runs
from core.training import checkpoints


class Trainer(SFTTrainer):
    """Evaluates token-weighted, and writes checkpoints that are whole or absent."""

    model: Any
    processing_class: Any

    def __init__(
        self,
        *,
        held_out: list[Encoded],
        sources: list[str],
        shuffled: bool,
        eval_batch: int,
        keep: int,
        job: Job,
        **kwargs: Any,
    ) -> None:
        # The dataset only tells transformers that there is something to evaluate.
        super().__init__(eval_dataset=kwargs["train_dataset"].select(range(1)), **kwargs)
        self.held_out, self.eval_batch, self.keep, self.job = held_out, eval_batch, keep, job
        self.sources, self.shuffled = sources, shuffled
        # TRL puts the adapter of a 4-bit base in bfloat16; see core.models.adapters.attach.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        result = held_out_loss(
            self.model,
            self.held_out,
            self.processing_class.pad_token_id,
            self.eval_batch,
            each_batch=lambda done: self.job.check_stop(),
            sources=self.sources,
        )
        metrics = {f"{metric_key_prefix}_loss": result.loss}
        # One curve a dataset of a mix: a rising one hides in the sum.
        metrics |= {f"{metric_key_prefix}_loss/{name}": loss for name, loss in result.by_source.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """A curriculum is kept in its order; transformers would shuffle it."""
        if self.shuffled:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers writes into the final folder file by file; here it is staged."""
        folder = Path(str(self.args.output_dir))
        staging = folder / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(folder)
        name = f"checkpoint-{self.state.global_step}"
        checkpoints.publish(staging / name, folder / name)
        checkpoints.rotate(folder, self.keep)


class Record(TrainerCallback):
    """Writes what is measured to SQLite and metrics_history.jsonl, and listens for Stop."""

    def __init__(self, job: Job, history: Path) -> None:
        self.job, self.history = job, history
        self.tokens, self.logged_at = 0.0, time.perf_counter()
        self.step_seconds: float | None = None
        self.step_began = time.perf_counter()
        self.best = math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logged_at = time.perf_counter()
        run = runs.get(self.job.run_id)
        self.best = run["best_eval_loss"] if run["best_eval_loss"] is not None else math.inf
        runs.update(self.job.run_id, total_steps=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self.step_began
        # The first step also pays for warming up; later ones are averaged.
        self.step_seconds = (
            seconds
            if state.global_step <= 2 or self.step_seconds is None
            else (0.9 * self.step_seconds + 0.1 * seconds)
        )
        left = (state.max_steps - state.global_step) * self.step_seconds
        runs.update(self.job.run_id, step=state.global_step, seconds_left=left)
        self.job.report(
            f"training, step {state.global_step} of {state.max_steps}", state.global_step / state.max_steps
        )
        if self.job.stop_requested() and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        values = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "train_runtime" in values:
            return
        if "loss" in values:
            now = time.perf_counter()
            tokens = values.get("num_tokens", 0.0)
            if tokens > self.tokens > 0:
                values["tokens_per_second"] = (tokens - self.tokens) / (now - self.logged_at)
            self.tokens, self.logged_at = tokens, now
            values["memory_gb"] = hardware.memory_used_gb()
            runs.update(self.job.run_id, loss=_or_none(values["loss"]), memory_gb=values["memory_gb"])
        if "eval_loss" in values:
            self._note_eval(state.global_step, values["eval_loss"])
            self.logged_at = time.perf_counter()
        runs.record(self.job.run_id, state.global_step, values)
        with open(self.history, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **values}) + "\n")
        if not math.isfinite(values.get("loss", 0.0)):
            raise StudioError(
                f"step {state.global_step}",
                f"the loss became {values['loss']}",
                "Halve training.learning_rate; the last checkpoint before it is intact.",
            )

    def _note_eval(self, step: int, loss: float) -> None:
        change: dict[str, Any] = {"eval_loss": _or_none(loss)}
        if step == 0:
            change["base_eval_loss"] = _or_none(loss)
        elif loss < self.best:
            self.best = loss
            change |= {"best_eval_loss": loss, "best_step": step}
        runs.update(self.job.run_id, **change)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def cut_history(history: Path, step: int) -> None:
    """Drop the points past a checkpoint from metrics_history.jsonl; a torn last line goes too."""
    if not history.exists():
        return
    kept = []
    for line in history.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    history.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
