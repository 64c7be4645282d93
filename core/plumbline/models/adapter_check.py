"""Whether a folder holds a LoRA adapter that may be put beside a base, looked at before it is.

Paths and addresses in its config are never followed, and nothing that it names is imported.
"""

import math
import re
from pathlib import Path
from typing import Any

from plumbline import untrusted
from plumbline.config.schema import LoraSection
from plumbline.errors import StudioError
from plumbline.models import headers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_CONFIG = 10 * 1024**2  # bytes
# Where the base lies, the recipe says; peft would follow these.
_IGNORED = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "runtime_config")
# With these peft imports a module by name, or changes the base.
_REFUSED = ("megatron_config", "layer_replication", "arrow_config", "use_bdlora", "alora_invocation_tokens")
# Beside the base as it is these are something else: they were trained beside one that they had changed.
_RESIDUAL = ("pissa", "olora", "corda", "loftq")
_NAME = re.compile(r"[\w.^$\\-]+")  # no repetition: such an expression ends soon


def read(folder: Path) -> Any:
    """The adapter's peft LoraConfig, without what it says of paths.

    :raises StudioError: naming the file, when it is not whole, was changed, or is not a LoRA adapter
    """
    from peft import LoraConfig

    _refuse_changed(folder)
    settings = _object(folder / CONFIG)
    kind = settings.pop("peft_type", None)
    if kind != "LORA":
        raise _refusal(CONFIG, f"peft_type {str(kind)[:40]!r} is not LORA", "Use a LoRA adapter.")
    unknown = sorted(settings.keys() - LoraConfig.__dataclass_fields__.keys() - set(_IGNORED))
    refused = sorted(key for key in _REFUSED if settings.get(key))
    if unknown or refused:
        named = ", ".join((unknown or refused)[:5])
        what = "has unknown settings" if unknown else "has settings that are not supported"
        raise _refusal(CONFIG, f"{what}: {named[:200]}", "Save it again with a plain LoRA config.")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_RESIDUAL):
        what = f"init_lora_weights {start[:40]!r} belongs to a base with changed weights"
        raise _refusal(CONFIG, what, "Save it again converted to plain LoRA.")
    _refuse_numbers(settings)
    _refuse_expressions(settings)
    peft_settings = {key: value for key, value in settings.items() if key not in _IGNORED}
    try:
        return LoraConfig(**peft_settings)
    except Exception as error:
        # Whatever the library says of a file that it did not write.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refusal(CONFIG, f"is no LoRA config: {reason[:200]}", "Save it again.") from error


def tensors(folder: Path, config: Any, model: Any, own: bool) -> dict[str, Any]:
    """The adapter's weights by name, once they are known to fit the base.

    :param own: whether this studio wrote it, which `read` has proven
    :raises StudioError: when a weight is not for this base, has another rank, or is not finite
    """
    from safetensors.torch import load_file

    described = headers.of_file(folder / WEIGHTS, f"adapter {WEIGHTS}")
    _refuse_misfit(described, config, model)
    weights = load_file(folder / WEIGHTS)
    broken = sorted(name for name, value in weights.items() if not bool(value.isfinite().all()))
    if broken:
        raise _refusal(WEIGHTS, f"{broken[0]} is not finite", "Train it again, or use another copy.")
    products = [value for name, value in weights.items() if ".lora_B." in name]
    if products and not own and not any(bool(value.any()) for value in products):
        raise _refusal(WEIGHTS, "holds only zeros: it would change nothing", "Use another copy.")
    return weights


def is_own(folder: Path) -> bool:
    """Whether it is an artifact of a run of this studio, which lists its checksums."""
    from plumbline.models.artifact import CHECKSUMS

    return (folder / CHECKSUMS).exists() or (folder / "metadata.json").exists()


def refuse_other_base(folder: Path, base: str, revision: str | None) -> None:
    """:raises StudioError: when an adapter is not whole, or was trained on another base than this one"""
    _refuse_changed(folder)
    settings = _object(folder / CONFIG)
    then = str(settings.get("base_model_name_or_path") or "unknown"), settings.get("revision")
    if then[0] == base and (then[1] == revision or revision is None or then[1] is None):
        return
    difference = f"was trained on {then[0][:100]} ({then[1] or 'main'}), not on {base} ({revision or 'main'})"
    raise _refusal(CONFIG, difference, "Choose that base.")


