"""Load base models and tokenizers: the embedded starter, a local folder, or a Hub id.

Every model is inspected before any of its weights is read. Remote code is never run and pickle
weights are never opened.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from plumbline import untrusted
from plumbline.config.schema import RunConfig
from plumbline.errors import StudioError
from plumbline.home import assets
from plumbline.hub import model_files
from plumbline.hub.progress import Report
from plumbline.models import hardware, headers, inspect, stack
from plumbline.models.inspect import LARGEST_CONFIG, OPENED, Inspected

STARTER = "starter"
GENERATION = "generation_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve(base: str) -> str:
    """Where a base is loaded from: a folder for the starter and local models, else the Hub id.

    :raises StudioError: when it is neither a folder nor of the form org/name
    """
    if base == STARTER:
        return str(assets() / "starter")
    folder = Path(base).expanduser()
    if folder.is_dir():
        return str(folder)
    if _HUB_ID.fullmatch(base):
        return base
    raise StudioError(
        "model.base", "is not known", "Use 'starter', a Hub id like org/name, or a folder with a config.json."
    )


def is_shared_id(base: str) -> bool:
    """True for what a browser may name: the starter and Hub ids, never a path."""
    return base == STARTER or (bool(_HUB_ID.fullmatch(base)) and not Path(base).exists())


def inspected(base: str, revision: str | None = None) -> Inspected:
    """A base that may be loaded, and what is to be said about it; no weight is read or downloaded.

    :raises StudioError: naming the file, when it is damaged, absurd, or needs what is never done here
    """
    path = Path(resolve(base))
    if not _is_on_hub(base):
        model = inspect.inspected(base, path, inspect.sizes_of(path))
    else:
        listed = model_files.look(base, revision)
        inspect.refuse_names(base, listed.sizes)
        model = inspect.inspected(base, model_files.small_files(listed), listed.sizes)
    headers.of_model(base, model)
    _described(base, model)
    return model


def _described(base: str, model: Inspected) -> Any:
    """transformers' config of a model. :raises StudioError: when it makes no sense"""
    from transformers import AutoConfig

    with _makes_sense(base):
        return AutoConfig.from_pretrained(str(model.folder), trust_remote_code=False)


def resolved_revision(base: str, revision: str | None = None) -> str | None:
    """The commit that a Hub model's branch or tag stands for now; None for what is not on the Hub.

    :raises StudioError: when it cannot be had
    """
    return model_files.commit_of(base, revision) if _is_on_hub(base) else None


def pinned(config: RunConfig) -> RunConfig:
    """The recipe with the commit of its Hub model, so that a run and all that follows use one model.

    :raises StudioError: when the Hub does not know it
    """
    commit = resolved_revision(config.model.base, config.model.revision)
    if commit is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": commit})})


def _is_on_hub(base: str) -> bool:
    return is_shared_id(base) and base != STARTER


@lru_cache(maxsize=4)
def tokenizer(base: str, revision: str | None = None) -> Any:
    """The base's tokenizer, with a padding token. :raises StudioError: when it cannot be had"""
    stack.ready()
    from transformers import AutoTokenizer

    model = inspected(base, revision)
    with explained(base):
        loaded = AutoTokenizer.from_pretrained(str(model.folder), trust_remote_code=False, use_fast=True)
        if loaded.eos_token_id is None:
            _take_end(loaded, _generation(model.folder) or model.config)
    if loaded.eos_token_id is None:
        raise StudioError(
            "model.base", f"{base} has no end-of-sequence token", "It could never learn to stop."
        )
    if loaded.pad_token_id is None:
        loaded.pad_token = loaded.eos_token
    size = model.config.get("vocab_size") or (model.config.get("text_config") or {}).get("vocab_size")
    if isinstance(size, int):
        _check_vocabulary(loaded, size)
    return loaded


def generation_settings(base: str, revision: str | None = None) -> dict[str, Any]:
    """A base's own settings for answers, as its generation_config.json has them; empty when it has none."""
    return _generation(inspected(base, revision).folder)


def _generation(folder: Path) -> dict[str, Any]:
    """A model's settings for answers; empty when it has none."""
    path = folder / GENERATION
    try:
        return untrusted.json_object(path, LARGEST_CONFIG) if path.exists() else {}
    except untrusted.Refused as refused:
        raise StudioError("model.base", f"its {GENERATION} {refused.what}", "Copy it again.") from refused


def _take_end(loaded: Any, settings: dict[str, Any]) -> None:
    """Some tokenizers leave it to the model's settings to say which token ends an answer."""
    setting = settings.get("eos_token_id")
    number = setting[0] if isinstance(setting, list) and setting else setting
    if isinstance(number, int) and number < len(loaded):
        loaded.eos_token = loaded.convert_ids_to_tokens(number)


def fingerprint(loaded: Any) -> dict[str, str]:
    """What a tokenizer writes, as digests: its chat template, and its vocabulary with a probe's tokens."""
    probe = loaded("Hello, wörld! 1234\n\tif x:  😀 你好").input_ids
    parts = {"chat template": loaded.chat_template, "tokenizer": [loaded.get_vocab(), probe]}
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in parts.items()
    }


