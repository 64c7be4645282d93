"""How weights are stepped: learning rates over the run, LoRA+, and halves that stay frozen."""

import math
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from core.config import RunConfig
from core.models import initial


def warmup(config: RunConfig, steps: int) -> int:
    """Optimizer steps in which the learning rate rises."""
    given = config.training.warmup_steps
    return math.ceil(steps * config.training.warmup_share) if given is None else given


def schedule(config: RunConfig, steps: int) -> dict[str, Any]:
    """transformers' arguments for how the learning rate goes."""
    training = config.training
    rising, lowest = warmup(config, steps), training.min_rate_share
    found: dict[str, Any] = {"warmup_steps": rising}
    if training.schedule == "constant":
        return found | {"lr_scheduler_type": "constant_with_warmup"}
    if not lowest:
        return found | {"lr_scheduler_type": training.schedule}
    if training.schedule == "cosine":
        return found | {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": lowest},
        }
    falling = {"num_decay_steps": max(1, steps - rising), "decay_type": "linear", "min_lr_ratio": lowest}
    return found | {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": falling}


def optimizer(config: RunConfig, arguments: Any, model: Any) -> Any:
    """The optimizer with LoRA+'s two learning rates; None leaves it to transformers."""
    ratio = config.lora.plus_ratio
    if ratio is None or ratio == 1:
        return None
    from peft.optimizers import create_loraplus_optimizer

    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return create_loraplus_optimizer(
        model,
        kind,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=arguments.weight_decay,
        **options,
    )


class FrozenHalf(TrainerCallback):
    """Keeps the second half of every adapter as it began; see `core.models.initial`.

    :param rank: of the half that is trained
    """

    def __init__(self, model: Any, rank: int) -> None:
        pairs = [
            (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            for _, layer in initial.layers(model)
        ]
        self.rank, self.pairs = rank, pairs
        self.began: list[tuple[torch.Tensor, torch.Tensor]] = []

    def mask(self) -> None:
        """Nothing moves the frozen halves, and they do not count in the gradient's length."""
        for a, b in self.pairs:
            if a.grad is not None and b.grad is not None:
                a.grad[self.rank :].zero_()
                b.grad[:, self.rank :].zero_()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = [
            (a[self.rank :].detach().clone(), b[:, self.rank :].detach().clone()) for a, b in self.pairs
        ]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Weight decay moves what has no gradient, too.
        for (a, b), (first_a, first_b) in zip(self.pairs, self.began, strict=True):
            a.data[self.rank :] = first_a
            b.data[:, self.rank :] = first_b
