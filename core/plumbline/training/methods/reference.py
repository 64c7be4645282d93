"""TRL's own trainers on our rows: the reference that our engine is held against.

Rows, tokens, labels and their order are those that Plumbline has prepared; TRL tokenises nothing. Forward,
loss, backward and micro-batches are TRL's; steps, learning rates, checkpoints and what is written down are
those of every other run, so that the curves can be compared.
"""

from collections.abc import Sequence
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl import __version__ as version

from plumbline.batches.packing import Packer
from plumbline.batches.prepare import Prepared
from plumbline.config.schema import RunConfig
from plumbline.data.tokens.encode import IGNORED, Encoded
from plumbline.engine.plan import Plan
from plumbline.errors import StudioError
from plumbline.evaluation.loss import held_out_loss
from plumbline.models.hardware import Choice
from plumbline.training.loop.trainer import Trainer

_REWARDS = {"rewards/margins": "rewards/margin", "rewards/accuracies": "rewards/accuracy"}


class Padded(Packer):
    """Collates numbers of rows into one padded batch, as TRL's collators make them.

    :param others: the worse answer of each row; where there are some, a batch holds the better answers
        first, then the worse ones
    """

    def __init__(self, packer: Packer, pad_token: int, rows: list[Encoded], others: list[Encoded]) -> None:
        super().__init__(packer.limit)
        self.pad_token, self.rows, self.others = pad_token, rows, others

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.batch([int(row["number"]) for row in rows])

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """:returns: ``input_ids`` and ``attention_mask`` of shape (rows, longest), int64, and beside them
        ``labels``, or for pairs ``completion_mask``"""
        sides = [self.rows, self.others] if self.others else [self.rows]
        some = [side[number] for side in sides for number in numbers]
        shape = len(some), max(len(row.input_ids) for row in some)
        ids = torch.full(shape, self.pad_token)
        attended = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for place, row in enumerate(some):
            length = len(row.input_ids)
            ids[place, :length] = torch.tensor(row.input_ids)
            attended[place, :length] = 1
            labels[place, :length] = torch.tensor(row.labels)
        labels[:, 0] = IGNORED  # nothing predicts a row's first token: it must not count in the mean
        more = {"completion_mask": (labels != IGNORED).long()} if self.others else {"labels": labels}
        return {"input_ids": ids, "attention_mask": attended} | more


class _Reference(Trainer):
    """What TRL's trainers need to be a run's trainer; it comes before one of them among the bases."""

    _metrics: Any  # TRL's own, by mode and name

    def __init__(self, *, prepared: Prepared, packer: Packer, batch: int, **kwargs: Any) -> None:
        pad_token = kwargs["processing_class"].pad_token_id
        rows = Padded(packer, pad_token, prepared.train, prepared.others)
        self.held_rows = Padded(packer, pad_token, prepared.held_out, prepared.held_others)
        self.batch, self.begun_step = batch, -1
        super().__init__(packer=rows, held_out=prepared.held_out, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """TRL's, of one micro-batch."""
        if self.begun_step != self.state.global_step:
            self.begun_step = self.state.global_step
            self._metrics["train"].clear()
        self.count(int(inputs["attention_mask"].sum()))
        loss = super(Trainer, self).training_step(model, inputs, num_items_in_batch)
        self.mask_gradients()
        self.extra = {ours: loss.new_tensor(value) for ours, value in self._rewards("train").items()}
        return loss

    def _rewards(self, mode: str) -> dict[str, float]:
        found = {ours: self._metrics[mode].get(theirs, []) for theirs, ours in _REWARDS.items()}
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # A step is logged while the next is computed, so what TRL has gathered by now is of both.
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        super().log(logs, start_time)


class SupervisedReference(_Reference, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer; held-out losses are those of the plain model."""

    def _held_out_metrics(self, prefix: str) -> dict[str, float]:
        found = held_out_loss(
            self.model,
            self.held_rows.rows,
            self.held_rows.pad_token,
            self.batch,
            lambda done: self.check_stop(),
            self.sources,
        )
        by_source = {f"{prefix}_loss/{name}": loss for name, loss in found.by_source.items()}
        return {f"{prefix}_loss": found.loss} | by_source


class PreferenceReference(_Reference, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer, whose reference is the base."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # TRL takes a copy of the adapter for the reference; ours is the base, which that is as it begins.
        self.model.delete_adapter("ref")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """:raises StudioError: when the run begins as something else than its reference"""
        if not kwargs.get("resume_from_checkpoint") and not self._begins_as_base():
            what = "trl judges dpo against the base, and this run's adapter begins as more than that"
            raise StudioError("training.engine", what, "Set it to auto.")
        return super().train(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # it is tokenised already

    def _held_out_metrics(self, prefix: str) -> dict[str, float]:
        count, total, was_training = len(self.held_rows.rows), 0.0, self.model.training
        rewards = dict.fromkeys(_REWARDS.values(), 0.0)
        self.model.eval()
        try:
            for start in range(0, count, self.batch):
                self.check_stop()
                numbers = range(start, min(count, start + self.batch))
                inputs = self._prepare_inputs(self.held_rows.batch(numbers))
                self._metrics["eval"].clear()
                with torch.no_grad(), self.accelerator.autocast():
                    total += float(self.compute_loss(self.model, inputs)) * len(numbers)
                for name, value in self._rewards("eval").items():
                    rewards[name] += value * len(numbers)
        finally:
            self.model.train(was_training)
        return {f"{prefix}_loss": total / count} | {
            f"{prefix}_{name}": value / count for name, value in rewards.items()
        }


def refuse(config: RunConfig, model: Any, plan: Plan) -> None:
    """:raises StudioError: for what TRL's trainers cannot compute as this recipe means it"""
    from peft.tuners.tuners_utils import BaseTunerLayer

    where, fix = "training.engine", "Set it to auto."
    if plan.processes > 1:
        raise StudioError(where, "trl computes on one GPU", "Set machines.gpus to 1, or the engine to auto.")
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise StudioError(where, "trl trains no adapter on the head (lm_head)", fix)


def micro_batch(config: RunConfig, prepared: Prepared, plan: Plan) -> int:
    """Rows of a padded micro-batch: as many as the plan's tokens hold, in equal parts of a step."""
    whole = config.training.effective_batch
    fits = max(1, plan.micro_batch_tokens // max(prepared.lengths))
    return max(size for size in range(1, whole + 1) if whole % size == 0 and size <= fits)


def arguments(config: RunConfig, prepared: Prepared, plan: Plan, common: dict[str, Any]) -> Any:
    """TRL's arguments. :param common: those of every trainer, with a whole step as their batch"""
    rows = micro_batch(config, prepared, plan)
    given = common | {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": config.training.effective_batch // rows,
        "gradient_checkpointing": plan.layers_without_recompute < plan.layers,
        "max_length": None,
        "router_aux_loss_coef": 0.0,  # else it is taken from the base's config
    }
    if prepared.others:
        return DPOConfig(**given, beta=config.method.beta, disable_dropout=False)
    return SFTConfig(**given, dataset_kwargs={"skip_prepare_dataset": True})


def chosen(prepared: Prepared) -> tuple[Any, Choice]:
    """The class of the trainer, and what is said of it."""
    kind = PreferenceReference if prepared.others else SupervisedReference
    name = "DPOTrainer" if prepared.others else "SFTTrainer"
    return kind, Choice("TRL", f"the recipe asks for it: {name} of TRL {version}, on the same rows")
