"""Causal attention within the rows of a pack, and its place in transformers' models.

A model attends so only inside `packed`; outside it, evaluation and generation use the implementation
and the masks that the model was loaded with.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from plumbline.batches.packing import Pack
from plumbline.models.hardware import Choice

NAME = "plumbline_packed"
ROWS = "row by row"
_HALF = (torch.bfloat16, torch.float16)


class PackLost(RuntimeError):
    """A model's attention was called without the pack that the model was called with."""


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of every token to its own row, differentiable.

    :param query: (tokens, heads, head size), the last dimension contiguous
    :param key: (tokens, key heads, head size); ``value`` likewise
    :param boundaries: where rows begin, and the end of the last, (rows + 1,), int32, on the device
    :param lengths: the rows' lengths, on the host, so that the device is never waited for
    :param window: tokens that a token sees, itself included; None means all before it
    :param softcap: largest score, reached through tanh (Gemma 2)
    :param sinks: score of attending to nothing, one a head, (heads,) (gpt-oss)
    :returns: (tokens, heads, value head size)
    """
    if window is not None and window >= max(lengths):
        window = None
    plain = softcap is None and sinks is None
    if plain and not dropout and _kernel_takes(query, value, window):
        return _kernel(query, key, value, boundaries, max(lengths), scale, window)
    rows = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    if plain:
        return torch.cat([_row(*row, scale, window, dropout) for row in rows])
    return torch.cat([_spelled_out(*row, scale, window, softcap, sinks, dropout) for row in rows])


@lru_cache(maxsize=1)
def _parameters() -> frozenset[str]:
    """What this torch's varlen_attn takes: 2.10 ``is_causal``, 2.11 ``window_size``, 2.13 ``enable_gqa``."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


@lru_cache(maxsize=16)
def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _kernel_takes(query: torch.Tensor, value: torch.Tensor, window: int | None) -> bool:
    size = query.shape[-1]
    fits = query.dtype in _HALF and size <= 256 and size % 8 == 0 and value.shape[-1] == size
    return fits and _has_kernel(query.device) and (window is None or "window_size" in _parameters())


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    groups = query.shape[1] // key.shape[1]
    if "enable_gqa" in _parameters():
        options["enable_gqa"] = groups > 1
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if "window_size" in _parameters():
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if "scale" in _parameters():
        options["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    out: Any = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, **options)
    return out


def _row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    """One row through torch's own attention."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.is_cuda:
        # On CUDA torch's memory-efficient kernel wants as many key heads as query heads.
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = None if window is None else _seen(len(query), window, query.device)
    out = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out[0].transpose(0, 1)


def _spelled_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """One row with what no kernel of torch has; holds its scores, (heads, length, length)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query.transpose(0, 1) @ key.permute(1, 2, 0)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~_seen(len(query), window, query.device), -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[:, None, None].expand(-1, len(query), 1)
        scores = torch.cat([scores, column], dim=-1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    shares = torch.dropout(shares[..., : len(query)], dropout, train=True)
    return (shares @ value.transpose(0, 1)).transpose(0, 1)


def _seen(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """True where a token (dimension 0) sees another (dimension 1)."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal if window is None else causal.triu(1 - window)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    pack_lengths: tuple[int, ...] | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' calling convention: (1, heads, tokens, head size) to (1, tokens, heads, head size)."""
    if pack_lengths is None or cu_seq_lens_q is None or others.get("position_bias") is not None:
        raise PackLost(f"{type(module).__name__} was not handed the pack, or has a position bias")
    if torch.is_autocast_enabled(query.device.type):
        # torch's own attention is cast so; its varlen kernel is not.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    out = varlen(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        pack_lengths,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window,
        softcap,
        s_aux,
        dropout,
    )
    return out[None], None


def register() -> None:
    """Make NAME known to transformers; once or often.

    No mask function goes with it: for a name without one transformers builds no mask at all.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Inside, a transformers model attends within the rows of the pack it is given; see `arguments`.

    The backward pass belongs inside too: gradient checkpointing runs layers again there.
    """
    register()
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def arguments(pack: Pack) -> dict[str, Any]:
    """What a model is called with inside `packed`, beside ids and positions: transformers' own names."""
    return {
        "cu_seq_lens_q": pack.boundaries,
        "cu_seq_lens_k": pack.boundaries,
        "max_length_q": pack.longest,
        "max_length_k": pack.longest,
        "pack_lengths": pack.lengths,
    }


def usable(config: Any, max_length: int) -> Choice:
    """How a model of this config attends to packs, and why.

    ``NAME`` is `varlen`; "sdpa" or "eager" the model's own implementation, with masks that
    transformers makes from the positions; ``ROWS`` every row on its own.

    :param max_length: tokens of the longest row
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ())
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if known else None
    if family is None:
        return Choice(ROWS, f"{config.model_type} is not known to transformers as a language model")
    if family._is_stateful or kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return Choice(ROWS, f"{config.model_type} has layers that carry a state from row to row")
    if "position_ids" not in inspect.signature(family.forward).parameters:
        return Choice(ROWS, f"{config.model_type} does not take positions")
    own = config._attn_implementation or ("sdpa" if family._supports_sdpa else "eager")
    if "chunked_attention" in kinds:
        return Choice(own, "attention in chunks has no kernel for packs; the mask holds tokens²")
    if not family._supports_flash_attn:
        return Choice(own, f"{config.model_type} has an attention of its own; the mask holds tokens²")
    return Choice(NAME, _how(text, max_length))


def _how(text: Any, max_length: int) -> str:
    """What `varlen` will do for a model, in words."""
    window = getattr(text, "sliding_window", None)
    # Where layers differ, as in Gemma 4, transformers refuses to name one size for all.
    layers = getattr(text, "per_layer_config", None) or [text]
    sizes = {
        getattr(layer, "head_dim", None) or text.hidden_size // text.num_attention_heads for layer in layers
    }
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    one_by_one = "rows are attended to one after the other: "
    if getattr(text, "attn_logit_softcapping", None):
        return one_by_one + "no kernel has its soft caps"
    if text.model_type == "gpt_oss":
        return one_by_one + "no kernel has its sinks"
    if getattr(text, "attention_dropout", 0.0):
        return one_by_one + "the kernel for packs has no dropout"
    if device is None or not _has_kernel(device):
        return one_by_one + "the kernel for packs needs CUDA and compute capability 8.0"
    if odd := [size for size in sizes if size > 256 or size % 8]:
        return f"in some layers {one_by_one}the kernel for packs has no heads of {odd[0]}"
    if getattr(text, "v_head_dim", None) not in sizes | {None}:
        return one_by_one + "the kernel for packs wants keys and values of one size"
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    if window and window < max_length and "sliding_attention" in kinds:
        return f"torch's variable-length kernel, with a window of {window} tokens"
    return "torch's variable-length kernel"
