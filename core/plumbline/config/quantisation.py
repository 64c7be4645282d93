"""The settings of how the base is held."""

from typing import Literal

from plumbline.config.field import Section, setting


class QuantisationSection(Section):
    """How the frozen base is held in memory."""

    method: Literal["nf4", "fp4", "int8", "none"] = setting(
        "nf4",
        "Quantisation",
        "nf4 fits trained weights best; int8: 8-bit weights, dequantised for each product, twice nf4's "
        "memory; none: four times",
    )
    double_quant: bool = setting(
        True,
        "Double quantisation",
        "Also quantise the scales: saves 0.4 bits a weight, costs little",
        other_names=("double",),
    )
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "Compute type", "auto takes bfloat16 where the hardware has it, and says why if not"
    )
    storage_dtype: Literal["auto", "uint8", "bfloat16", "float16", "float32"] = setting(
        "auto",
        "Storage type",
        "What 4-bit weights are packed in; auto is uint8. Same memory, same result: for tools that want all "
        "weights of a model in one type",
    )
