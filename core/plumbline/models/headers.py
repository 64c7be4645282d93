"""Names, types and shapes in safetensors files, and whether they are those of the model.

Only headers are read: kilobytes of files of any size.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.errors import StudioError
from plumbline.models.inspect import INDEX, OPENED, Inspected

FLOATS = ("BF16", "F16", "F32", "F64")
_PACKED = re.compile(r"_(blocks|scales)$")  # how MXFP4 names the halves of a weight


class Header(NamedTuple):
    """One tensor, as its file describes it."""

    dtype: str
    shape: tuple[int, ...]


def of_file(path: Path, where: str, shown: str = "") -> dict[str, Header]:
    """Every tensor of a file.

    :param where: names the setting or the file in what is said
    :param shown: begins the sentence
    :raises StudioError: when it is cut short, or something else by that name
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:
        start = file.read(9)
    try:
        with safe_open(path, framework="numpy") as tensors:
            headers = {}
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                tensor = tensors.get_slice(name)
                headers[name] = Header(tensor.get_dtype(), tuple(tensor.get_shape()))
            return headers
    except (SafetensorError, ValueError, OverflowError) as error:
        if start.startswith((b"PK\x03\x04", b"\x80")):
            what = f"{shown} is a pickle under another name, which can hold code and is not accepted".strip()
            raise StudioError(
                where, what, "Convert it to safetensors, or use a copy that has them."
            ) from error
        cut = len(start) < 9 or "ncomplete" in str(error) or "not fully covered" in str(error)
        what = "is cut short, or longer than it says" if cut else "is not a safetensors file"
        raise StudioError(where, f"{shown} {what}".strip(), "Copy or download it again.") from error


def of_model(base: str, model: Inspected) -> dict[str, Header]:
    """Every tensor of a model's files that are here; empty while a Hub model's weights are not.

    :raises StudioError: when a file is not whole, or has not what the index says
    """
    here = [name for name in model.weights if (model.folder / name).exists()]
    files = {name: of_file(model.folder / name, "model.base", f"{base}/{name}") for name in here}
    if len(model.weights) > 1 and len(here) == len(model.weights):
        listed = json.loads((model.folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        for name, file in listed.items():
            if name not in files[file]:
                raise _refusal(f"{base}/{file} lacks {name}, which {INDEX} says it has", "Copy it again.")
    headers: dict[str, Header] = {}
    for file, tensors in files.items():
        twice = headers.keys() & tensors.keys()
        if twice:
            raise _refusal(f"{base}/{file} has {min(twice)} a second time", "Use another copy of the model.")
        headers |= tensors
    return headers if len(here) == len(model.weights) else {}


def refuse_misfit(base: str, model: Any, config: dict[str, Any], tensors: dict[str, Header]) -> None:
    """Compare headers with the model that the config describes.

    :param model: it without weights, on torch's meta device
    :raises StudioError: when a weight is not there, or has another shape or type
    """
    packed = (config.get("quantization_config") or {}).get("quant_method") == OPENED
    expected = model.state_dict()
    rename, converters = renaming(model)
    there = set()
    for source, header in tensors.items():
        plain = _PACKED.sub("", source) if packed else source
        name, converted = rename(plain)
        if name not in expected and plain in expected:  # a rule for another weight of the same ending
            name, converted = plain, None
        there.add(name)
        if name not in expected or plain != source:
            continue
        if expected[name].is_floating_point() and header.dtype not in FLOATS:
            raise _refusal(
                f"{base}: {source} has the type {header.dtype}, not one of {', '.join(FLOATS)}",
                "Name the 16-bit model that it was made from.",
            )
        if converted is None and tuple(expected[name].shape) != header.shape:
            raise _refusal(
                f"{base}: {source} has the shape {_by(header.shape)} where config.json describes "
                f"{_by(expected[name].shape)}",
                "Use the config.json that belongs to the weights.",
            )
    _refuse_missing(base, model, there, converters)
    _refuse_left_over(base, model, set(expected), there)


def renaming(model: Any) -> tuple[Callable[[str], tuple[str, Any]], list[Any]]:
    """What transformers makes of a tensor's name in a file: the model's name for it, and what converts it,
    None where it is taken as it is; and all converters.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules, expected = get_model_conversion_mapping(model), model.state_dict()
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

    def rename(name: str) -> tuple[str, Any]:
        return rename_source_key(name, renamings, converters, model.base_model_prefix, expected)

    return rename, converters


def _refuse_missing(base: str, model: Any, there: set[str], converters: list[Any]) -> None:
    tied = model.all_tied_weights_keys
    there = there | {name for name, source in tied.items() if source in there}
    there |= {source for name, source in tied.items() if name in there}
    ignored = list(model._keys_to_ignore_on_load_missing or [])
    # One weight of a file may become several of the model; the first alone is named above.
    made = [pattern for rule in converters for pattern in rule.target_patterns[1:]]
    missing = [
        name
        for name, _ in model.named_parameters()
        if name not in there and not _matches(name, ignored) and not _matches(name, made)
    ]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _refusal(
            f"{base}: the weights lack {missing[0]}{more}, which config.json describes",
            "Use the config.json that belongs to the weights.",
        )


def _refuse_left_over(base: str, model: Any, expected: set[str], there: set[str]) -> None:
    """More layers than the config names are a model that was cut short without a word."""
    ignored = list(model._keys_to_ignore_on_load_unexpected or [])
    extra = int(getattr(model.config, "num_nextn_predict_layers", None) or 0)
    layers = {int(match[1]) for name in expected if (match := re.search(r"\.(\d+)\.", name))}
    most = max(layers, default=0) + extra
    for name in sorted(there - expected):
        number = re.search(r"\.(\d+)\.", name)
        if number and int(number[1]) > most and not _matches(name, ignored):
            first = f"{name[: number.start()]}.0.{name[number.end() :]}"
            if first in expected:
                raise _refusal(
                    f"{base}: config.json leaves out layers that the weights have, such as {name}",
                    "Use the config.json that belongs to the weights.",
                )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _by(shape: Iterable[int]) -> str:
    return " × ".join(str(size) for size in shape)


def _refusal(what: str, fix: str) -> StudioError:
    return StudioError("model.base", what, fix)