def _refuse_changed(folder: Path) -> None:
    from plumbline.models.artifact import broken_files

    if is_own(folder):
        broken = broken_files(folder)
        if broken:
            raise _refusal(", ".join(broken), "changed after training (sha256)", "Train it again.")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickles = " (pickle weights are not accepted)" if (folder / "adapter_model.bin").exists() else ""
            raise _refusal(
                name, f"is not there{pickles}", "Give the folder of a LoRA adapter in safetensors."
            )


def _object(path: Path) -> dict[str, Any]:
    try:
        return untrusted.json_object(path, LARGEST_CONFIG)
    except untrusted.Refused as refused:
        raise _refusal(path.name, refused.what, "Copy it again.") from refused


def _largest_alpha() -> float:
    limits = LoraSection.model_fields["alpha"].metadata
    return next(float(limit.le) for limit in limits if hasattr(limit, "le"))


def _refuse_numbers(settings: dict[str, Any]) -> None:
    """r and alpha, also those of single layers."""
    most = _largest_alpha()
    ranks = {"r": settings.get("r", 8), **_pattern(settings, "rank_pattern")}
    alphas = {"lora_alpha": settings.get("lora_alpha", 8), **_pattern(settings, "alpha_pattern")}
    for name, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise _refusal(
                CONFIG, f"{name} is {str(rank)[:40]}, not a whole number from 1", "Use another copy."
            )
    for name, alpha in alphas.items():
        if type(alpha) not in (int, float) or not math.isfinite(alpha) or not 0 < alpha <= most:
            what = f"{name} is {str(alpha)[:40]}, not above 0 and at most {most:,.0f}"
            raise _refusal(CONFIG, what, "Use another copy.")


def _pattern(settings: dict[str, Any], key: str) -> dict[str, Any]:
    pattern = settings.get(key) or {}
    if not isinstance(pattern, dict):
        raise _refusal(CONFIG, f"{key} is not an object", "Save it again.")
    return {f"{key}.{name}": value for name, value in pattern.items()}


def _refuse_expressions(settings: dict[str, Any]) -> None:
    """peft takes many of these for regular expressions, and some of those run for hours."""
    for key in (
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "layers_pattern",
        "target_parameters",
    ):
        value = settings.get(key) or []
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names):
            raise _refusal(CONFIG, f"{key} is not a list of names", "List the modules by name.")
    for key in ("rank_pattern", "alpha_pattern"):
        # peft itself writes one kind of expression: experts of this name, wherever they are.
        names = [str(name).removeprefix(r".*\.") for name in settings.get(key) or {}]
        if not all(_NAME.fullmatch(name) for name in names):
            raise _refusal(CONFIG, f"{key} holds more than names", "List the modules by name.")


def _refuse_misfit(described: dict[str, headers.Header], config: Any, model: Any) -> None:
    """Ranks and widths, from headers alone: peft would stop in the middle with its own words."""
    if config.target_parameters:
        return  # their names are those of wrappers that are not there yet
    for name, header in described.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if not match:
            continue
        try:
            layer = model.get_submodule(match[1])
        except AttributeError as error:
            what = f"{name} is for a layer that the base does not have"
            raise _refusal(WEIGHTS, what, "Choose the base that it was trained on.") from error
        if not hasattr(layer, "in_features"):
            continue
        rank = _rank(match[1], config)
        expected = (rank, layer.in_features) if match[2] == "A" else (layer.out_features, rank)
        if header.shape == expected:
            continue
        side = 0 if match[2] == "A" else 1
        if len(header.shape) == 2 and header.shape[side] != rank:
            what = f"{name} has rank {header.shape[side]} where {CONFIG} says {rank}"
            raise _refusal(WEIGHTS, what, "Use the config that belongs to the weights.")
        shapes = [" × ".join(map(str, shape)) for shape in (header.shape, expected)]
        what = f"{name} has the shape {shapes[0]}, the base needs {shapes[1]}"
        raise _refusal(WEIGHTS, what, "Choose the base that it was trained on.")


def _rank(module: str, config: Any) -> int:
    from peft.utils.other import get_pattern_key

    pattern: dict[Any, int] = config.rank_pattern or {}
    return pattern.get(get_pattern_key(list(pattern), module), config.r)


def _refusal(file: str, what: str, fix: str) -> StudioError:
    return StudioError(f"adapter {file}", what, fix)
