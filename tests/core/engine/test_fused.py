"""The fused LoRA layer computes what peft's does: outputs, every gradient, and when it may not."""

from typing import Any

import pytest
import torch

from plumbline.engine import lora_linear
from plumbline.models import precision
from tests import tiny

HELD = [("none", False), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)]
BFLOAT = {"device_type": "cpu", "dtype": torch.bfloat16}


def layers_of(kind: str, double: bool = False, dtype: Any = torch.float32, **changes: Any) -> tuple[Any, Any]:
    """A model of Qwen 2's shape, whose first LoRA layer has a bias and its last has none."""
    model = tiny.base("qwen2", dtype=dtype)
    if kind != "none":
        tiny.quantised(model, kind, double)
    tuned = tiny.adapted(model, **changes).train()
    held = tiny.linear_layers(tuned)
    return tuned, (held[0], held[6])


def results(layer: Any, x: torch.Tensor, forward: Any, autocast: bool = False) -> list[torch.Tensor]:
    """Output and gradients (input, A, B) of one layer, for random gradients of its output."""
    x = x.clone().requires_grad_()
    with torch.autocast(**BFLOAT, enabled=autocast):
        out = forward(x)
    generator = torch.Generator().manual_seed(9)
    incoming = torch.randn(out.shape, generator=generator).to(out.dtype)
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return [out.detach(), *torch.autograd.grad(out, [x, *weights], incoming)]


def peft_forward(layer: Any) -> Any:
    return lambda x: type(layer).forward(layer, x)


def inputs(layer: Any, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 7, layer.in_features, generator=generator)


@pytest.mark.parametrize(("kind", "double"), HELD)
def test_output_and_gradients_are_pefts(kind: str, double: bool) -> None:
    model, layers = layers_of(kind, double)
    assert lora_linear.fuse(model).choice.value == "14 of 14"
    for layer in layers:
        x = inputs(layer)
        ours, theirs = results(layer, x, layer), results(layer, x, peft_forward(layer))
        for mine, true in zip(ours, theirs, strict=True):
            assert mine.dtype == true.dtype == torch.float32 and mine.shape == true.shape
            assert tiny.distance(mine, true) < 1e-5


def test_an_8_bit_base_is_used_dequantised() -> None:
    model, layers = layers_of("int8")
    _, plain = layers_of("none")
    assert lora_linear.fuse(model).fused == 14
    for layer, other in zip(layers, plain, strict=True):
        weight = layer.base_layer.weight
        other.base_layer.weight.data = weight.data.float() * weight.SCB[:, None] / 127
        x = inputs(layer)
        for mine, true in zip(results(layer, x, layer), results(other, x, peft_forward(other)), strict=True):
            assert tiny.distance(mine, true) < 1e-5


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_in_16_bits_the_error_is_no_larger_than_pefts(kind: str) -> None:
    model, layers = layers_of(kind, dtype=torch.bfloat16)
    _, exact = layers_of("none")
    lora_linear.fuse(model)
    ours, theirs = torch.zeros(4), torch.zeros(4)
    for layer, other in zip(layers, exact, strict=True):
        other.base_layer.weight.data = precision.dense(layer.base_layer, torch.float32)
        if layer.base_layer.bias is not None:
            other.base_layer.bias.data = layer.base_layer.bias.float()
        for seed in range(12):
            x = inputs(layer, seed).bfloat16()
            truth = results(other, x.float(), peft_forward(other))
            for errors, forward in ((ours, layer), (theirs, peft_forward(layer))):
                values = results(layer, x, forward, autocast=True)
                assert values[0].dtype == torch.bfloat16 and values[2].dtype == torch.float32
                errors += torch.tensor([tiny.distance(v, t) for v, t in zip(values, truth, strict=True)])
    assert (ours <= 1.1 * theirs).all(), (ours / theirs).tolist()


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_a_float32_input_gets_the_type_that_peft_answers_in(kind: str) -> None:
    model, (layer, _) = layers_of(kind, dtype=torch.bfloat16)
    lora_linear.fuse(model)
    x = inputs(layer)
    mine = results(layer, x, layer, autocast=True)
    true = results(layer, x, peft_forward(layer), autocast=True)
    assert [value.dtype for value in mine] == [value.dtype for value in true]
    for value, other in zip(mine, true, strict=True):
        assert tiny.distance(value, other) < 0.02


def test_dropout_drops_inputs_of_the_adapter_only() -> None:
    model, layers = layers_of("nf4", lora_dropout=0.5)
    lora_linear.fuse(model)
    for layer in layers:
        x = inputs(layer)
        torch.manual_seed(4)
        ours = results(layer, x, layer)
        torch.manual_seed(4)
        dropped, kept = torch.native_dropout(x.reshape(-1, x.shape[-1]), 0.5, True)
        assert 0.3 < kept.float().mean() < 0.7

        def by_hand(x: torch.Tensor, layer: Any = layer, kept: Any = kept) -> torch.Tensor:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            return layer.base_layer(x) + 1.5 * (x * kept.view(x.shape) * 2) @ a.t() @ b.t()

        for mine, true in zip(ours, results(layer, x, by_hand), strict=True):
            assert tiny.distance(mine, true) < 1e-5
        layer.eval()
        assert tiny.distance(layer(x.requires_grad_()), type(layer).forward(layer, x)) < 1e-5


def test_no_weight_is_saved_for_the_backward_pass() -> None:
    model, (layer, _) = layers_of("none")
    lora_linear.fuse(model)
    x, sizes = inputs(layer).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    assert sizes and tuple(layer.base_layer.weight.shape) not in sizes


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits.detach()


def test_a_disabled_adapter_leaves_the_base() -> None:
    base = logits(tiny.base("qwen2"))
    model, _ = layers_of("none")
    lora_linear.fuse(model)
    assert tiny.distance(logits(model), base) > 0.01
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert tiny.distance(logits(model), base) > 0.01


def test_evaluation_and_generation_are_pefts() -> None:
    model, _ = layers_of("nf4", True)
    model.eval()
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        before, told = logits(model), model.generate(**prompt)
        lora_linear.fuse(model)
        assert torch.equal(logits(model), before)
        assert torch.equal(model.generate(**prompt), told)


def test_merged_and_further_adapters_are_left_to_peft() -> None:
    from peft import LoraConfig

    model, _ = layers_of("none")
    plain = logits(model)
    lora_linear.fuse(model)
    model.merge_adapter()
    assert tiny.distance(logits(model), plain) < 1e-5
    model.unmerge_adapter()
    assert tiny.distance(logits(model), plain) < 1e-5
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    tiny.unfuse(model)
    assert torch.equal(logits(model), both) and tiny.distance(both, plain) > 0.01


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"use_dora": True}, "DoraLinearVariant"), ({"lora_bias": True, "bias": "none"}, "has a bias")],
)
def test_other_adapters_are_left_to_peft_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    model, _ = layers_of("none", **changes)
    before = logits(model)
    fusion = lora_linear.fuse(model)
    assert fusion.fused == 0 and fusion.left.total() == 14
    assert fusion.choice.value == "0 of 14" and reason in fusion.choice.why
    assert torch.equal(logits(model), before)
