"""TRL's SFTTrainer over packs: our own engine, held-out evaluation and checkpoints."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState
from trl import SFTTrainer

from core.data.xray import Encoded
from core.evaluation.loss import HeldOutLoss, weighted
from core.jobs.worker import Job
from core.models import adapters
from core.training import checkpoints, determinism, guard, memory, saving
from core.training.engine import Engine
from core.training.packing import Packer, Step, pack, split
from core.training.record import Record
from core.training.world import current


@dataclass(frozen=True)
class Measured:
    """What a step's loss and gradient norm will be once the device has computed them.

    :param due: to be logged; every step is looked at
    """

    step: int
    epoch: float
    learning_rate: float
    steps: int
    tokens: int
    values: torch.Tensor
    ready: Any
    due: bool


class MissedEvaluation(TrainerCallback):
    """Measures what a run that was stopped in an evaluation has not measured at its checkpoint's step."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = 0 < state.global_step < state.max_steps and state.global_step % args.eval_steps == 0
        if due and not self.trainer.evaluated():
            self.trainer.evaluate()


class Trainer(SFTTrainer):
    """Computes every optimizer step in packs, evaluates token-weighted, writes whole checkpoints.

    :param engine: makes the engine, once the adapter's weights have their type
    """

    model: Any
    processing_class: Any

    def __init__(
        self,
        *,
        engine: Callable[[Any], Engine],
        packer: Packer,
        held_out: list[Encoded],
        sources: list[str],
        shuffled: bool,
        keep: int,
        job: Job,
        record: Record,
        deterministic: bool = False,
        **kwargs: Any,
    ) -> None:
        # The dataset only tells transformers that there is something to evaluate.
        some = kwargs["train_dataset"].select(range(1))
        with adapters.head_out_of_sight(kwargs["model"]):
            super().__init__(eval_dataset=some, data_collator=packer, callbacks=[record], **kwargs)
        self.held_out, self.keep, self.job = held_out, keep, job
        self.sources, self.shuffled, self.record, self.packer = sources, shuffled, record, packer
        # TRL puts the adapter of a 4-bit base in bfloat16; see core.models.adapters.attach.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.engine = engine(self.model)
        self.deterministic = deterministic
        self.mask_gradients: Callable[[], None] = lambda: None
        self.tokens = 0
        self.extra: dict[str, torch.Tensor] = {}  # logged beside the loss of a step
        self.pending: Measured | None = None
        self.measured_step = 0
        self.held_limit = min(packer.limit, max(1, sum(len(row.input_ids) for row in held_out)))
        self.identity: dict[str, Any] = {}
        self.doing = ""
        self.add_callback(MissedEvaluation(self))

    @property
    def where(self) -> str:
        """What it is at, or was at when an exception came, as in ``at step 6``."""
        step = self.state.global_step
        return f"{self.doing} at step {step}" if self.doing else f"at step {step + 1}"

    @contextmanager
    def _at(self, doing: str) -> Iterator[None]:
        self.doing, before = doing, self.doing
        yield
        self.doing = before  # after an exception it stays, to be told

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with determinism.deterministic(self.deterministic):
            return super().train(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One optimizer step: gradients of the mean loss over all its supervised tokens."""
        step = self._begun(model, inputs)
        scale = self._loss_scale()
        loss = torch.zeros((), device=self.args.device)
        for one in step.packs:
            loss += self.engine.step(one, scale / step.supervised)
        if current().size > 1:
            current().sum_all(self.engine.gradients())
            current().sum(loss)
        self.mask_gradients()
        return loss / scale

    def _begun(self, model: Any, inputs: dict[str, Any]) -> Step:
        """A step on the device, its tokens counted."""
        if not model.training:
            model.train()
        step: Step = inputs["step"].to(self.args.device, non_blocking=True)
        if not self.tokens:
            seen = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
            self.tokens = int(seen[-1]) if seen else 0
        self.tokens += step.tokens
        return step

    def _loss_scale(self) -> float:
        """What float16 losses are multiplied by, so that their gradients do not vanish; else 1."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return 1.0
        scaler.scale(torch.zeros((), device=self.args.device))  # it has no scale before its first use
        return scaler.get_scale()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers would estimate them from ids that a step of packs has not

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: Any,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """What transformers does, but a step is logged while the device computes the next one."""
        last, now = self._globalstep_last_logged, self.state.global_step
        if now > self.measured_step:
            rate = self._get_learning_rate() if learning_rate is None else learning_rate
            due, self.measured_step = self.control.should_log, now
            before, self.pending = self.pending, self._measure(tr_loss, grad_norm, rate, now - last, due)
            if due:
                tr_loss -= tr_loss
                self._globalstep_last_logged = now
            if before is not None:
                self._say(before)
        self.control.should_log = False
        ends = now >= self.state.max_steps or self.control.should_training_stop
        if ends or self.control.should_evaluate or self.control.should_save:
            self.say_pending()
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
        )

    def say_pending(self) -> None:
        """Look at the step that was measured last, waiting for it.

        :raises StudioError: when its loss or its gradient norm is not finite
        """
        if self.pending is not None:
            measured, self.pending = self.pending, None
            self._say(measured)

    def _measure(self, loss: torch.Tensor, grad_norm: Any, rate: float, steps: int, due: bool) -> Measured:
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, device=loss.device)
        more = [value.float() for value in self.extra.values()]
        values, ready = torch.stack([loss.detach().float() / steps, norm.float(), *more]), None
        if values.is_cuda:
            host = torch.empty(len(values), pin_memory=True)
            host.copy_(values, non_blocking=True)
            values, ready = host, torch.cuda.Event()
            ready.record()
        state = self.state
        return Measured(state.global_step, state.epoch or 0.0, rate, steps, self.tokens, values, ready, due)

    def _say(self, measured: Measured) -> None:
        if measured.ready is not None:
            measured.ready.synchronize()
        loss, norm, *more = measured.values.tolist()
        finite = math.isfinite(loss) and (math.isfinite(norm) or self._rescaling())
        if finite and not measured.due:
            return
        if measured.due:
            self._total_loss_scalar += loss * measured.steps
        logs = {"loss": loss, "grad_norm": norm, "learning_rate": measured.learning_rate}
        now = self.state.global_step, self.state.epoch
        # Callbacks ask the state which step a value belongs to.
        self.state.global_step, self.state.epoch = measured.step, measured.epoch
        try:
            named = dict(zip(self.extra, more, strict=True))
            self.log(logs | named | {"num_tokens": float(measured.tokens)})
        finally:
            self.state.global_step, self.state.epoch = now
        if not finite:
            guard.refuse_unfinite(measured.step, {"loss": loss, "gradient norm": norm})

    def _rescaling(self) -> bool:
        """float16 looks for its loss scale: a step whose gradients overflow is skipped, and taken smaller."""
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() >= 1

    def evaluated(self) -> bool:
        """True when the held-out loss of the current step is known."""
        step = self.state.global_step
        return any(entry["step"] == step and "eval_loss" in entry for entry in self.state.log_history)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        with self._at("in the evaluation"):
            metrics = self._held_out_metrics(metric_key_prefix)
        self.log(metrics)
        guard.refuse_unfinite(self.state.global_step, {"held-out loss": metrics[f"{metric_key_prefix}_loss"]})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_metrics(self, prefix: str) -> dict[str, float]:
        result = self._held_out_loss()
        # One curve a dataset of a mix: a rising one hides in the sum.
        by_source = {f"{prefix}_loss/{name}": loss for name, loss in result.by_source.items()}
        return {f"{prefix}_loss": result.loss} | by_source

    def _held_out_loss(self) -> HeldOutLoss:
        """Through the engine, so that it takes no more memory than a step does; in smaller packs if it must.

        :raises StopRequested: when the user pressed Stop
        """
        longest = max(len(row.input_ids) for row in self.held_out)
        while True:
            try:
                return self._held_out_in(self.held_limit)
            except Exception as error:
                if not memory.ran_out(error) or self.held_limit <= longest:
                    raise
            # Here the exception is gone, and with it what its frames held.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            before, self.held_limit = self.held_limit, self.held_limit // 2
            self.job.event(
                f"the evaluation at step {self.state.global_step} ran out of memory with {before:,} tokens "
                f"at once and goes on with {self.held_limit:,}",
                "warning",
            )

    def _held_out_in(self, limit: int) -> HeldOutLoss:
        rows = [
            (row, source) for row, source in zip(self.held_out, self.sources, strict=True) if row.supervised
        ]
        sums = {source: [0.0, 0] for _, source in rows}
        lengths = [len(row.input_ids) for row, _ in rows]
        bins = split(lengths, limit)
        # A sharded base is gathered by all processes at once: each computes as many packs.
        rounds = -(-len(bins) // current().size) * current().size
        for number in range(current().rank, rounds, current().size):
            self.job.check_stop()
            some = [rows[place] for place in bins[min(number, len(bins) - 1)]]
            held = pack([{"input_ids": row.input_ids, "labels": row.labels} for row, _ in some])
            held = held.to(self.args.device)
            losses = self.engine.losses(held).double()
            if number >= len(bins):
                continue
            place = torch.bucketize(held.learned, held.boundaries[1:].long(), right=True)
            of_rows = losses.new_zeros(len(some)).index_add_(0, place, losses).tolist()
            for (row, source), loss in zip(some, of_rows, strict=True):
                sums[source][0] += loss
                sums[source][1] += row.supervised
        if current().size > 1:
            total = torch.tensor([sums[name] for name in sorted(sums)], device=self.args.device)
            sums = dict(zip(sorted(sums), current().sum(total.double()).tolist(), strict=True))
        return weighted(sums)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """A curriculum is kept in its order; transformers would shuffle it."""
        if self.shuffled:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers writes into the final folder file by file; here it is staged."""
        self.say_pending()
        with self._at("in the save"):
            self.record.write(self.state, sync=True)
            saving.save(self, lambda: super(Trainer, self)._save_checkpoint(model, trial))

    def save_now(self) -> None:
        """Save the last step that was made, unless it is saved already."""
        made = checkpoints.listed(Path(str(self.args.output_dir)))
        if not made or checkpoints.step_of(made[-1]) != self.state.global_step:
            self._save_checkpoint(self.model, None)

    def take_up(self, checkpoint: Path) -> None:
        """The weights and the state of a run that has made all of its steps: there is nothing to train."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
