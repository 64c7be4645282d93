"""LoRA and the frozen linear layer under it as one differentiable product.

x W^T + s (x A^T) B^T without a pass over the outputs for the scaling or the sum, and without the
copies that autograd keeps of both. What is computed is peft's; how often it is rounded is less.
"""

import types
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from plumbline.models.hardware import Choice
from plumbline.models.precision import dense


@dataclass
class Fusion:
    """How many LoRA layers were fused, and how many were left to peft for each reason."""

    fused: int = 0
    left: Counter[str] = field(default_factory=Counter)

    @property
    def choice(self) -> Choice:
        total = self.fused + self.left.total()
        reasons = "; ".join(f"{count} to peft: {why}" for why, count in self.left.most_common())
        return Choice(f"{self.fused} of {total}", reasons or "base, adapter and scaling in one product")


def fuse(model: Any) -> Fusion:
    """Let the LoRA layers of a model train through `Fused`, where they can.

    Without gradients, and with the adapter disabled, merged or joined by another, a layer is
    peft's as before: bitsandbytes has kernels of its own for generation.
    """
    from peft.tuners.lora import LoraLayer

    result = Fusion()
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for module in layers:
        why = _refusal(module)
        if why is None:
            module.forward = types.MethodType(_forward, module)
            result.fused += 1
        else:
            result.left[why] += 1
    return result


def _refusal(module: Any) -> str | None:
    """Why a LoRA layer stays with peft; None when it can be fused."""
    import bitsandbytes as bnb
    from peft.tuners import lora

    base = module.base_layer
    if type(module).__name__ == "Linear8bitLt" and isinstance(base, bnb.nn.Linear8bitLt):
        if base.state.has_fp16_weights:
            return "its 8-bit base holds 16-bit weights"
    elif type(module).__name__ == "Linear4bit" and isinstance(base, bnb.nn.Linear4bit):
        pass
    elif type(module) is not lora.Linear or type(base) is not torch.nn.Linear:
        return f"{type(module).__name__} over {type(base).__name__}"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "its base is trained too"
    if module.lora_variant:
        return f"it is {', '.join(sorted({type(v).__name__ for v in module.lora_variant.values()}))}"
    if any(module.lora_bias.values()):
        return "its adapter has a bias"
    if len(module.active_adapters) != 1 or module.active_adapters[0] not in module.lora_A:
        return "it has not exactly one active adapter"
    return "its adapter is merged" if module.merged else None


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In the place of a LoRA layer's own forward."""
    active = self.active_adapters
    if (
        args
        or kwargs
        or self.disable_adapters
        or self.merged
        or len(active) != 1
        or active[0] not in self.lora_A
        or not torch.is_grad_enabled()
    ):
        return type(self).forward(self, x, *args, **kwargs)
    name = active[0]
    dropout = getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0
    dtype = _dtype(self.base_layer, x)
    out = Fused.apply(
        x.to(dtype),
        self.lora_A[name].weight,
        self.lora_B[name].weight,
        self.scaling[name],
        dropout,
        self.base_layer,
    )
    # bitsandbytes answers in the type it was asked in; a plain layer in the one it computes in.
    return out if type(self.base_layer) is torch.nn.Linear else out.to(x.dtype)


def _dtype(base: Any, x: torch.Tensor) -> torch.dtype:
    """What a layer computes in: autocast's type, else its own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    packed = getattr(base.weight, "quant_state", None) is not None  # maybe in floating point's bytes
    if base.weight.dtype.is_floating_point and not packed:
        return base.weight.dtype
    return getattr(base, "compute_dtype", None) or x.dtype


class Fused(torch.autograd.Function):
    """x W^T + bias + scale * dropout(x) A^T B^T, for a frozen W.

    W is not saved but computed again from its layer: saved tensors may be moved to the host.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, dropout: float, base: Any
    ) -> torch.Tensor:
        """:param x: (..., inputs) in the type to compute in; a: (rank, inputs); b: (outputs, rank)"""
        dtype = x.dtype
        rows = x.reshape(-1, x.shape[-1])
        weight = dense(base, dtype).t()
        out = rows @ weight if base.bias is None else torch.addmm(base.bias.to(dtype), rows, weight)
        del weight
        dropout_mask = None
        dropped_rows = rows
        if dropout:
            dropped_rows, dropout_mask = torch.native_dropout(rows, dropout, True)
        low_a, low_b = a.to(dtype), b.to(dtype)
        thin = dropped_rows @ low_a.t()
        out.addmm_(thin, low_b.t(), alpha=scale)
        ctx.save_for_backward(rows, thin, low_a, low_b, dropout_mask)
        ctx.base, ctx.scale, ctx.dropout, ctx.shape = base, scale, dropout, x.shape
        ctx.adapter_dtype = a.dtype
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        rows, thin, a, b, dropout_mask = ctx.saved_tensors
        share = 1 / (1 - ctx.dropout) if ctx.dropout else 1.0
        gradient = gradient.reshape(-1, gradient.shape[-1]).to(rows.dtype)
        into_thin = gradient @ b
        dropped_rows = rows if dropout_mask is None else rows * dropout_mask
        gradient_a = (into_thin.t() @ dropped_rows).to(ctx.adapter_dtype).mul_(ctx.scale * share)
        gradient_b = (gradient.t() @ thin).to(ctx.adapter_dtype).mul_(ctx.scale)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = gradient @ dense(ctx.base, rows.dtype)
            if dropout_mask is None:
                gradient_x.addmm_(into_thin, a, alpha=ctx.scale)
            else:
                gradient_x.addcmul_(into_thin @ a, dropout_mask.to(a.dtype), value=ctx.scale * share)
            gradient_x = gradient_x.view(ctx.shape)
        return gradient_x, gradient_a, gradient_b, None, None, None
