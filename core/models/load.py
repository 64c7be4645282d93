"""Load base models and tokenizers: the embedded starter, a local folder, or a Hub id.

Remote code is never run and pickle weights are never opened.
"""

import hashlib
import json
import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.errors import StudioError
from core.home import assets
from core.models import hardware, stack

STARTER = "starter"
HUB_SECONDS = 10.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(base: str) -> str:
    """Where a base is loaded from: a folder for the starter and local models, else the Hub id.

    :raises StudioError: when it is neither a folder with a config.json nor of the form org/name
    """
    if base == STARTER:
        return str(assets() / "starter")
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise StudioError("model.base", f"{base} has no config.json", "Give the folder of a saved model.")
        return str(folder)
    if _HUB_ID.fullmatch(base):
        return base
    raise StudioError(
        "model.base", "is not known", "Use 'starter', a Hub id like org/name, or a folder with a config.json."
    )


def is_shared_id(base: str) -> bool:
    """True for what a browser may name: the starter and Hub ids, never a path."""
    return base == STARTER or (bool(_HUB_ID.fullmatch(base)) and not Path(base).exists())


@lru_cache(maxsize=4)
def tokenizer(base: str, revision: str | None = None) -> Any:
    """The base's tokenizer, with a padding token. :raises StudioError: when it cannot be had"""
    stack.ready()
    from transformers import AutoTokenizer

    with _explained(base):
        _refuse_unreachable(base, revision)
        loaded = AutoTokenizer.from_pretrained(
            resolve(base), revision=revision, trust_remote_code=False, use_fast=True
        )
        described = _settings(base, revision, "config.json")
        if loaded.eos_token_id is None:
            _take_end(loaded, _settings(base, revision, "generation_config.json") or described)
    if loaded.eos_token_id is None:
        raise StudioError(
            "model.base", f"{base} has no end-of-sequence token", "It could never learn to stop."
        )
    if loaded.pad_token_id is None:
        loaded.pad_token = loaded.eos_token
    size = described.get("vocab_size") or described.get("text_config", {}).get("vocab_size")
    if isinstance(size, int):
        _check_vocabulary(loaded, size)
    return loaded


def _settings(base: str, revision: str | None, file: str) -> dict[str, Any]:
    """One of a model's small JSON files; empty when it has none."""
    from transformers.utils.hub import cached_file

    path = cached_file(resolve(base), file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def _take_end(loaded: Any, settings: dict[str, Any]) -> None:
    """Some tokenizers leave it to the model's settings to say which token ends an answer."""
    given = settings.get("eos_token_id")
    number = given[0] if isinstance(given, list) and given else given
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


def base_model(config: RunConfig) -> Any:
    """The frozen base as the recipe wants it, on the device that trains.

    :raises StudioError: when it cannot be found, downloaded or read
    """
    stack.ready()
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _quiet_libraries()
    dtype = getattr(torch, hardware.compute_dtype(config).value)
    where: Any = {"": 0} if hardware.device().value == "cuda" else {"": "cpu"}
    quantisation = None
    if config.quantisation.method == "int8":
        quantisation = BitsAndBytesConfig(load_in_8bit=True)
    elif config.quantisation.method != "none":
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantisation.method,
            bnb_4bit_use_double_quant=config.quantisation.double,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=config.quantisation.storage_dtype.replace("auto", "uint8"),
        )
    with _explained(config.model.base):
        model = AutoModelForCausalLM.from_pretrained(
            resolve(config.model.base),
            revision=config.model.revision,
            quantization_config=quantisation,
            dtype=dtype,
            device_map=where,
            trust_remote_code=False,
            use_safetensors=True,
        )
    model.requires_grad_(False)
    _keep_trainable_on_cpu(model)
    embeddings: Any = model.get_input_embeddings().weight
    _check_vocabulary(tokenizer(config.model.base, config.model.revision), len(embeddings))
    return model


def skeleton(base: str, revision: str | None) -> Any:
    """The base without its weights: modules and shapes on torch's meta device.

    :raises StudioError: when its config cannot be had
    """
    stack.ready()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _quiet_libraries()
    with _explained(base):
        _refuse_unreachable(base, revision)
        described = AutoConfig.from_pretrained(resolve(base), revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(described)


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


def _refuse_unreachable(base: str, revision: str | None) -> None:
    """One short look at the Hub before a download: its own retries take most of a minute.

    :raises StudioError: when the Hub cannot be reached and the model is not in the cache
    """
    if not is_shared_id(base) or base == STARTER:
        return
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(base, revision=revision, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        raise  # the Hub answered: not there, gated, or out of order
    except Exception as error:
        # No answer. Which class says so depends on the HTTP client that the Hub's library uses.
        if not isinstance(try_to_load_from_cache(base, "config.json", revision=revision), str):
            raise StudioError(
                "model.base",
                f"the Hub cannot be reached, and {base} was not downloaded before",
                "Check the network, or use starter or a local folder.",
            ) from error


class _explained:
    """Turns what loading raises into a message that names the model and the remedy."""

    def __init__(self, base: str) -> None:
        self.base = base

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        if isinstance(error, GatedRepoError):
            raise StudioError(
                "model.base",
                f"{self.base} is gated",
                f"Accept its licence at https://huggingface.co/{self.base}, then set HF_TOKEN.",
            ) from error
        if isinstance(error, RepositoryNotFoundError):
            raise StudioError(
                "model.base", f"{self.base} is not on the Hub", "Check the id; private models need HF_TOKEN."
            ) from error
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, StudioError):
            first_line = (
                str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
            )
            raise StudioError(
                "model.base",
                f"{self.base} cannot be loaded: {first_line}"[:300],
                "Check the id and the network.",
            ) from error


def _quiet_libraries() -> None:
    # bitsandbytes reports an optional kernel package at import; nothing is wrong without it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
