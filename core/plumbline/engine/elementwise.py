"""The elementwise parts of a training step, forward and backward: Triton on CUDA, torch elsewhere.

Rows are tokens. Gradients overwrite what is no longer needed, to hold memory down; each function
says what it overwrites.
"""

from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import silu

CROSS_ENTROPY_BLOCK = 4096


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The Triton kernels, or None where Triton is not installed (it has no Windows or macOS build)."""
    try:
        from plumbline.engine.kernels import elementwise
    except ImportError:
        return None
    return elementwise


def fast(tensor: torch.Tensor) -> bool:
    """True where the Triton kernels take this tensor."""
    return tensor.is_cuda and _kernels() is not None


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich, 2019). :param x: (rows, columns)"""
    if not fast(x):
        value = x.float()
        inverse = torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + epsilon)
        return (value * inverse).to(x.dtype) * weight
    rows, columns = x.shape
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    block = _power_of_two(columns)
    warps = 8 if block >= 2048 else 4
    _kernels().norm_kernel[(rows,)](
        out, x, weight, x.stride(0), columns, epsilon, BLOCK=block, num_warps=warps
    )
    return out


def rms_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gradient of the norm's input, plus ``add``. Overwrites ``gradient``, and returns it.

    :param gradient: of the output, (rows, columns), contiguous
    :param x: the norm's input
    """
    if not fast(x):
        value, scaled_gradient = x.float(), gradient.float() * weight.float()
        inverse = torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + epsilon)
        normed = value * inverse
        result = inverse * (scaled_gradient - normed * (scaled_gradient * normed).mean(-1, keepdim=True))
        return gradient.copy_(result if add is None else result + add.float())
    rows, columns = x.shape
    block = _power_of_two(columns)
    warps = 8 if block >= 2048 else 4
    _kernels().norm_backward_kernel[(rows,)](
        gradient,
        x,
        weight,
        gradient if add is None else add,
        x.stride(0),
        columns,
        epsilon,
        ADD=add is not None,
        BLOCK=block,
        num_warps=warps,
    )
    return gradient


def rotate(
    x: torch.Tensor,
    heads: int,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor | None = None,
    inverse: bool = False,
) -> torch.Tensor:
    """Rotary position embedding (Su et al., 2021) of the first ``heads`` heads of every token.

    :param x: (tokens, at least heads * head_dim), last dimension contiguous
    :param cosine: (positions, head_dim / 2), and ``sine`` likewise
    :param out: where the result goes; x itself when None
    :param inverse: turn back, which is what gradients need
    """
    out = x if out is None else out
    half = cosine.shape[1]
    if fast(x):
        _kernels().rotate_kernel[(x.shape[0],)](
            out,
            x,
            cosine,
            sine,
            positions,
            out.stride(0),
            x.stride(0),
            heads,
            INVERSE=inverse,
            HALF=half,
            HEADS=_power_of_two(heads),
            num_warps=4,
        )
        return out
    cos, sin = cosine[positions].float()[:, None], sine[positions].float()[:, None]
    if inverse:
        sin = -sin
    width = heads * 2 * half
    first, second = x[:, :width].unflatten(1, (heads, 2, half)).float().unbind(2)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=2)
    out[:, :width] = turned.flatten(1).to(out.dtype)
    return out


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer, 2020). :param gate_up: (rows, 2 * width), gates first"""
    width = gate_up.shape[1] // 2
    if not fast(gate_up):
        return silu(gate_up[:, :width]) * gate_up[:, width:]
    out = torch.empty((gate_up.shape[0], width), dtype=gate_up.dtype, device=gate_up.device)
    grid = (gate_up.shape[0], -(-width // 1024))
    _kernels().swiglu_kernel[grid](out, gate_up, width, BLOCK=1024, num_warps=4)
    return out


def swiglu_backward(gradient: torch.Tensor, gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The product again, and the gradient of ``gate_up``. Overwrites both arguments with them.

    :param gradient: of the product, (rows, width)
    :returns: product (rows, width), gradient of gate_up (rows, 2 * width)
    """
    width = gradient.shape[1]
    if fast(gradient):
        grid = (gradient.shape[0], -(-width // 1024))
        _kernels().swiglu_backward_kernel[grid](gradient, gate_up, width, BLOCK=1024, num_warps=4)
        return gradient, gate_up
    gate, up, product_gradient = gate_up[:, :width].float(), gate_up[:, width:].float(), gradient.float()
    sigmoid = torch.sigmoid(gate)
    active = (gate * sigmoid).to(gradient.dtype).float()
    # In float32 the three are the arguments themselves: all is computed before any is overwritten.
    product, gate, up = (
        active * up,
        product_gradient * up * sigmoid * (1 + gate * (1 - sigmoid)),
        product_gradient * active,
    )
    gate_up[:, :width], gate_up[:, width:] = gate.to(gate_up.dtype), up.to(gate_up.dtype)
    return gradient.copy_(product), gate_up


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each row's target, in nats, float32, shape (rows,).

    Overwrites ``logits`` (rows, vocabulary) with the gradient of the losses' sum.

    :param weight: of every row, or of each, (rows,)
    """
    weighted = isinstance(weight, torch.Tensor)
    if not fast(logits):
        value = logits.float()
        losses = torch.nn.functional.cross_entropy(value, targets, reduction="none")
        share = torch.softmax(value, dim=-1)
        share[torch.arange(len(targets), device=share.device), targets] -= 1
        logits.copy_(share.mul_(weight[:, None] if isinstance(weight, torch.Tensor) else weight))
        return losses
    losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    _kernels().cross_entropy_kernel[(len(targets),)](
        losses,
        logits,
        targets,
        weight if weighted else losses,
        1.0 if weighted else weight,
        logits.shape[1],
        logits.stride(0),
        WEIGHTED=weighted,
        BLOCK=CROSS_ENTROPY_BLOCK,
        num_warps=8,
    )
    return losses
