"""The types that a model computes in, and its frozen weights in them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def dense(base: Any, dtype: "torch.dtype") -> "torch.Tensor":
    """The weight of a frozen linear layer, (outputs, inputs), dequantised where it is held in 4 or 8 bits.

    For 8 bits a product with it is not LLM.int8's own (Dettmers et al., 2022), which rounds the
    activations to 8 bits as well.
    """
    import torch

    weight = base.weight
    state = getattr(weight, "quant_state", None) or getattr(base, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state).to(dtype)
    if weight.dtype == torch.int8:
        from bitsandbytes.functional import int8_vectorwise_dequant

        # bitsandbytes moves the scales from the weight to the layer's state at its first forward.
        scales = weight.SCB if weight.SCB is not None else base.state.SCB
        return int8_vectorwise_dequant(weight.data, scales).to(dtype)
    return weight.to(dtype)


def autocast(model: Any) -> Any:
    """The precision the base computes in, for the float32 adapter beside it."""
    import torch

    dtype = model.dtype
    enabled = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, dtype=dtype if enabled else None, enabled=enabled)
