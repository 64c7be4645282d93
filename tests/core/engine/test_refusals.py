"""What the hand-written decoder takes, and what it leaves to autograd with the reason."""

from typing import Any

import pytest
import torch

from plumbline.config.schema import RunConfig
from plumbline.engine import lora_linear
from plumbline.engine.autograd import AutogradEngine
from plumbline.engine.decoder import DecoderEngine
from plumbline.engine.plan import Plan
from plumbline.engine.select import engine
from plumbline.engine.support import odd_adapters, refusal
from tests import tiny

LAYERS = 3
LONGEST = 128
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0}
LONGROPE |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("mistral", {}, "window is shorter"),
        ("qwen2", SLIDING, "window is shorter"),
        ("llama", {"rope_parameters": LONGROPE}, "depends on the length"),
        ("llama", {"rope_parameters": DYNAMIC}, "depends on the length"),
        ("qwen3", {"attention_dropout": 0.1}, "attention has dropout"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused(
    family: str, changes: dict[str, Any], why: str
) -> None:
    model = tiny.base(family, **changes)
    assert why in (refusal(model, LONGEST, "float32") or "")
    tuned = tiny.adapted(model)
    made, decisions = engine(tuned, RunConfig(), plan())
    assert isinstance(made, AutogradEngine) and why in decisions["training path"].why


def test_a_window_that_no_row_is_longer_than_is_no_reason() -> None:
    assert refusal(tiny.base("mistral"), tiny.WINDOW, "float32") is None
    assert refusal(tiny.base("mistral"), tiny.WINDOW + 1, "float32") is not None
    # A window may be named and not be used.
    model = tiny.base("qwen2", use_sliding_window=False, sliding_window=6)
    assert refusal(model, LONGEST, "float32") is None


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_only_known_layers_are_taken(family: str) -> None:
    why = refusal(tiny.base(family), tiny.WINDOW, "bfloat16")
    if family in ("llama", "qwen2", "qwen3", "mistral"):
        assert why is None
    else:
        assert "layers go through autograd" in (why or "")


def test_a_head_that_is_more_than_a_matrix_and_16_bits_without_a_scale_are_refused() -> None:
    model = tiny.base("llama", num_hidden_layers=LAYERS)
    assert "float16" in (refusal(model, LONGEST, "float16") or "")
    assert refusal(model, LONGEST, "bfloat16") is None
    model.lm_head = torch.nn.Linear(64, tiny.VOCABULARY)
    assert "head is not a plain matrix" in (refusal(model, LONGEST, "float32") or "")
    trained = tiny.adapted(tiny.base("llama", num_hidden_layers=LAYERS), target_modules=["q_proj", "lm_head"])
    assert "head is not a plain matrix" in (refusal(trained.get_base_model(), LONGEST, "float32") or "")
    saved = tiny.adapted(tiny.base("llama", num_hidden_layers=LAYERS), modules_to_save=["lm_head"])
    assert "head is not a plain matrix" in (refusal(saved.get_base_model(), LONGEST, "float32") or "")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lora_dropout": 0.1}, "dropout"),
        ({"use_dora": True}, "not plain LoRA"),
        ({"lora_bias": True, "bias": "none"}, "not plain LoRA"),
        ({"modules_to_save": ["embed_tokens"]}, "something outside its layers is trained"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "something outside its layers is trained"),
    ],
    ids=str,
)
def test_odd_adapters_are_refused(changes: dict[str, Any], why: str) -> None:
    tuned = tiny.adapted(tiny.base("qwen2"), **changes)
    assert why in (odd_adapters(tuned) or "")
    made, decisions = engine(tuned, RunConfig(), plan())
    assert isinstance(made, AutogradEngine) and why in decisions["training path"].why


@pytest.mark.parametrize("changes", [{"modules_to_save": ["input_layernorm"]}, {"bias": "all"}], ids=str)
def test_what_is_trained_inside_a_layer_beside_its_adapters_is_refused(changes: dict[str, Any]) -> None:
    assert odd_adapters(tiny.adapted(tiny.base("qwen2"), **changes)) is not None


def test_adapters_in_an_odd_state_are_refused() -> None:
    from peft import LoraConfig

    tuned = tiny.adapted(tiny.base("llama", num_hidden_layers=LAYERS))
    assert odd_adapters(tuned) is None
    with tuned.disable_adapter():
        assert "several adapters" in (odd_adapters(tuned) or "")
    tuned.merge_adapter()
    assert odd_adapters(tuned) is not None
    tuned.unmerge_adapter()
    tuned.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    tuned.base_model.set_adapter(["default", "second"])
    assert "several adapters" in (odd_adapters(tuned) or "")


def plan(kept: int = 1, offload: bool = False) -> Plan:
    return Plan(64, kept, LAYERS, offload, "adamw_torch", False)


def test_the_plan_says_what_the_decoder_keeps() -> None:
    tuned = tiny.adapted(tiny.base("llama", num_hidden_layers=LAYERS))
    made, decisions = engine(tuned, RunConfig(), plan(kept=2, offload=True))
    assert isinstance(made, DecoderEngine) and decisions == {}
    assert made.recomputed == LAYERS - 2
    # A pack may be one row: that which fills it up.
    assert len(made.rope.cosine) >= max(RunConfig().training.max_length, 64)
    longer, _ = engine(tuned, RunConfig(), Plan(4096, 1, LAYERS, False, "adamw_torch", False))
    assert isinstance(longer, DecoderEngine) and len(longer.rope.cosine) == 4096
    assert not made.layers[0].qkv.together and longer.layers[0].qkv.together
    assert lora_linear.fuse(tuned).fused == 7 * LAYERS  # nothing of it was in the model's way
