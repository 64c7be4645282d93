"""Look at a model before any weight is read: the names of its files and what its JSON says.

Nothing here opens a pickle, runs or imports code of the model, or asks anybody anything.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline import untrusted
from plumbline.errors import StudioError
from plumbline.models import stack
from plumbline.near_names import question

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
LARGEST_CONFIG = 10 * 1024**2  # bytes
LARGEST_JSON = 256 * 1024**2
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
OPENED = "mxfp4"
# Config keys that say how much is built, and the most that any model has of it.
LAYERS, MANY, VOCABULARY = 2_000, 100_000_000, 10_000_000
_COUNTS = re.compile(
    r"vocab_size|(hidden|intermediate)_size|head_dim|d_model|d_ff|ffn_dim|max_position_embeddings"
    r"|n_(layers?|heads?|embd|positions|inner)|num_(\w+_)?(layers|heads|experts)"
)
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Inspected:
    """A model that may be read.

    :param folder: where its files are; the weights of a Hub model may not be there yet
    :param weights: names of the files with its weights
    :param notes: what somebody who trains on it should know
    """

    folder: Path
    config: dict[str, Any]
    weights: tuple[str, ...]
    notes: tuple[str, ...]


def refuse_names(base: str, sizes: dict[str, int]) -> None:
    """:param sizes: bytes of each file, by name :raises StudioError: when the files cannot be a base model"""
    if "adapter_config.json" in sizes:
        raise _refusal(f"{base} is an adapter, not a base", "Name the model that it was trained on.")
    if "config.json" not in sizes:
        raise _refusal(f"{base} has no config.json", "Give the folder of a saved model.")
    for name, size in sizes.items():
        if name.endswith(".json") and size > LARGEST_JSON:
            raise _refusal(
                f"{base}/{name} has {size / 1e6:,.0f} MB", "No model needs that; use another copy."
            )
    if WHOLE in sizes or INDEX in sizes:
        return
    pickles = sorted(name for name in sizes if name.endswith(PICKLES))
    if pickles:
        raise _refusal(
            f"{base} has only pickle weights ({pickles[0]}), which can hold code and are not accepted",
            "Convert them to safetensors, or use a copy that has them.",
        )
    others = sorted(name for name in sizes if name.endswith((".safetensors", ".gguf")))
    instead = f" (it has {others[0]})" if others else ""
    raise _refusal(f"{base} has no {WHOLE}{instead}", "Use a copy saved with save_pretrained.")


def inspected(base: str, folder: Path, sizes: dict[str, int]) -> Inspected:
    """:param sizes: bytes of each file that the model has, also of those that are not in the folder yet
    :raises StudioError: naming the file, when the model cannot or must not be loaded
    """
    refuse_names(base, sizes)
    config = _object(base, folder, "config.json", LARGEST_CONFIG)
    notes = _refuse_code(base, config, folder)
    _refuse_attention(base, config)
    notes += _refuse_quantised(base, config)
    _refuse_sizes(base, config)
    return Inspected(folder, config, _weights(base, folder, sizes), tuple(notes))


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of the files of a local model, by name."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def _refusal(what: str, fix: str) -> StudioError:
    return StudioError("model.base", what, fix)


def _object(base: str, folder: Path, name: str, largest: int = LARGEST_JSON) -> dict[str, Any]:
    try:
        return untrusted.json_object(folder / name, largest)
    except untrusted.Refused as refused:
        raise _refusal(f"{base}/{name} {refused.what}", "Copy or download it again.") from refused


def _refuse_code(base: str, config: dict[str, Any], folder: Path) -> list[str]:
    """:returns: a note where code lies beside a model that needs none of it"""
    stack.ready()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    classes = (known,) if isinstance(known, str) else known or ()
    built = config.get("architectures") or classes
    brings = "auto_map" in config
    if brings and not (isinstance(built, (list, tuple)) and any(name in classes for name in built)):
        raise _needs_code(f"{base}/config.json (auto_map)")
    if known is None:
        names = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES]
        what = "does not write text" if kind in CONFIG_MAPPING_NAMES else "is not known"
        hint = question(str(kind), names, 0.5) or "Use a causal language model of transformers."
        raise _refusal(f"{base}/config.json: model_type {str(kind)[:60]!r} {what}", hint)
    if (folder / "tokenizer_config.json").exists():
        tokenizer = _object(base, folder, "tokenizer_config.json")
        if "auto_map" in tokenizer:
            brings = True
            if not _is_known_tokenizer(tokenizer.get("tokenizer_class")):
                raise _needs_code(f"{base}/tokenizer_config.json (auto_map)")
    return ["it brings code of its own, which is not run: transformers has this model"] if brings else []


def _needs_code(where: str) -> StudioError:
    return _refusal(f"{where} needs remote code, which the studio never runs", "Use a model without it.")


def _is_known_tokenizer(name: Any) -> bool:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    names = (name, f"{name}Fast") if isinstance(name, str) else ()
    return any(tokenizer_class_from_name(class_name) is not None for class_name in names)


def _refuse_attention(base: str, config: dict[str, Any]) -> None:
    """Some values name code on the Hub, which transformers would load."""
    for key, value in _entries(config):
        if key.strip("_").removesuffix("_internal") in ("attn_implementation", "experts_implementation"):
            named = list(value.values()) if isinstance(value, dict) else [value]
            if any(
                implementation is not None and implementation not in ATTENTION for implementation in named
            ):
                raise _refusal(
                    f"{base}/config.json: {key} {str(value)[:60]!r} needs remote code, which the studio "
                    "never runs",
                    "Remove that line; attention is chosen by the studio.",
                )


def _refuse_quantised(base: str, config: dict[str, Any]) -> list[str]:
    """:returns: a note where the weights are opened to the compute type"""
    for key, value in _entries(config):
        if key not in ("quantization_config", "compression_config") or not value:
            continue
        method = str(
            value.get("quant_method", "a method without a name") if isinstance(value, dict) else value
        )
        if method != OPENED:
            raise _refusal(
                f"{base}/config.json: its weights are already quantised ({method[:40]}), and would be "
                "rounded a second time",
                "Name the 16-bit model that it was made from; the recipe quantises it.",
            )
        return [
            "its MXFP4 weights are opened to the compute type: in 16 bits the base takes four times its "
            "download, and the recipe's own quantisation is left out"
        ]
    return []


def _refuse_sizes(base: str, config: dict[str, Any]) -> None:
    for key, value in _entries(config):
        if not _COUNTS.fullmatch(key) or value is None or isinstance(value, (bool, dict, list)):
            continue
        most = LAYERS if key.endswith(("layers", "layer")) else VOCABULARY if "vocab" in key else MANY
        if "expert" in key:
            most = 100_000
        least = 1 if key in _NEEDED else 0
        if not isinstance(value, int) or not least <= value <= most:
            raise _refusal(
                f"{base}/config.json: {key} is {str(value)[:40]!s}, which is not from {least} to {most:,}",
                "Copy or download the file again.",
            )


def _entries(config: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every key with its value, those of nested sections too."""
    if isinstance(config, dict) and depth < 8:
        for key, value in config.items():
            yield key, value
            yield from _entries(value, depth + 1)


def _weights(base: str, folder: Path, sizes: dict[str, int]) -> tuple[str, ...]:
    """Names of the files with weights. :raises StudioError: when one is not there"""
    if WHOLE in sizes:
        return (WHOLE,)
    shards = _object(base, folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(s, str) for s in shards.values()):
        raise _refusal(f"{base}/{INDEX} lists no weights", "Copy or download it again.")
    names = sorted(set(shards.values()))
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*\.safetensors", name):
            raise _refusal(
                f"{base}/{INDEX} points to {name[:80]!r}, which is no safetensors file of the model",
                "Use a copy saved with save_pretrained.",
            )
    missing = [name for name in names if name not in sizes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _refusal(
            f"{base} lacks {missing[0]}{more} of {len(names)} files with weights",
            "Copy or download it again.",
        )
    return tuple(names)
