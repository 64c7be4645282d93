"""A frozen base spread over several GPUs: each holds a part of every layer's 4-bit weights.

What fully sharded data parallelism (Zhao et al., 2023) does, for weights that are never trained: a layer's
weights are gathered just before they are used, while the layer before computes, into one of two buffers.
All processes compute the same layers in the same order.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from plumbline.config.schema import RunConfig
from plumbline.distributed.process_group import ProcessGroup
from plumbline.errors import StudioError
from plumbline.hub.progress import Report
from plumbline.models import streamed
from plumbline.planner.model_size import FOUR_BITS, model_size_of


class ShardedBase:
    """The 4-bit linear weights of a decoder's layers, of which this process holds one part in ``world.size``.

    A process that is alone keeps them where they are.

    :param layers: decoder layers with quantised weights on ``device``; taken one by one
    """

    def __init__(self, layers: Iterable[Any], world: ProcessGroup, device: Any) -> None:
        self.world = world
        self.parts: list[torch.Tensor] = []
        self.held: list[int | None] = [None, None]
        self.arriving: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}
        cut = []
        for number, layer in enumerate(layers):
            weights = [module.weight for module in layer.modules() if _is_4bit(module)]
            if world.size == 1:
                continue
            shapes = [weight.data.shape for weight in weights]
            self.parts.append(_cut(weights, world, device))
            self.numbers |= {id(weight): number for weight in weights}
            layer.register_forward_pre_hook(lambda *_, number=number: self._load_for_forward(number))
            cut.append((weights, shapes))
        longest = max((len(part) for part in self.parts), default=0) * world.size
        self.buffers = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(2)]
        for number, (weights, shapes) in enumerate(cut):
            _lay_out(weights, shapes, self.buffers[number % 2])
        # An id is a weight's own as long as the weight is there.
        self.weights = [weight for weights, _ in cut for weight in weights]

    def load(self, number: int, following: int) -> None:
        """Have a layer's weights in place, and send for those of the one that comes after.

        :param following: its number; none comes if there is no such layer
        """
        if self.world.size == 1:
            return
        self._send_for(number)
        self._wait_for(number)
        # What is computed from now on does not read the other buffer any more.
        if 0 <= following < len(self.parts):
            self._send_for(following)

    def bring(self, weight: Any) -> None:
        """Have all of a weight in place, with its layer's others; nothing is done for one that is not cut."""
        if (number := self.numbers.get(id(weight))) is not None:
            self.load(number, -1)

    def _load_for_forward(self, number: int) -> None:
        """For a forward that is transformers' own; its backward would find other layers' weights."""
        if torch.is_grad_enabled():
            raise StudioError(
                "machines.sharding", "does not go with training through autograd", "Set it to none."
            )
        self.load(number, number + 1)

    def _send_for(self, number: int) -> None:
        side = number % 2
        before = self.held[side]
        if before == number:
            return
        if before is not None:
            self._wait_for(before)
        part = self.parts[number]
        whole = self.buffers[side][: len(part) * self.world.size]
        self.held[side] = number
        self.arriving[number] = torch.distributed.all_gather_into_tensor(whole, part, async_op=True)

    def _wait_for(self, number: int) -> None:
        if number in self.arriving:
            self.arriving.pop(number).wait()


def spread(
    config: RunConfig,
    world: ProcessGroup,
    device: Any,
    report: Report | None = None,
    check_stop: Callable[[], None] | None = None,
) -> Any:
    """A base as `load.base_model` gives it, but no process ever holds all of it.

    Its ``sharded`` has the weights. Layer by layer is read, quantised on the device, and cut.

    :param report: told what has been downloaded, then read, as a text and a share
    :raises StudioError: when it cannot be sharded, found, downloaded or read
    """
    refuse(config)
    model, layers = streamed.base_model(config, device, report, check_stop)
    model.sharded = ShardedBase(layers, world, device)
    return model


def refuse(config: RunConfig) -> None:
    """Look at a recipe before any weight of its base is read.

    :raises StudioError: when it cannot be sharded: only what the hand-written decoder trains, in 4 bits, can
    """
    known = model_size_of(config)
    if known.refusal:
        why = known.refusal
    elif known.quantisation not in FOUR_BITS:
        why = f"only {' and '.join(FOUR_BITS)} can be, and its quantisation is {known.quantisation}"
    else:
        return
    what = f"{config.model.base} cannot be spread over several GPUs: {why}"
    raise StudioError("machines.sharding", what, "Set it to none.")


def _cut(weights: list[Any], world: ProcessGroup, device: Any) -> torch.Tensor:
    """This process's part of the bytes of a layer's weights, which are empty from then on."""
    flat = torch.cat([weight.data.flatten().view(torch.uint8) for weight in weights])
    size = -(-len(flat) // world.size)
    part = torch.zeros(size, dtype=torch.uint8, device=device)
    mine = flat[world.rank * size : (world.rank + 1) * size]
    part[: len(mine)] = mine
    for weight in weights:
        weight.data = weight.data.new_empty(0)
    return part


def _lay_out(weights: list[Any], shapes: list[torch.Size], buffer: torch.Tensor) -> None:
    """One after the other, as they are in the parts."""
    place = 0
    for weight, whole in zip(weights, shapes, strict=True):
        size = whole.numel() * weight.data.element_size()
        weight.data = buffer[place : place + size].view(weight.data.dtype).view(whole)
        place += size


def _is_4bit(module: Any) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None
