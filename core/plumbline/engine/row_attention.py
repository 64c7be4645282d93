"""Causal attention within packed rows, forward and backward, for the hand-written decoder.

On CUDA it runs on our Triton kernels: for rows as short as instructions are they take about half
the time of FlashAttention-2. Elsewhere it runs on `plumbline.engine.varlen_attention`, through autograd.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from plumbline.batches.packing import TILE, Pack
from plumbline.engine import elementwise
from plumbline.engine.varlen_attention import varlen


@dataclass
class Attended:
    """``out`` (tokens, heads, head_dim), and what the gradient needs besides."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor
    logarithms: torch.Tensor | None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float, keep: bool
) -> Attended:
    """Every token's attention to its own row, up to itself.

    :param query: (tokens, heads, head_dim); ``key`` and ``value`` with as many heads or fewer
    :param keep: the gradient will be asked for
    """
    if _takes(query):
        return _forward(query, key, value, pack, scale)
    query, key, value = (tensor.detach().requires_grad_(keep) for tensor in (query, key, value))
    # torch's attention on CPUs is quicker in float32 than in 16 bits.
    dtype = query.dtype if query.is_cuda else torch.float32
    with torch.set_grad_enabled(keep):
        wide = query.to(dtype), key.to(dtype), value.to(dtype)
        out = varlen(wide[0], wide[1], wide[2], pack.boundaries, pack.lengths, scale).to(query.dtype)
    return Attended(query, key, value, out, None)


def attend_backward(attended: Attended, gradient: torch.Tensor, pack: Pack, scale: float) -> torch.Tensor:
    """Gradients of query, key and value side by side, (tokens, all heads * head_dim)."""
    query, key, value = attended.query, attended.key, attended.value
    if attended.logarithms is None:
        parts = torch.autograd.grad(attended.out, (query, key, value), gradient)
        return torch.cat([part.flatten(1) for part in parts], dim=1)
    kernels, options = _kernels(), _options(query, key, scale)
    tokens, heads, width = query.shape
    key_heads = key.shape[1]
    products = torch.empty_like(attended.logarithms)
    grid = (-(-tokens // TILE), heads)
    kernels.products_kernel[grid](products, attended.out, gradient, tokens, WIDTH=width, ROWS=TILE)
    out = torch.empty((tokens, (heads + 2 * key_heads) * width), dtype=query.dtype, device=query.device)
    key_out, value_out = out[:, heads * width :], out[:, (heads + key_heads) * width :]
    inputs = (gradient, query, key, value, attended.logarithms, products, pack.tiles, pack.boundaries)
    numbers = (options.pop("scale"), scale, tokens)
    strides = (query.stride(0), key.stride(0), value.stride(0), out.stride(0), gradient.stride(0))
    kernels.query_gradient_kernel[(len(pack.tiles), heads)](
        out, *inputs, *numbers, *strides, **options, ROWS=TILE, COLUMNS=TILE, num_warps=4, num_stages=2
    )
    kernels.key_gradient_kernel[(len(pack.tiles), key_heads)](
        key_out,
        value_out,
        *inputs,
        *numbers,
        *strides,
        **options,
        ROWS=TILE // 2,
        COLUMNS=TILE,
        num_warps=4,
        num_stages=3,
    )
    return out


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float
) -> Attended:
    tokens, heads, width = query.shape
    out = torch.empty((tokens, heads, width), dtype=query.dtype, device=query.device)
    logarithms = torch.empty((heads, tokens), dtype=torch.float32, device=query.device)
    options = _options(query, key, scale)
    _kernels().forward_kernel[(len(pack.tiles), heads)](
        out,
        logarithms,
        query,
        key,
        value,
        pack.tiles,
        pack.boundaries,
        options.pop("scale"),
        tokens,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        out.stride(0),
        **options,
        ROWS=TILE,
        COLUMNS=TILE,
        num_warps=4,
        num_stages=3,
    )
    return Attended(query, key, value, out, logarithms)


def _options(query: torch.Tensor, key: torch.Tensor, scale: float) -> dict[str, Any]:
    group, width = query.shape[1] // key.shape[1], query.shape[2]
    return {"GROUP": group, "WIDTH": width, "scale": scale * math.log2(math.e)}


def _takes(query: torch.Tensor) -> bool:
    width = query.shape[2]
    return elementwise.fast(query) and query.dtype == torch.bfloat16 and width in (32, 64, 128)


def _kernels() -> Any:
    from plumbline.engine.kernels import attention

    return attention
