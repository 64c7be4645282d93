"""Packed rows attend to themselves alone, in the kernel's terms and in transformers' models."""

from typing import Any

import pytest
import torch

from plumbline.engine import varlen_attention
from plumbline.engine.varlen_attention import NAME, ROWS, usable, varlen
from tests import tiny

LENGTHS = (11, 1, 17, 5)
TOKENS = sum(LENGTHS)
BOUNDARIES = torch.tensor([0, 11, 12, 29, 34], dtype=torch.int32)
OTHERWISE = ("bloom", "falcon", "lfm2", "llama4_text", "stablelm")
PACKING = [family for family in tiny.FAMILIES if family not in OTHERWISE]


def spelled_out(
    query: Any, key: Any, value: Any, scale: float, window: Any = None, softcap: Any = None, sinks: Any = None
) -> Any:
    """Attention over the whole pack at once, with a mask that says who sees whom."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    row = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(TOKENS)
    seen = (row[:, None] == row[None]) & (place[:, None] >= place[None])
    if window is not None:
        seen &= place[:, None] - place[None] < window
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    shares = torch.where(seen, scores, -torch.inf).exp()
    total = shares.sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp()[:, None, None])
    return torch.einsum("hqk,khd->qhd", shares / total, value)


def heads(count: int, size: int, seed: int) -> torch.Tensor:
    """Heads as a model's attention has them: a transposed, non-contiguous view."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(count, TOKENS, size + 3, generator=generator)[..., :size]
    return whole.transpose(0, 1).requires_grad_()


SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3}, {"window": 17}, {"softcap": 2.0}, {"sinks": SINKS}, {"softcap": 2.0, "window": 6}],
    ids=str,
)
def test_rows_attend_to_themselves_alone(key_heads: int, options: dict[str, Any]) -> None:
    inputs = [heads(4, 16, 0), heads(key_heads, 16, 1), heads(key_heads, 16, 2)]
    weights = torch.randn(TOKENS, 4, 16, generator=torch.Generator().manual_seed(3))
    out = varlen(*inputs, BOUNDARIES, LENGTHS, 0.3, **options)
    truth = spelled_out(*inputs, 0.3, **options)
    assert tiny.distance(out, truth) < 1e-5
    ours = torch.autograd.grad((out * weights).sum(), inputs)
    theirs = torch.autograd.grad((truth * weights).sum(), inputs)
    for mine, true in zip(ours, theirs, strict=True):
        assert tiny.distance(mine, true) < 1e-5


def test_values_may_have_a_size_of_their_own() -> None:
    inputs = [heads(4, 24, 0), heads(2, 24, 1), heads(2, 16, 2)]
    out = varlen(*inputs, BOUNDARIES, LENGTHS, 0.3)
    assert out.shape == (TOKENS, 4, 16)
    assert tiny.distance(out, spelled_out(*inputs, 0.3)) < 1e-5


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_dropout_keeps_the_mean(softcap: float | None) -> None:
    inputs = [heads(4, 16, 0), heads(2, 16, 1), heads(2, 16, 2)]
    torch.manual_seed(0)
    many = [varlen(*inputs, BOUNDARIES, LENGTHS, 0.3, softcap=softcap, dropout=0.2) for _ in range(300)]
    truth = spelled_out(*inputs, 0.3, softcap=softcap)
    assert tiny.distance(many[0], truth) > 0.1
    assert tiny.distance(torch.stack(many).mean(0), truth) < 0.1


