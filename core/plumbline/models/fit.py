"""Whether a recipe's adapter fits its base: which layers get it, what cannot be, what is worth a note.

Works on a model without weights (`plumbline.models.load.skeleton`), so that it is known before Start, and
on the loaded one, so that nothing else is believed then.
"""

import sys
from functools import lru_cache
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.errors import RecipeError
from plumbline.models import load

ATTENTION = ("attn", "attention")
USUAL_RATES = {"dpo": "5e-6 to 5e-5", "orpo": "8e-6 to 8e-5", "kto": "5e-6 to 5e-5", "grpo": "1e-6 to 2e-5"}
HIGH_RATES = {"dpo": 1e-4, "orpo": 5e-4, "kto": 1e-4, "grpo": 1e-4}  # else 1e-2
FEW_STEPS = 2


def refuse(model: Any, config: RunConfig) -> None:
    """:raises RecipeError: with everything of the recipe that its base cannot have, by field"""
    if conflicts := problems(model, config):
        raise RecipeError(conflicts)


def check_fits(config: RunConfig) -> None:
    """The same before any weight is loaded. :raises StudioError: also when the base's config cannot be had"""
    if conflicts := _known(_only_what_counts(config))[0]:
        raise RecipeError(dict(conflicts))


def remarks(config: RunConfig, steps: int) -> list[str]:
    """What may be meant so, but seldom is. :param steps: of the whole run"""
    training, sentences = config.training, []
    method, rate = config.method.name, training.learning_rate
    if rate > HIGH_RATES.get(method, 1e-2):
        of = "" if config.method.is_likelihood else f" for {method}"
        usual = USUAL_RATES.get(method, "2e-4")
        sentences.append(f"a learning rate of {rate:g} is high{of}; {usual} is usual for LoRA")
    if (training.warmup_steps or 0) >= steps:
        sentences.append(
            f"the warmup of {training.warmup_steps:,} steps does not end within the {steps:,} of the run "
            "and is cut to them: only the last step has the whole learning rate"
        )
    if steps <= FEW_STEPS:
        many = "1 optimizer step learns" if steps == 1 else f"{steps} optimizer steps learn"
        more = "a higher step limit" if training.max_steps else "more epochs or a smaller effective batch"
        sentences.append(f"{many} next to nothing; {more} gives more")
    return sentences + list(_known(_only_what_counts(config))[1])


def _only_what_counts(config: RunConfig) -> RunConfig:
    """The recipe with all else as it is by default, so that its look at the base is remembered."""
    settings = {name: getattr(config.training, name) for name in ("max_length", "router_loss")}
    training = RunConfig().training.model_copy(update=settings)
    return RunConfig(
        model=config.model, quantisation=config.quantisation, lora=config.lora, training=training
    )


@lru_cache(maxsize=32)
def _known(config: RunConfig) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    model = load.skeleton(config.model.base, config.model.revision)
    conflicts = problems(model, config)
    return tuple(conflicts.items()), () if conflicts else tuple(_notes(model, config))


def targets(model: Any, config: RunConfig) -> list[str]:
    """The names that peft gets for the recipe's target modules: the last part of a layer's name where
    that means the wanted layers only, else the whole.
    """
    targeted_names = _wanted(model, config)
    last = {name.rpartition(".")[2] for name in targeted_names}
    meant = {name for name in _linear(model) if name.rpartition(".")[2] in last}
    return sorted(last) if meant == targeted_names else sorted(targeted_names)


def targeted(model: Any, config: RunConfig) -> dict[str, Any]:
    """The linear layers that get an adapter, by name."""
    linear, layers = _linear(model), config.lora.layer_numbers
    targeted_names = _wanted(model, config)
    return {
        name: module
        for name, module in linear.items()
        if name in targeted_names and (layers is None or layer_number(name) in layers)
    }


