"""Files of an export: readable by others, with the tokens that end an answer."""

import copy
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.data.tokens.encode import end_tokens, turn_ends
from plumbline.models import load

READABLE = 0o644


def write_tokenizer(folder: Path, config: RunConfig, tokenizer: Any) -> None:
    """Write the tokenizer and generation_config.json, naming the tokens that Plumbline itself stops at.

    The base's own files often name only the token that ends a text, not the one that ends a turn: a
    program that goes by them would let the model talk on.
    """
    named = copy.deepcopy(tokenizer)
    ends = turn_ends(tokenizer)
    if ends and tokenizer.eos_token_id not in ends:
        named.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
        if named.chat_template and "eos_token" in str(named.chat_template):
            named.eos_token = tokenizer.eos_token  # the template writes it: it must stay what it was
    named.save_pretrained(str(folder))
    settings = load.generation_settings(config.model.base, config.model.revision)
    settings |= {"eos_token_id": sorted(end_tokens(tokenizer)), "pad_token_id": tokenizer.pad_token_id}
    path = folder / load.GENERATION
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def make_readable(folder: Path) -> None:
    """Let others on the machine read what leaves; some writers keep weights to their owner."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(READABLE)


def write_zip(final: Path, name: str, files: Iterable[Path], compression: int) -> None:
    """Files as one zip under a folder, whole or not at all.

    :param name: of the folder in it
    """
    staged = final.with_name(final.name + ".new")
    with zipfile.ZipFile(staged, "w", compression) as bundle:
        for path in files:
            entry = zipfile.ZipInfo.from_file(path, f"{name}/{path.name}")
            entry.external_attr = (0o100000 | READABLE) << 16
            entry.compress_type = compression
            with path.open("rb") as source, bundle.open(entry, "w", force_zip64=True) as target:
                while block := source.read(1024**2):
                    target.write(block)
    os.replace(staged, final)
    final.chmod(READABLE)
