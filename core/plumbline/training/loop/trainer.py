"""transformers' Trainer over packs: our own engine, held-out evaluation and checkpoints."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from plumbline.batches.packing import Packer, Step
from plumbline.checkpoints import folders
from plumbline.data.tokens.encode import Encoded
from plumbline.distributed.process_group import current
from plumbline.engine.select import Engine
from plumbline.errors import StopRequested
from plumbline.jobs.job import Job
from plumbline.models import adapters
from plumbline.training.loop import determinism, guard, saving
from plumbline.training.loop.held_out import HeldOut
from plumbline.training.loop.measured import Measured, measure
from plumbline.training.loop.pace import EVALUATION, SAVE, StepClock
from plumbline.training.loop.record import Record
from plumbline.training.loop.stopping import Ending


class MissedEvaluation(TrainerCallback):
    """Measures what a run that was stopped in an evaluation has not measured at its checkpoint's step."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = 0 < state.global_step < state.max_steps and state.global_step % args.eval_steps == 0
        if due and not self.trainer.evaluated():
            self.trainer.evaluate()


class Trainer(transformers.Trainer):
    """Computes every optimizer step in packs, evaluates token-weighted, writes whole checkpoints.

    :param engine: makes the engine, once the adapter's weights have their type
    :param rates: the share of the learning rate by the steps that were taken before
    :ivar ending: how the run ends; of several processes only the first one has it
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
        rates: Callable[[int], float],
        deterministic: bool = False,
        **kwargs: Any,
    ) -> None:
        # The dataset only tells transformers that there is something to evaluate.
        some = kwargs["train_dataset"].select(range(1))
        super().__init__(eval_dataset=some, data_collator=packer, callbacks=[record], **kwargs)
        self.keep, self.shuffled, self.record = keep, shuffled, record
        self.job, self.packer, self.sources = job, packer, sources
        adapters.begin_in_float32(self.model)
        # What all but LoRA's matrices are in the base; those are nothing there.
        self.of_base = {name: p.detach().clone() for name, p in self._trained() if not _is_factor(name)}
        self.engine = engine(self.model)
        self.rates, self.deterministic = rates, deterministic
        self.ending: Ending | None = None
        self.mask_gradients: Callable[[], None] = lambda: None
        self.held_out = HeldOut(
            held_out, sources, self.engine, packer, self.check_stop, job, self.args.device
        )
        self.tokens = 0
        self.clock = StepClock(self.args.device.type == "cuda")
        record.clock = self.clock
        self.extra: dict[str, torch.Tensor] = {}  # logged beside the loss of a step
        self.pending: Measured | None = None
        self.measured_step = 0
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
        with self.clock.pause(doing):
            yield
        self.doing = before  # after an exception it stays, to be told

    def check_stop(self) -> None:
        """Where several processes gather a base together, all of them stop at the same place.

        :raises StopRequested: when the user pressed Stop, or Plumbline is ended
        """
        if not self.packer.even:
            self.job.check_stop()
        elif current().broadcast_flag(self.job.stop_requested()):
            raise StopRequested()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.rates)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

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
        self.extra = self._beside(scale)
        return loss / scale

    def _beside(self, scale: float) -> dict[str, torch.Tensor]:
        """What the engine has added up beside the loss of a step, of all processes; read once."""
        found = {}
        for name, value in self.engine.beside.items():
            if current().size > 1:
                current().sum(value)
            found[name] = value / scale
            value.zero_()
        return found

    def _begun(self, model: Any, inputs: dict[str, Any]) -> Step:
        """A step on the device, its tokens counted."""
        if not model.training:
            model.train()
        step: Step = inputs["step"].to(self.args.device, non_blocking=True)
        self.count(step.tokens)
        return step

    def count(self, tokens: int) -> None:
        """Add to the tokens of all steps, those before the run was taken up too."""
        if not self.tokens:
            seen = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
            self.tokens = int(seen[-1]) if seen else 0
        self.tokens += tokens

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
            seconds = self.clock.mark()
            found = measure(
                self.state, tr_loss, grad_norm, rate, now - last, self.tokens, seconds, due, self.extra
            )
            before, self.pending = self.pending, found
            if due:
                tr_loss -= tr_loss
                self._globalstep_last_logged = now
            if before is not None:
                self._say(before)
        self.control.should_log = False
        ends = now >= self.state.max_steps or self.control.should_training_stop
        if ends or self.control.should_evaluate or self.control.should_save:
            self.flush_log()
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
        )
        self.control.should_training_stop = current().broadcast_flag(self.control.should_training_stop)

    def flush_log(self) -> None:
        """Look at the step that was measured last, waiting for it.

        :raises StudioError: when its loss or its gradient norm is not finite
        """
        if self.pending is not None:
            measured, self.pending = self.pending, None
            self._say(measured)

    def _say(self, measured: Measured) -> None:
        loss, norm, more = measured.read()
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
            self.record.step_done(measured.step, measured.tokens, measured.seconds())
            self.log(logs | more | {"num_tokens": float(measured.tokens)})
        finally:
            self.state.global_step, self.state.epoch = now
        if not finite:
            self.pending = None  # the next step, which the device may have made, says nothing more
            guard.check_finite(measured.step, {"loss": loss, "gradient norm": norm})

    def _rescaling(self) -> bool:
        """float16 looks for its loss scale: a step whose gradients overflow is skipped, and taken smaller."""
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() >= 1

    def measure_base(self) -> None:
        """The held-out loss before the first step: of the base, and of an adapter that begins as more."""
        if not self._begins_as_base():
            with (
                self.base_alone(),
                determinism.deterministic(self.deterministic),
                self._at(EVALUATION),
            ):
                self.log(self._held_out_metrics("base"))
        self.evaluate()

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """The base alone, to the engine too; set in place, for it computes from that memory."""
        began = [(p, p.detach().clone()) for _, p in self._trained()]
        try:
            for name, parameter in self._trained():
                if _is_factor(name):
                    parameter.data.zero_()
                else:
                    parameter.data.copy_(self.of_base[name])
            yield
        finally:
            for parameter, value in began:
                parameter.data.copy_(value)

    def _begins_as_base(self) -> bool:
        """Whether every product of the adapter is nothing, and all else is the base's, to the bit."""
        return all(
            not parameter.any()
            if name.rpartition(".lora_")[2].startswith(("B.", "embedding_A."))
            else _is_factor(name) or torch.equal(parameter, self.of_base[name])
            for name, parameter in self._trained()
        )

    def _trained(self) -> list[tuple[str, Any]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def evaluated(self) -> bool:
        """True when the held-out loss of the current step is known."""
        step = self.state.global_step
        return any(entry["step"] == step and "eval_loss" in entry for entry in self.state.log_history)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        with determinism.deterministic(self.deterministic), self._at(EVALUATION):
            guard.check_same_weights(self.model, self.state.global_step)
            metrics = self._held_out_metrics(metric_key_prefix)
        self.log(metrics)
        guard.check_finite(self.state.global_step, {"held-out loss": metrics[f"{metric_key_prefix}_loss"]})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_metrics(self, prefix: str) -> dict[str, float]:
        result = self.held_out.loss(self.state.global_step)
        # One curve a dataset of a mix: a rising one hides in the sum.
        by_source = {f"{prefix}_loss/{name}": loss for name, loss in result.by_source.items()}
        return {f"{prefix}_loss": result.loss} | by_source

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """A curriculum is kept in its order; transformers would shuffle it."""
        if self.shuffled:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers writes into the final folder file by file; here it is staged.

        Of several processes only the first one writes.
        """
        if not current().first:
            return
        self.flush_log()
        with self._at(SAVE):
            self.record.write(self.state, sync=True)
            saving.save(self, lambda: super(Trainer, self)._save_checkpoint(model, trial))

    def save_now(self) -> None:
        """Save the last step that was made, unless it is saved already."""
        made = folders.listed(Path(str(self.args.output_dir)))
        if not made or folders.step_of(made[-1]) != self.state.global_step:
            self._save_checkpoint(self.model, None)

    def load_finished(self, checkpoint: Path) -> bool:
        """Where a run has made all of its steps, its weights and its state: there is nothing to train.

        :returns: whether it has; one that stopped early ends there
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < min(state.max_steps, self.args.max_steps):
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        return True

    def finish(self) -> None:
        """What comes after the last step of a run that was taken up, such as going back to the best one."""
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)


def _is_factor(name: str) -> bool:
    """Whether a parameter of a PeftModel is one of two that are multiplied: both zero is the base."""
    return ".lora_" in name and "lora_magnitude_vector" not in name