def base_model(
    config: RunConfig,
    report: Report | None = None,
    check_stop: Callable[[], None] | None = None,
) -> Any:
    """The frozen base as the recipe wants it, on the device that trains.

    :param report: told what a download has done, as a text and a share
    :raises StudioError: when it cannot be found, downloaded or read
    """
    files = fetched(config, report, check_stop)
    import torch
    from transformers import AutoModelForCausalLM

    base = config.model.base
    skeleton(base, config.model.revision)  # refuses weights that are not those of the config
    dtype = getattr(torch, hardware.compute_dtype(config).value)
    where: Any = {"": 0} if hardware.device().value == "cuda" else {"": "cpu"}
    with explained(base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(files.folder),
            quantization_config=quantisation(config, files, dtype),
            dtype=dtype,
            device_map=where,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, seen = loaded
    if seen["missing_keys"]:
        what = f"{base} has no weights for {min(seen['missing_keys'])}"
        raise StudioError("model.base", what, "Use another copy of the model.")
    return frozen(model, config)


def fetched(
    config: RunConfig, report: Report | None = None, check_stop: Callable[[], None] | None = None
) -> Inspected:
    """The recipe's base with its weights in its folder. :raises StudioError: when it cannot be had"""
    stack.ready()
    base, revision = config.model.base, config.model.revision
    model = inspected(base, revision)
    if _is_on_hub(base):
        model_files.weights(model_files.look(base, revision), model.weights, report, check_stop)
    return model


def frozen(model: Any, config: RunConfig) -> Any:
    """A base that was just read, as adapters can be trained on it.

    :raises StudioError: when its tokenizer is not its own
    """
    model.requires_grad_(False)
    _keep_trainable_on_cpu(model)
    embeddings: Any = model.get_input_embeddings().weight
    _check_vocabulary(tokenizer(config.model.base, config.model.revision), len(embeddings))
    return model


def quantisation(config: RunConfig, model: Inspected, dtype: Any) -> Any:
    """What transformers is told about how the weights are held."""
    from transformers import BitsAndBytesConfig
    from transformers.utils.quantization_config import Mxfp4Config

    method = quantised_by(config, model)
    if method == OPENED:
        # Its kernels have no gradient, and its experts are not the linear layers that bitsandbytes knows.
        return Mxfp4Config(dequantize=True)
    if method == "none":
        return None
    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method,
        bnb_4bit_use_double_quant=config.quantisation.double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=config.quantisation.storage_dtype.replace("auto", "uint8"),
    )


def quantised_by(config: RunConfig, model: Inspected) -> str:
    """The recipe's method, or that of the base's own files where the recipe's is left out."""
    own = (model.config.get("quantization_config") or {}).get("quant_method")
    return own if own == OPENED else config.quantisation.method


def skeleton(base: str, revision: str | None, dtype: Any = None) -> Any:
    """The base without its weights: modules and shapes on torch's meta device.

    :param dtype: of its parameters; that of its config when None
    :raises StudioError: when its config cannot be had, or is not that of its weights
    """
    stack.ready()
    import torch
    from transformers import AutoModelForCausalLM

    _quiet_libraries()
    files = inspected(base, revision)
    options = {} if dtype is None else {"dtype": dtype}
    with _makes_sense(base), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_described(base, files), trust_remote_code=False, **options)
    tensors = headers.of_model(base, files)
    if tensors:
        headers.refuse_misfit(base, model, files.config, tensors)
    return model


def _check_vocabulary(loaded: Any, embeddings: int) -> None:
    """:raises StudioError: when the tokenizer can write a token that the model has no embedding for"""
    if len(loaded) <= embeddings:
        return
    # Some families have one token more, for pictures, that nothing here writes.
    unused = {token.content for token in loaded.added_tokens_decoder.values() if token.special}
    unused -= {loaded.eos_token, loaded.bos_token, loaded.pad_token, loaded.unk_token}
    written = json.dumps(loaded.chat_template)
    beyond = [token for token, number in loaded.get_vocab().items() if number >= embeddings]
    if any(token not in unused or token in written for token in beyond):
        raise StudioError(
            "model.base",
            f"its tokenizer has {len(loaded)} tokens, its embeddings {embeddings}",
            "Use the tokenizer that belongs to the model.",
        )


def _keep_trainable_on_cpu(model: Any) -> None:
    """Keep 4-bit weights in the layout that has a gradient.

    At its first forward without gradients, bitsandbytes 0.50 repacks them for AVX-512 inference;
    a later training step then runs through a kernel without autograd and learns nothing from it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def _makes_sense(base: str) -> Iterator[None]:
    """Turns whatever a library meets in a config that it did not write into a message."""
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"{base}/config.json describes no model that can be built: {reason.rstrip('.')}"
        raise StudioError("model.base", what[:300], "Copy or download it again.") from error


@contextmanager
def explained(base: str) -> Iterator[None]:
    """Turns what loading raises into a message that names the model."""
    try:
        yield
    except StudioError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"{base} cannot be loaded: {reason.rstrip('.')}"
        raise StudioError("model.base", what[:300], "Copy or download it again.") from error


def _quiet_libraries() -> None:
    # bitsandbytes reports an optional kernel package at import; nothing is wrong without it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
