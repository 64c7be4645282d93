"""How weights are stepped: learning rates over the run, LoRA+, and halves that stay frozen."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from plumbline.config.schema import RunConfig
from plumbline.models import adapter_init


def warmup(config: RunConfig, steps: int) -> int:
    """Optimizer steps in which the learning rate rises: at most all, for the last of them has all of it."""
    training = config.training
    given = training.warmup_steps
    return min(steps, math.ceil(steps * training.warmup_ratio) if given is None else given)


def schedule(config: RunConfig, steps: int) -> Callable[[int], float]:
    """The share of the learning rate that a step is taken with.

    It rises from 0 in equal parts, of which the first step has one: no step is taken with a rate of 0.

    :param steps: of the whole run
    :returns: a function of how many steps were taken before
    """
    training, rising = config.training, warmup(config, steps)

    def share(taken: int) -> float:
        if taken < rising:
            return (taken + 1) / rising
        if training.lr_scheduler_type == "constant":
            return 1.0
        gone = min(1.0, (taken - rising) / max(1, steps - rising))
        left = 1 - gone if training.lr_scheduler_type == "linear" else (1 + math.cos(math.pi * gone)) / 2
        return training.min_lr_ratio + (1 - training.min_lr_ratio) * left

    return share


def optimizer(config: RunConfig, arguments: Any, model: Any) -> Any:
    """The optimizer with LoRA+'s two learning rates; None leaves it to transformers."""
    ratio = config.lora.loraplus_lr_ratio
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
    """Keeps the second half of every adapter as it began; see `plumbline.models.adapter_init`.

    :param rank: of the half that is trained
    """

    def __init__(self, model: Any, rank: int) -> None:
        pairs = [
            (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            for _, layer in adapter_init.layers(model)
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
