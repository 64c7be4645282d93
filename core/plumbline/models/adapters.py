"""Attach a LoRA adapter to a frozen base, and open a trained one beside it.

Of the base only what the recipe names may be trained as well: biases, and modules that are saved
whole. Both are trained as copies; the base's own values stay beside them.
"""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.errors import StudioError
from plumbline.models import adapter_check, adapter_init, fit

ORIGINAL_BIAS = "bias_of_base"  # beside a bias that is trained, what it was
_OTHER_BASE = "Choose the base that it was trained on."


def attach(model: Any, config: RunConfig) -> Any:
    """A PeftModel whose only trainable parameters are the new adapter's.

    Adapter weights stay in float32 (autocast computes in the base's type): steps of 1e-4 of a
    weight are lost in bfloat16, which keeps 8 bits of it.

    :raises RecipeError: when the base cannot have this adapter
    """
    from peft import EvaConfig, LoraConfig, get_peft_model

    fit.refuse(model, config)
    lora = config.lora
    options: dict[str, Any] = {}
    if lora.init_lora_weights == "eva":
        options["eva_config"] = EvaConfig(rho=1.0, use_label_mask=False)
    layers = lora.layer_numbers
    tuned = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.held_rank,
            lora_alpha=lora.held_alpha,  # type: ignore[arg-type]  # annotated int, used as a factor
            lora_dropout=lora.dropout,
            target_modules=fit.targets(model, config),
            layers_to_transform=None if layers is None else list(layers),
            bias=lora.bias,
            modules_to_save=list(lora.modules_to_save) or None,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            init_lora_weights=adapter_init.of_peft(lora.init_lora_weights),  # type: ignore[arg-type]
            **options,
        ),
    )
    _keep_biases(tuned, {name: p.detach().clone() for name, p in _biases(tuned) if p.requires_grad})
    _round_copies(tuned, model.dtype)
    adapter_init.begin(tuned, config)
    return tuned


