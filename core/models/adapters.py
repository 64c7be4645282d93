"""Attach a LoRA adapter to a frozen base, and open a trained one beside it."""

from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.errors import StudioError
from core.models import adapter_check

_OTHER_BASE = "Choose the base that it was trained on."


def attach(model: Any, config: RunConfig) -> Any:
    """A PeftModel whose only trainable parameters are the new adapter's.

    Adapter weights stay in float32 (autocast computes in the base's type): steps of 1e-4 of a
    weight are lost in bfloat16, which keeps 8 bits of it.

    :raises StudioError: when a target module matches no layer
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)}
    unknown = [target for target in config.lora.target_modules if target not in names]
    if unknown:
        raise StudioError(
            "lora.target_modules",
            f"{', '.join(unknown)} matches no linear layer of {config.model.base}",
            f"It has: {', '.join(sorted(names))}.",
        )
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.r,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # annotated int, used as a factor
            lora_dropout=config.lora.dropout,
            target_modules=list(config.lora.target_modules),
            bias="none",
        ),
    )


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)


def opened(model: Any, folder: Path) -> Any:
    """A base with a trained adapter beside it, for inference.

    The adapter is created without random numbers (on the meta device): a training run in
    another thread must not see its random state move. Created so, it would take its weights
    rounded to the base's type, so they are set from the file again as they are.

    :raises StudioError: when the folder's weights are not exactly those that this base's adapter has
    """
    from peft import PeftModel, get_peft_model_state_dict

    config = adapter_check.read(folder)
    stored = adapter_check.tensors(folder, config, model, adapter_check.is_own(folder))
    try:
        tuned = PeftModel.from_pretrained(
            model, str(folder), config=config, is_trainable=False, low_cpu_mem_usage=True
        )
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise StudioError("adapter", f"does not fit the base: {said[:250]}", _OTHER_BASE) from error
    expected = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    strange = expected.keys() ^ stored.keys()
    if strange:
        what = f"does not fit the base: {len(strange)} weights differ, {min(strange)}"
        raise StudioError("adapter", what, _OTHER_BASE)
    for name, parameter in tuned.named_parameters():
        if (saved := _saved_name(name)) in stored:
            parameter.data = stored[saved].to(parameter.device)
    return tuned.eval()


def _saved_name(name: str) -> str:
    """What peft calls a parameter of the adapter in its file."""
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


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
    foreign = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    if foreign:
        raise StudioError("base weights", f"{len(foreign)} would be trained, first {foreign[0]}")
