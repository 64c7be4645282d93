"""What a step's loss and gradient norm will be once the device has computed them: it is not waited for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Measured:
    """:param steps: that the loss is the mean of
    :param seconds: of computing when the device had done the step; see plumbline.training.loop.pace
    :param due: to be logged; every step is looked at
    :param names: of what was measured beside loss and norm
    """

    step: int
    epoch: float
    learning_rate: float
    steps: int
    tokens: int
    seconds: Callable[[], float]
    due: bool
    names: tuple[str, ...]
    values: torch.Tensor
    ready: Any

    def read(self) -> tuple[float, float, dict[str, float]]:
        """Loss, gradient norm, and what was measured beside them; waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        loss, norm, *more = self.values.tolist()
        return loss, norm, dict(zip(self.names, more, strict=True))


def measure(
    state: Any,
    loss: torch.Tensor,
    grad_norm: Any,
    rate: float,
    steps: int,
    tokens: int,
    seconds: Callable[[], float],
    due: bool,
    more: dict[str, torch.Tensor],
) -> Measured:
    """:param loss: the sum over ``steps`` steps
    :param more: what else was measured, by name, 0-dim
    """
    norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, device=loss.device)
    others = [value.float() for value in more.values()]
    values, ready = torch.stack([loss.detach().float() / steps, norm.float(), *others]), None
    if values.is_cuda:
        host = torch.empty(len(values), pin_memory=True)
        host.copy_(values, non_blocking=True)
        values, ready = host, torch.cuda.Event()
        ready.record()
    return Measured(
        state.global_step, state.epoch or 0.0, rate, steps, tokens, seconds, due, tuple(more), values, ready
    )
