"""What memory and time of training depend on, read from a model's config: no weight is loaded."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.models import fit, hardware, load

FOUR_BITS = ("nf4", "fp4")
BLOCK, OUTER_BLOCK = 64, 256  # weights that share a scale, scales that share one in double quantisation


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model as a recipe trains it.

    :param linear_weights: weights of the products in all layers, without the head's
    :param adapter_parameters: trainable parameters
    :param base_bytes: what the frozen base takes on the device
    :param number_bytes: of one activation
    :param refusal: why the hand-written decoder does not take it; empty when it does
    :param quantisation: how its linear layers are held
    :param packed_bytes: what of ``base_bytes`` can be spread over processes: each layer's 4-bit values,
        without their scales; empty where there are none
    """

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    key_heads: int
    head_dim: int
    head_norms: bool
    vocabulary: int
    linear_weights: int
    adapter_parameters: int
    base_bytes: int
    number_bytes: int
    refusal: str
    quantisation: str = "none"
    packed_bytes: tuple[int, ...] = ()

    @property
    def heads_width(self) -> int:
        """Numbers per token that the projection to queries, keys and values gives."""
        return (self.query_heads + 2 * self.key_heads) * self.head_dim


def model_size_of(config: RunConfig) -> ModelSize:
    """:raises StudioError: when the model's config cannot be had"""
    training = RunConfig().training.model_copy(
        update={"max_length": config.training.max_length, "neftune_alpha": config.training.neftune_alpha}
    )
    # All else is as it is by default, so that a look at a base is remembered.
    known = RunConfig(
        model=config.model, quantisation=config.quantisation, lora=config.lora, training=training
    )
    return _shape(known, hardware.compute_dtype(config).value)


@lru_cache(maxsize=16)
def _shape(config: RunConfig, dtype: str) -> ModelSize:
    import torch

    from plumbline.engine.support import odd_recipe, refusal

    lora, double = config.lora, config.quantisation.double_quant
    inspected = load.inspected(config.model.base, config.model.revision)
    quantisation = load.quantised_by(config, inspected)
    model = load.skeleton(config.model.base, config.model.revision)
    number_bytes = 4 if dtype == "float32" else 2
    head = model.get_output_embeddings()
    base_bytes = linear = 0
    counted = set()
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        weights = module.weight.numel()
        counted.add(id(module.weight))
        linear += weights
        base_bytes += _bytes(weights, module.out_features, quantisation, double, number_bytes)
    base_bytes += sum(p.numel() * number_bytes for p in model.parameters() if id(p) not in counted)
    adapted = fit.targeted(model, config).values()
    adapter = sum(lora.held_rank * (layer.in_features + layer.out_features) for layer in adapted)
    if lora.use_dora:
        adapter += sum(layer.out_features for layer in adapted)
    biases = fit.trained_biases(model, config)
    whole = fit.saved_whole(model, config).values()
    adapter += sum(p.numel() for p in biases) + sum(p.numel() for layer in whole for p in layer.parameters())
    text = model.config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    why = odd_recipe(config) or refusal(model, config.training.max_length, dtype)
    if any(layer is head for layer in adapted):
        why = "something outside its layers is trained"
    elif biases:
        why = "biases are trained beside the adapters"
    return ModelSize(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        query_heads=heads,
        key_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=max(
            # Where layers differ, as in Gemma 4, transformers refuses to name one size for all.
            getattr(layer, "head_dim", None) or text.hidden_size // heads
            for layer in getattr(text, "per_layer_config", None) or [text]
        ),
        head_norms=text.model_type == "qwen3",
        vocabulary=text.vocab_size,
        linear_weights=linear,
        adapter_parameters=adapter,
        base_bytes=base_bytes,
        number_bytes=number_bytes,
        refusal=why or "",
        quantisation=quantisation,
        packed_bytes=() if why or quantisation not in FOUR_BITS else _packed_bytes(model),
    )


def _packed_bytes(model: Any) -> tuple[int, ...]:
    """4-bit values of each decoder layer."""
    import torch

    return tuple(
        sum(module.weight.numel() // 2 for module in layer.modules() if isinstance(module, torch.nn.Linear))
        for layer in model.get_decoder().layers
    )


def _bytes(weights: int, outputs: int, method: str, double: bool, number_bytes: int) -> int:
    """Bytes of one linear layer's weight as bitsandbytes holds it (Dettmers et al., 2023)."""
    if method == "int8":
        return weights + 4 * outputs
    if method not in FOUR_BITS:
        return weights * number_bytes
    scales = math.ceil(weights / BLOCK)
    tables = 16 * 4 + (256 * 4 if double else 0)
    of_scales = scales + 4 * math.ceil(scales / OUTER_BLOCK) if double else 4 * scales
    return weights // 2 + of_scales + tables


def sharded_bytes(shape: ModelSize, processes: int) -> int:
    """Bytes of a base's part in one of so many processes, with the two buffers that layers are gathered in.

    That of a base that cannot be spread, or of a process that is alone, is all of it; see
    plumbline.training.ranks.sharded_base.
    """
    if processes == 1 or not shape.packed_bytes:
        return shape.base_bytes
    parts = [math.ceil(size / processes) for size in shape.packed_bytes]
    return shape.base_bytes - sum(shape.packed_bytes) + sum(parts) + 2 * max(parts) * processes


def kept_bytes(shape: ModelSize) -> int:
    """Bytes per token of one layer whose activations are kept (plumbline.engine.decoder)."""
    return _layer_bytes(shape, 2 * shape.hidden + 2 * shape.intermediate)


def recomputed_bytes(shape: ModelSize) -> int:
    """Bytes per token while one layer is computed again and its gradient taken."""
    return _layer_bytes(shape, 3 * shape.hidden + 3 * shape.intermediate)


def _layer_bytes(shape: ModelSize, numbers: int) -> int:
    """Bytes per token of these numbers and of what a layer's attention holds."""
    numbers += shape.heads_width + shape.query_heads * shape.head_dim
    if shape.head_norms:
        numbers += (shape.query_heads + shape.key_heads) * shape.head_dim
    return numbers * shape.number_bytes + 4 * shape.query_heads


def scratch_bytes(shape: ModelSize, small: bool) -> int:
    """Bytes of the largest dequantised weight; see plumbline.engine.projections.Scratch."""
    if small:
        wide = max(shape.intermediate, shape.query_heads * shape.head_dim)
    else:
        wide = max(2 * shape.intermediate, shape.heads_width)
    return wide * shape.hidden * shape.number_bytes
