"""What a run writes down while it trains: to SQLite and metrics_history.jsonl. It also listens for Stop."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from plumbline.jobs.job import Job
from plumbline.models import hardware
from plumbline.store import runs
from plumbline.store.database import in_passing, writing
from plumbline.training.loop.guard import LossSpikes
from plumbline.training.loop.pace import EVALUATION, SAVE, StepClock

WRITE_SECONDS = 1.0  # points and progress are written at most this often; the page looks as often


class Record(TrainerCallback):
    """Collects what is measured, and writes it in one transaction now and then.

    Before a checkpoint, at an evaluation and at the end everything is written, so what a checkpoint
    goes on from is there.
    """

    def __init__(self, job: Job, history: Path) -> None:
        self.job, self.history = job, history
        self.clock: StepClock  # the trainer's, which sets it
        # The step that was timed last, the tokens until then (None: not known), and its second on the clock.
        self.done: tuple[int, int | None, float] = (0, None, 0.0)
        self.tokens_per_second: dict[int, float] = {}
        self.step_seconds: float | None = None
        self.best = math.inf
        self.points: list[tuple[int, dict[str, Any]]] = []
        self.change: dict[str, Any] = {}
        self.in_history = 0  # how many of the points are in the file, and wait for the database alone
        self.written_at = 0.0
        self.timed: list[tuple[int, float]] = []
        self.peak_gib, self.looked_at = 0.0, -math.inf
        self.leaps = LossSpikes()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done = (state.global_step, None, self.clock.mark()())
        run = runs.get(self.job.run_id)
        if run["best_eval_loss"] is not None:
            self.best = min(self.best, run["best_eval_loss"])
        runs.update(self.job.run_id, total_steps=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.change["step"] = state.global_step
        if self.step_seconds is not None:
            self.change["seconds_left"] = self._seconds_left(args, state)
        if time.perf_counter() - self.written_at < WRITE_SECONDS and state.global_step < state.max_steps:
            return
        self.write(state)
        if self.job.stop_requested() and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        values = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "train_runtime" in values:
            return
        if "loss" in values:
            if state.global_step in self.tokens_per_second:
                values["tokens_per_second"] = self.tokens_per_second.pop(state.global_step)
            values["memory_gb"] = self._memory()
            self.change |= {"loss": _or_none(values["loss"]), "memory_gb": values["memory_gb"]}
            if told := self.leaps.told(state.global_step, values["loss"]):
                self.job.event(told, "warning")
        if "base_loss" in values:
            self.change["base_eval_loss"] = _or_none(values["base_loss"])
        if "eval_loss" in values:
            self._note_eval(state.global_step, values["eval_loss"])
        self.points.append((state.global_step, values))
        finite = math.isfinite(values.get("loss", 0.0)) and math.isfinite(values.get("grad_norm", 0.0))
        if not finite:
            # The run ends at this step, though the device may be one ahead.
            self.change["step"] = state.global_step
        if "eval_loss" in values or not finite:
            self.write(state)

    def write(self, state: Any = None, sync: bool = False, wait: bool = False) -> None:
        """Write all that was collected. Called before every checkpoint.

        What the database cannot take, because another program holds it, is written with what comes later.

        :param sync: see that the history has reached the disk
        :param wait: for the database, as at the end of a run
        """
        self.written_at = time.perf_counter()
        self._write_history(sync)

        def store() -> None:
            self._store(state)

        if wait:
            with writing():
                store()
        elif not in_passing(store):
            return  # it waits here, and is in the history
        self.points, self.change, self.in_history = [], {}, 0

    def _store(self, state: Any) -> None:
        if self.change:
            runs.update(self.job.run_id, **self.change)
        if state is not None and state.max_steps and state.global_step:
            self.job.report(
                f"training, step {state.global_step} of {state.max_steps}",
                state.global_step / state.max_steps,
            )
        runs.record(self.job.run_id, self.points)

    def _write_history(self, sync: bool) -> None:
        """Write the points that are not in the file yet, all of them or none."""
        lines = "".join(
            json.dumps({"step": step, **values}) + "\n" for step, values in self.points[self.in_history :]
        )
        with open(self.history, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(lines.encode())
                while rest:
                    rest = rest[file.write(rest) :]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
        self.in_history = len(self.points)

    def _memory(self) -> float:
        """GiB; looked at as often as is written, for it takes as long as some kernels' launches."""
        now = time.perf_counter()
        if now - self.looked_at >= WRITE_SECONDS:
            self.looked_at, self.peak_gib = now, hardware.memory_used_gb()
        return self.peak_gib

    def median_step_seconds(self) -> float | None:
        """Of the steps whose time was taken; the first ones pay for warming up and are left out."""
        taken = sorted(seconds for step, seconds in self.timed[2:] or self.timed)
        return taken[len(taken) // 2] if taken else None

    def step_done(self, step: int, tokens: int, seconds: float) -> None:
        """Called for every step that is logged, before it is.

        :param tokens: of all steps so far
        :param seconds: of computing so far, by the run's clock
        """
        (last, counted, began), self.done = self.done, (step, tokens, seconds)
        steps, taken = step - last, seconds - began
        if steps <= 0 or taken <= 0:
            return
        each = taken / steps
        self.timed.append((step, each))
        warm = self.step_seconds is not None and step > 2
        self.step_seconds = 0.9 * self.step_seconds + 0.1 * each if warm else each  # type: ignore[operator]
        if counted is not None:
            self.tokens_per_second[step] = (tokens - counted) / taken

    def _seconds_left(self, args: Any, state: Any) -> float:
        """Of the steps to come, and of the evaluations and saves among them as long as the last ones took."""
        left = state.max_steps - state.global_step
        seconds = left * (self.step_seconds or 0.0)
        for every, pause in ((args.eval_steps, EVALUATION), (args.save_steps, SAVE)):
            times = state.max_steps // every - state.global_step // every
            seconds += times * self.clock.last(pause)
        return seconds

    def _note_eval(self, step: int, loss: float) -> None:
        self.change["eval_loss"] = _or_none(loss)
        if step == 0:
            self.change.setdefault("base_eval_loss", _or_none(loss))
        if loss < self.best:
            self.best = loss
            self.change |= {"best_eval_loss": loss, "best_step": step}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
