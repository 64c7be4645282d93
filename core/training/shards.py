"""A frozen base spread over several GPUs: each holds a part of every layer's 4-bit weights.

What fully sharded data parallelism (Zhao et al., 2023) does, for weights that are never trained: a layer's
weights are gathered just before they are used, while the layer before computes, into one of two buffers.
"""

from collections.abc import Iterable
from typing import Any

import torch

from core.config import RunConfig
from core.models import load
from core.training.world import World


class ShardedBase:
    """The 4-bit linear weights of a decoder's layers, of which this process holds one part in ``world.size``.

    :param layers: decoder layers with quantised weights on ``device``; taken one by one
    """

    def __init__(self, layers: Iterable[Any], world: World, device: Any) -> None:
        self.world = world
        self.parts: list[torch.Tensor] = []
        self.held: list[int | None] = [None, None]
        self.arriving: dict[int, Any] = {}
        places = []
        for layer in layers:
            weights = [module.weight for module in layer.modules() if _is_4bit(module)]
            flat = torch.cat([weight.data.flatten() for weight in weights])
            size = -(-len(flat) // world.size)
            part = torch.zeros(size, dtype=flat.dtype, device=device)
            mine = flat[world.rank * size : (world.rank + 1) * size]
            part[: len(mine)] = mine
            self.parts.append(part)
            shapes = [weight.data.shape for weight in weights]
            for weight in weights:
                weight.data = weight.data.new_empty(0)
            places.append((weights, shapes))
            del flat, mine
        longest = max(len(part) for part in self.parts) * world.size
        self.buffers = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(2)]
        for number, (weights, shapes) in enumerate(places):
            place = 0
            for weight, shape in zip(weights, shapes, strict=True):
                count = shape.numel()
                weight.data = self.buffers[number % 2][place : place + count].view(shape)
                place += count

    def load(self, number: int, following: int) -> None:
        """Have a layer's weights in place, and send for those of the one that comes after.

        :param following: its number; none comes if there is no such layer
        """
        self._send_for(number)
        if number in self.arriving:
            self.arriving.pop(number).wait()
        # What is computed from now on does not read the other buffer any more.
        if 0 <= following < len(self.parts):
            self._send_for(following)

    def _send_for(self, number: int) -> None:
        side = number % 2
        if self.held[side] == number:
            return
        part = self.parts[number]
        whole = self.buffers[side][: len(part) * self.world.size]
        self.held[side] = number
        self.arriving[number] = torch.distributed.all_gather_into_tensor(whole, part, async_op=True)


def spread(config: RunConfig, world: World, device: Any) -> Any:
    """A base as `load.base_model` gives it, but no device ever holds all of it.

    Its ``sharded`` has the weights. It is read into the host's memory; layer by layer goes to the device,
    is quantised there, and is cut.
    """
    plain = config.quantisation.model_copy(update={"method": "none"})
    model = load.base_model(config.model_copy(update={"quantisation": plain}), on_host=True)
    decoder = model.get_decoder()
    for name, part in decoder.named_children():
        if name != "layers":
            part.to(device)
    model.get_output_embeddings().to(device)
    model.sharded = ShardedBase(
        (_quantised(layer, config, model.dtype, device) for layer in decoder.layers), world, device
    )
    model.is_loaded_in_4bit = True
    return model


def _quantised(layer: Any, config: RunConfig, dtype: Any, device: Any) -> Any:
    """A decoder layer on the device, its linear layers in 4 bits, in place."""
    import bitsandbytes as bnb

    for module in list(layer.modules()):
        for name, linear in list(module.named_children()):
            if type(linear) is not torch.nn.Linear:
                continue
            has_bias = linear.bias is not None
            held: Any = bnb.nn.Linear4bit(
                linear.in_features, linear.out_features, has_bias, compute_dtype=dtype, device="meta"
            )
            held.weight = bnb.nn.Params4bit(
                linear.weight.data,
                requires_grad=False,
                compress_statistics=config.quantisation.double,
                quant_type=config.quantisation.method,
            )
            held.bias = linear.bias
            held.support_avx512bf16_for_cpu = False  # see core.models.load
            setattr(module, name, held.to(device))
    return layer.to(device)


def _is_4bit(module: Any) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None