def _round_copies(model: Any, dtype: Any) -> None:
    """Let modules that are trained whole compute in the base's type, as they will when they are loaded.

    Their weights are float32 in training; what comes after them would be, too.
    """
    import torch

    def rounded(module: Any) -> Callable[..., Any]:
        # A second handle on the same weights: its forward is still the module's own.
        plain = copy.copy(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            rounded_weights = {name: p.to(dtype) for name, p in module.named_parameters()}
            return torch.func.functional_call(plain, rounded_weights, args, kwargs)

        return forward

    for name, module in model.named_modules():
        if name.endswith(".modules_to_save.default"):
            module.forward = rounded(module)


def begin_in_float32(model: Any) -> None:
    """Put what is trained in float32; beside a quantised base it begins with numbers that bfloat16 has.

    Those are what runs of all versions began with, so the same seed gives the same run. A length of DoRA
    is left as it is: it is the base's own.
    """
    import torch

    base = model.get_base_model()
    rounded = getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if rounded and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
        parameter.data = parameter.data.float()


def _biases(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias")


def _keep_biases(model: Any, biases: dict[str, Any]) -> None:
    """Hold what these biases are in the base beside them; not part of any checkpoint."""
    for name, bias in biases.items():
        module = model.get_submodule(name.rpartition(".")[0])
        module.register_buffer(ORIGINAL_BIAS, bias, persistent=False)


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """The base alone, within; peft itself would leave the trained biases in it."""
    changed = [module for module in model.modules() if ORIGINAL_BIAS in module._buffers]
    trained = [module.bias.data for module in changed]
    try:
        for module in changed:
            module.bias.data = getattr(module, ORIGINAL_BIAS)
        with model.disable_adapter():
            yield
    finally:
        for module, bias in zip(changed, trained, strict=True):
            module.bias.data = bias


def opened(model: Any, folder: Path) -> Any:
    """A base with a trained adapter beside it, for inference.

    The adapter is created without random numbers (on the meta device): a training run in
    another thread must not see its random state move. Created so, it would take its weights
    rounded to the base's type, so they are set from the file again as they are.

    :raises StudioError: when the folder's weights are not exactly those that this base's adapter has
    """
    from peft import PeftModel

    dtype = model.dtype
    config = adapter_check.read(folder)
    stored = adapter_check.tensors(folder, config, model, adapter_check.is_own(folder))
    of_base = {} if config.bias == "none" else {n: p.detach().clone() for n, p in _biases(model)}
    try:
        tuned = PeftModel.from_pretrained(
            model, str(folder), config=config, is_trainable=False, low_cpu_mem_usage=True
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise StudioError("adapter", f"does not fit the base: {reason[:250]}", _OTHER_BASE) from error
    trained = {name: p for name, p in _biases(tuned) if name in stored}
    _keep_biases(tuned, {name: of_base[_name_in_base(name)] for name in trained})
    parameters = trained | {_name_in_file(n): p for n, p in tuned.named_parameters() if _is_adapters(n)}
    strange = parameters.keys() ^ stored.keys()
    if strange:
        what = f"does not fit the base: {len(strange)} weights differ, {min(strange)}"
        raise StudioError("adapter", what, _OTHER_BASE)
    for name, parameter in parameters.items():
        # All but LoRA's own weights compute in the base's type, as they did in training.
        kind = stored[name].dtype if "lora_" in name else dtype
        parameter.data = stored[name].to(parameter.device, kind)
    return tuned.eval()


def untie(model: Any) -> None:
    """Give head and input embeddings weights of their own, where only one of them is what was trained."""
    import torch

    base = model.get_base_model()
    text = base.config.get_text_config(decoder=True)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    trained = [
        module
        for module in (head, embedding)
        if hasattr(module, "lora_A") or hasattr(module, "modules_to_save")
    ]
    if not text.tie_word_embeddings or not trained:
        return
    inner = getattr(head, "original_module", None) or getattr(head, "base_layer", None) or head
    inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = text.tie_word_embeddings = False


def _is_adapters(name: str) -> bool:
    return "lora_" in name or ".modules_to_save." in name


def _name_in_file(name: str) -> str:
    """What peft calls an adapter's parameter in adapter_model.safetensors."""
    if "lora_magnitude_vector" in name:
        return name.removesuffix(".default.weight")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def _name_in_base(name: str) -> str:
    """What a parameter of a PeftModel is called without peft."""
    plain = name.removeprefix("base_model.model.")
    # Where several parameters of one module have adapters, as those of experts do, peft nests its layers.
    return re.sub(r"(\.(base_layer|original_module))+\.", ".", plain)


def base_tensors(model: Any) -> list[tuple[str, Any]]:
    """Parameters and buffers of the base under its own names, in their order, with or without an adapter."""
    tensors = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not _is_adapters(name):
            tensors[_name_in_base(name)] = tensor
    # What a trained bias was comes in the place of what it is.
    for name in [name for name in tensors if name.endswith(f".{ORIGINAL_BIAS}")]:
        tensors[name.removesuffix(ORIGINAL_BIAS) + "bias"] = tensors.pop(name)
    return sorted(tensors.items())


def trainable_share(model: Any) -> tuple[int, int]:
    """Trainable and all parameters; a 4-bit weight counts as the parameters it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            count = parameter.quant_state.shape.numel() if parameter.quant_state else count * 2
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def refuse_other_trainables(model: Any) -> None:
    """:raises StudioError: when anything but adapter weights would be trained"""
    foreign = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not _is_adapters(name) and not _may_be_trained(model, name)
    ]
    if foreign:
        raise StudioError("base weights", f"{len(foreign)} would be trained, first {foreign[0]}")


def _may_be_trained(model: Any, name: str) -> bool:
    """A bias whose value in the base is kept beside it."""
    module, _, last = name.rpartition(".")
    return last == "bias" and ORIGINAL_BIAS in model.get_submodule(module)._buffers