def of_torch_2_10(  # type: ignore[no-untyped-def]
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    assert is_causal and max_q == max_k == 17 and key.shape[1] == query.shape[1]
    return spelled_out(query, key, value, query.shape[-1] ** -0.5)


def of_torch_2_11(  # type: ignore[no-untyped-def]
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
):
    assert window_size[1] == 0 and key.shape[1] == query.shape[1]
    window = None if window_size[0] == -1 else window_size[0] + 1
    return spelled_out(query, key, value, scale, window)


def of_torch_2_13(  # type: ignore[no-untyped-def]
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert window_size[1] == 0 and enable_gqa == (key.shape[1] != query.shape[1])
    window = None if window_size[0] == -1 else window_size[0] + 1
    return spelled_out(query, key, value, scale, window)


@pytest.mark.parametrize("kernel", [of_torch_2_10, of_torch_2_11, of_torch_2_13])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_kernel_of_every_torch_is_called_its_way(
    kernel: Any, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen as module

    monkeypatch.setattr(module, "varlen_attn", kernel)
    monkeypatch.setattr(varlen_attention, "_has_kernel", lambda device: True)
    monkeypatch.setattr(varlen_attention, "_HALF", (torch.float32,))
    varlen_attention._parameters.cache_clear()
    try:
        inputs = [heads(4, 16, 0), heads(key_heads, 16, 1), heads(key_heads, 16, 2)]
        for window in (None, 3):
            out = varlen(*inputs, BOUNDARIES, LENGTHS, 0.3, window)
            assert tiny.distance(out, spelled_out(*inputs, 0.3, window)) < 1e-5
    finally:
        varlen_attention._parameters.cache_clear()


def packed_logits(model: Any, lengths: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    pack = tiny.packed(lengths, seed)
    with torch.no_grad(), varlen_attention.packed(model):
        output = model(
            input_ids=pack.ids[None],
            position_ids=pack.positions[None],
            use_cache=False,
            **varlen_attention.arguments(pack),
        )
    return output.logits[0]


@pytest.mark.parametrize("family", PACKING)
def test_packed_rows_have_the_logits_of_rows_alone(family: str) -> None:
    model = tiny.base(family)
    together = packed_logits(model, LENGTHS).split(LENGTHS)
    for row, logits in zip(tiny.rows(LENGTHS), together, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
        assert tiny.distance(logits, alone) < 1e-5


@pytest.mark.parametrize("family", PACKING)
def test_a_row_does_not_see_its_neighbours_change(family: str) -> None:
    model = tiny.base(family)
    pack = tiny.packed(LENGTHS)
    before = packed_logits(model, LENGTHS)[12:29]
    other = tiny.rows(LENGTHS, seed=5)
    pack.ids[:12] = torch.tensor([*other[0]["input_ids"], *other[1]["input_ids"]])
    pack.ids[29:] = torch.tensor(other[3]["input_ids"])
    with torch.no_grad(), varlen_attention.packed(model):
        after = model(
            input_ids=pack.ids[None],
            position_ids=pack.positions[None],
            use_cache=False,
            **varlen_attention.arguments(pack),
        ).logits[0, 12:29]
    assert tiny.distance(after, before) < 1e-6


def test_outside_a_pack_a_model_attends_as_it_was_loaded() -> None:
    model = tiny.base("llama", attention="sdpa")
    with pytest.raises(ZeroDivisionError), varlen_attention.packed(model):
        assert model.config._attn_implementation == NAME
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_hands_no_pack_on_is_refused() -> None:
    model = tiny.base("llama")
    with torch.no_grad(), varlen_attention.packed(model), pytest.raises(varlen_attention.PackLost):
        model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)


@pytest.mark.parametrize(
    ("family", "value", "reason"),
    [
        ("llama", NAME, "compute capability"),
        ("gemma2", NAME, "soft caps"),
        ("gpt_oss", NAME, "sinks"),
        ("bloom", ROWS, "does not take positions"),
        ("lfm2", ROWS, "carry a state"),
        ("llama4_text", "eager", "in chunks"),
    ],
)
def test_the_choice_says_why(family: str, value: str, reason: str) -> None:
    choice = usable(tiny.base(family).config, 1024)
    assert choice.value == value and reason in choice.why


def test_the_choice_says_why_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(varlen_attention, "_has_kernel", lambda device: True)
    mistral = tiny.base("mistral").config
    assert "window of 6" in usable(mistral, 1024).why
    assert usable(mistral, 6).why == "torch's variable-length kernel"
    assert usable(tiny.base("gemma4_text", global_head_dim=512).config, 1024).why.startswith("in some layers")
    dropping = tiny.base("llama", attention_dropout=0.1).config
    assert "dropout" in usable(dropping, 1024).why
