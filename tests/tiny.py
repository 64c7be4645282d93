"""Tiny models of many families with random weights, their adapters and rows: no downloads."""

from pathlib import Path
from typing import Any

import torch

from plumbline.batches.packing import Pack, pack
from plumbline.models import stack

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 16}
BOTH = ["sliding_attention", "full_attention"]
WINDOW = 6  # tokens; shorter than most rows of the tests
# Caps low enough that the scores of random weights feel them.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": HEADS,
    "mistral": HEADS | {"sliding_window": WINDOW},
    "gemma": HEADS,
    "gemma2": HEADS
    | {
        "sliding_window": WINDOW,
        "layer_types": BOTH,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": HEADS | {"sliding_window": WINDOW, "layer_types": BOTH, "query_pre_attn_scalar": 16},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": WINDOW},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_oss": HEADS
    | {
        "sliding_window": WINDOW,
        "layer_types": BOTH,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "granite": {"logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "qwen3_moe": HEADS
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "llama4_text": HEADS
    | {"attention_chunk_size": WINDOW, "no_rope_layers": [1, 0], "num_local_experts": 2, "moe_layers": []}
    | {"intermediate_size_mlp": 128, "attn_temperature_tuning": False},
    "gemma4_text": HEADS
    | {"sliding_window": WINDOW, "layer_types": BOTH, "global_head_dim": 32, "num_global_key_value_heads": 2}
    | {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {},
    "stablelm": {},
}
FAMILIES = tuple(SETTINGS)
LINEAR_AND_FULL = ["linear_attention", "full_attention"]
SOME = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32}
NARROW = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": LINEAR_AND_FULL,
}
# Mixtures of experts. Those with the loss of how evenly their tokens are spread, and those without.
BALANCED: dict[str, dict[str, Any]] = {
    "mixtral": LOCAL,
    "qwen2_moe": SOME | NARROW,
    "qwen3_moe": SETTINGS["qwen3_moe"],
    "qwen3_next": SOME | NARROW | DELTA | HEADS,
    "qwen3_5_moe_text": SOME | NARROW | DELTA | HEADS,
    "granitemoe": LOCAL,
    "granitemoeshared": LOCAL,
    "granitemoe_swa": LOCAL | {"layer_types": BOTH[::-1]},
    "gpt_oss": SETTINGS["gpt_oss"],
    "olmoe": SOME,
    "flex_olmo": SOME,
    "phimoe": LOCAL | {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "minimax": LOCAL | {"layer_types": LINEAR_AND_FULL},
    "minimax_m2": LOCAL | HEADS,
    "ernie4_5_moe": NARROW | {"moe_num_experts": 4, "moe_k": 2},
    "mellum": SOME | NARROW | HEADS | {"layer_types": ["full_attention"] * 2},
    "laguna": SOME | NARROW | HEADS | {"layer_types": ["full_attention"] * 2},
}
UNBALANCED: dict[str, dict[str, Any]] = {
    "glm4_moe": ROUTED | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
    "deepseek_v3": ROUTED
    | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "num_key_value_heads": 4}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
}


def base(
    family: str, attention: str = "eager", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Any:
    """A frozen model with weights large enough that attention and caps matter."""
    stack.ready()  # the threads of a real run: more of them only wait for each other at these sizes
    from transformers import AutoConfig, AutoModelForCausalLM

    known = SETTINGS | BALANCED | UNBALANCED
    config = AutoConfig.for_model(family, **(SIZES | known[family] | changes))
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embed" in name:
                parameter.normal_(std=0.25)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.to(dtype).requires_grad_(False).eval()


def saved(folder: Path, family: str = "llama", **changes: Any) -> str:
    """A base in 16 bits with the starter's tokenizer, as its authors would save it."""
    from plumbline.models import load

    sizes = {"vocab_size": 4096, "max_position_embeddings": 1024, "eos_token_id": 3}
    base(family, dtype=torch.bfloat16, **(sizes | changes)).save_pretrained(folder)
    load.tokenizer("starter").save_pretrained(folder)
    return str(folder)


def linear_layers(model: Any) -> list[Any]:
    """The LoRA layers of an adapted model."""
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def quantised(model: Any, kind: str, double: bool = False) -> Any:
    """Every linear layer but the head held in 4 bits (nf4, fp4) or in 8 (int8), in place."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is not torch.nn.Linear or layer is head:
                continue
            shape = (layer.in_features, layer.out_features, layer.bias is not None)
            held: Any
            if kind == "int8":
                held = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
                weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False)
            else:
                held = bnb.nn.Linear4bit(
                    *shape, compute_dtype=model.dtype, compress_statistics=double, quant_type=kind
                )
                held.support_avx512bf16_for_cpu = False  # see plumbline.models.load
                weight = bnb.nn.Params4bit(
                    layer.weight.data, requires_grad=False, compress_statistics=double, quant_type=kind
                )
            held.weight, held.bias = weight, layer.bias
            setattr(module, name, held.to("cpu"))
    setattr(model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True)
    return model


def adapted(model: Any, seed: int = 1, **changes: Any) -> Any:
    """A PeftModel with a LoRA adapter on every linear layer of the decoder, both of its matrices random."""
    from peft import LoraConfig, get_peft_model

    options: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(options | changes)))
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return tuned


def rows(lengths: tuple[int, ...], seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of these lengths, the first third of each not learned."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return made


def packed(lengths: tuple[int, ...], seed: int = 0) -> Pack:
    return pack(rows(lengths, seed))


def gradients(model: Any) -> torch.Tensor:
    """All gradients of the adapter, one after the other."""
    held = [p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([gradient.flatten() for gradient in held if gradient is not None])


def distance(value: torch.Tensor, truth: torch.Tensor) -> float:
    """The relative error, |value - truth| / |truth|."""
    value, truth = value.double(), truth.double()
    return float(((value - truth).norm() / truth.norm()).detach())


def unfuse(model: Any) -> None:
    """Give every layer peft's own forward back."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
