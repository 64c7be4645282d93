"""Guard rails: what is not finite, or differs between processes, ends a run; a loss that leaps is told."""

import math
from collections import deque
from typing import Any

from plumbline.distributed.process_group import current
from plumbline.errors import StudioError

LEAP = 100  # times the median of the losses before
REMEMBERED, ENOUGH = 25, 3  # losses


def check_same_weights(model: Any, step: int) -> None:
    """Of several processes each has an adapter of its own, and all of them must be the same.

    :raises StudioError: when they are not
    """
    if current().size == 1:
        return
    import torch

    sums = [p.detach().double().sum() for p in model.parameters() if p.requires_grad]
    mine = torch.stack(sums).tolist()
    if any(other != mine for other in current().all_gather(mine)):
        what = f"is not the same in all processes at step {step}"
        raise StudioError("the adapter", what, "Please report this; do not use the adapter.")


def check_finite(step: int, values: dict[str, float]) -> None:
    """:param values: what was measured at the step, by its name in a sentence
    :raises StudioError: when one of them is NaN or infinite
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise broken(name, step, math.isnan(value))


def broken(name: str, step: int, is_nan: bool = True) -> StudioError:
    return StudioError(
        "",
        f"{name} became {'NaN' if is_nan else 'infinite'} at step {step}",
        "Halve training.learning_rate and start again; the last checkpoint before it is intact.",
    )


def check_finite_weights(model: Any, optimizer: Any, step: int) -> None:
    """Of what a checkpoint or an artifact holds. :raises StudioError: naming the first that is not finite"""
    named = [("adapter", name, p) for name, p in model.named_parameters() if p.requires_grad]
    names = {id(parameter): name for _, name, parameter in named}
    if optimizer is not None:
        for parameter, state in optimizer.state.items():
            name = names.get(id(parameter), "a weight")
            named += [("optimizer state", name, value) for value in tensors(state)]
    for kind, name, tensor in _not_finite(named):
        raise broken(f"{kind} of {name}", step, bool(tensor.isnan().any()))


def _not_finite(named: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    import torch

    floats = [one for one in named if one[2].is_floating_point() and one[2].numel()]
    if not floats:
        return []
    # One look for all: each would wait for the device.
    good = torch.stack([one[2].detach().isfinite().all().to(floats[0][2].device) for one in floats]).tolist()
    return [one for one, fine in zip(floats, good, strict=True) if not fine]


def tensors(value: Any) -> list[Any]:
    """All tensors in nested dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in tensors(each)]
    return []


class LossSpikes:
    """Sees a loss that is far above those before it."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=REMEMBERED)

    def told(self, step: int, loss: float) -> str | None:
        """:returns: a sentence for a leap, else None"""
        ordered = sorted(self.losses)
        self.losses.append(loss)
        median = ordered[len(ordered) // 2] if len(ordered) >= ENOUGH else math.inf
        if not loss > LEAP * median:
            return None
        return f"the loss leapt from about {median:.3g} to {loss:.3g} at step {step}; training goes on"