def layer_number(name: str) -> int | None:
    """The decoder layer that a module is in, None for one outside them."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def saved_whole(model: Any, config: RunConfig) -> dict[str, Any]:
    """The modules that are trained and saved whole, by name."""
    last_names = config.lora.modules_to_save
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in last_names}


def trained_biases(model: Any, config: RunConfig) -> list[Any]:
    """The biases of the base that are trained."""
    if config.lora.bias == "none":
        return []
    if config.lora.bias == "all":
        return [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    return [module.bias for module in targeted(model, config).values() if module.bias is not None]


def problems(model: Any, config: RunConfig) -> dict[str, str]:
    """What the base cannot have, as field -> message that follows the field's name."""
    messages, lora, base = {}, config.lora, config.model.base
    linear = _linear(model)
    names = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [name for name in lora.target_modules if not _means(model, linear, name)]
    if unknown:
        listed = f"it has {', '.join(names)}; or take all-linear"
        messages["lora.target_modules"] = f"{', '.join(unknown)} matches no linear layer of {base}: {listed}"
    if why := _wrong_layers(linear, config):
        messages["lora.layers"] = why
    if not messages and (why := _too_wide(targeted(model, config), config)):
        messages["lora.r"] = why
    if why := _cannot_be_saved(model, config):
        messages["lora.modules_to_save"] = why
    if config.training.router_loss and not _has_router_loss(model):
        messages["training.router_loss"] = f"is not for {base}, which has no loss of its routers; set it to 0"
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most is not None and config.training.max_length > most:
        messages["training.max_length"] = (
            f"must be 16 to {most:,} for {base}, got {config.training.max_length}"
        )
    return messages


def _has_router_loss(model: Any) -> bool:
    """Whether transformers' code for a family computes how evenly tokens are spread over experts."""
    text, module = model.config.get_text_config(decoder=True), sys.modules[type(model).__module__]
    return hasattr(text, "output_router_logits") and "load_balancing_loss_func" in vars(module)


def _means(model: Any, linear: dict[str, Any], target: str) -> set[str]:
    """The linear layers that a target module stands for."""
    head = model.get_output_embeddings()
    inside = {name for name, module in linear.items() if module is not head}
    attention = {name for name in inside if any(word in name.lower() for word in ATTENTION)}
    if target == "all-linear":
        return inside
    if target == "attention":
        return attention
    if target == "mlp":
        return {name for name in inside - attention if layer_number(name) is not None}
    return {name for name in linear if name == target or name.endswith(f".{target}")}


def _wanted(model: Any, config: RunConfig) -> set[str]:
    linear = _linear(model)
    return set().union(*(_means(model, linear, target) for target in config.lora.target_modules))


def _linear(model: Any) -> dict[str, Any]:
    import torch

    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def _wrong_layers(linear: dict[str, Any], config: RunConfig) -> str:
    numbers = config.lora.layer_numbers
    if numbers is None:
        return ""
    has = {number for name in linear if (number := layer_number(name)) is not None}
    if not has:
        return f"cannot be told apart in {config.model.base}; leave it empty"
    beyond = [number for number in numbers if number not in has]
    if beyond:
        return f"{config.model.base} has layers 0 to {max(has)}, got {', '.join(map(str, beyond[:8]))}"
    return ""


def _too_wide(layers: dict[str, Any], config: RunConfig) -> str:
    rank = config.lora.r
    for name, module in layers.items():
        smaller = min(module.in_features, module.out_features)
        if rank > smaller:
            shape = f"{module.in_features} x {module.out_features}"
            return f"must be at most {smaller} for {name} ({shape}), got {rank}"
    return "" if layers else "has no layer to be in; check lora.target_modules and lora.layers"


def _cannot_be_saved(model: Any, config: RunConfig) -> str:
    import torch

    whole, method = saved_whole(model, config), config.quantisation.method
    last_names = {name.rpartition(".")[2] for name in whole}
    if unknown := [name for name in config.lora.modules_to_save if name not in last_names]:
        own = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if n and _owns_weights(m)})
        return f"{', '.join(unknown)} is no module of {config.model.base}: it has {', '.join(own)}"
    head = model.get_output_embeddings()
    for name, module in whole.items():
        if not any(True for _ in module.parameters()):
            return f"{name} has no weights"
        inside = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
        if method != "none" and any(part is not head for part in inside):
            return (
                f"{name} is held in {method} and cannot be trained itself; name it in lora.target_modules "
                "for an adapter, or set quantisation.method to none"
            )
    return ""


def _owns_weights(module: Any) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _notes(model: Any, config: RunConfig) -> list[str]:
    lora, sentences = config.lora, []
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and model.config.get_text_config(decoder=True).tie_word_embeddings:
        changed = [*targeted(model, config).values(), *saved_whole(model, config).values()]
        if any(module is head or module is embedding for module in changed):
            sentences.append(
                "input embeddings and head share their weights in this base: what is trained of one is not "
                "of the other, and a merged model holds both"
            )
    if lora.bias != "none" and not trained_biases(model, config):
        sentences.append(f"lora.bias is {lora.bias}, but there are no such biases in this base")
    return sentences
