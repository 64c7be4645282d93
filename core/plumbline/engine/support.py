"""Why a model is trained through autograd and not by the hand-written decoder."""

from typing import Any

import torch

from plumbline.config.schema import RunConfig

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


def refusal(base: Any, max_length: int, dtype: str) -> str | None:
    """Why a model is not trained here but through autograd; None when it is.

    :param base: the model that adapters go on; it may be on the meta device
    :param dtype: the type that it computes in
    """
    config = base.config
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if not layers or type(layers[0]).__name__ not in LAYERS:
        return f"{config.model_type} layers go through autograd"
    if dtype == "float16":
        return "float16 needs its loss scaled"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"its activation is {config.hidden_act}"
    window = getattr(config, "sliding_window", None) or max_length
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if kinds - {"full_attention"} and window < max_length:
        return "its attention window is shorter than max_length"
    if (config.rope_parameters or {}).get("rope_type", "default") in ("dynamic", "longrope"):
        return "its position embedding depends on the length"
    if getattr(config, "attention_dropout", 0.0):
        return "its attention has dropout"
    output = base.get_output_embeddings()
    if type(output) is not torch.nn.Linear or output.bias is not None:
        return "its head is not a plain matrix"
    return None


def odd_recipe(config: RunConfig) -> str | None:
    """Why what a recipe trains, or how, goes through autograd whatever the model; None when it need not."""
    lora = config.lora
    if lora.use_dora:
        return "its adapters are not plain LoRA but DoRA"
    if lora.dropout:
        return "LoRA dropout draws for every product"
    if lora.modules_to_save:
        return f"{', '.join(lora.modules_to_save)} is trained whole"
    return "NEFTune adds noise to the embeddings" if config.training.neftune_alpha else None


def odd_adapters(model: Any) -> str | None:
    """Why the adapters of a PeftModel go through autograd; None when they need not."""
    layers = model.get_base_model().get_decoder().layers
    for layer in model.modules():
        if hasattr(layer, "lora_A") and (why := _odd(layer)):
            return why
    inside = {
        id(matrix.weight)
        for layer in layers
        for module in layer.modules()
        if hasattr(module, "lora_A")
        for matrices in (module.lora_A, module.lora_B)
        for matrix in matrices.values()
    }
    if any(parameter.requires_grad and id(parameter) not in inside for parameter in model.parameters()):
        return "something outside its layers is trained, or beside their adapters"
    return None


def _odd(layer: Any) -> str | None:
    name = layer.active_adapters[0]
    if len(layer.active_adapters) > 1 or layer.merged or layer.disable_adapters:
        return "several adapters are active"
    if layer.lora_variant or layer.lora_bias.get(name):
        return "its adapters are not plain LoRA"
    if getattr(layer.lora_dropout[name], "p", 0.0):
        return "LoRA dropout draws for every product"
    return None
