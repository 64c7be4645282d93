"""What a step's loss and gradient norm will be once the device has computed them: it is not waited for."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Measured:
    """:param steps: that the loss is the mean of
    :param due: to be logged; every step is looked at
    """

    step: int
    epoch: float
    learning_rate: float
    steps: int
    tokens: int
    due: bool
    values: torch.Tensor
    ready: Any

    def read(self) -> tuple[float, float]:
        """Loss and gradient norm; waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        loss, norm = self.values.tolist()
        return loss, norm


def measure(
    state: Any, loss: torch.Tensor, grad_norm: Any, rate: float, steps: int, tokens: int, due: bool
) -> Measured:
    """:param loss: the sum over ``steps`` steps"""
    norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, device=loss.device)
    values, ready = torch.stack([loss.detach().float() / steps, norm.float()]), None
    if values.is_cuda:
        host = torch.empty(2, pin_memory=True)
        host.copy_(values, non_blocking=True)
        values, ready = host, torch.cuda.Event()
        ready.record()
    return Measured(state.global_step, state.epoch or 0.0, rate, steps, tokens, due, values, ready)
