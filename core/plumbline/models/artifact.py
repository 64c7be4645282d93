"""An adapter that a run left behind, checked before it is read."""

import json
from pathlib import Path
from typing import Any

from plumbline.errors import StudioError
from plumbline.files import sha256_of
from plumbline.models import load

CHECKSUMS = "checksums.json"


def refuse_other_tokenizer(folder: Path, tokenizer: Any) -> None:
    """:raises StudioError: when tokenizer or chat template are not those that the adapter was trained with"""
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    now = load.fingerprint(tokenizer)
    for part, digest in metadata.get("tokenizer", {}).items():
        if now.get(part) != digest:
            raise StudioError(
                f"the base's {part}",
                f"is not the one of training (sha256 {str(now.get(part))[:12]}, then {digest[:12]})",
                "Name the revision that was trained on, or train again.",
            )


def broken_files(folder: Path) -> list[str]:
    """Names whose content is not what checksums.json says; empty when the artifact is whole."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [CHECKSUMS]
    return [
        name
        for name, digest in expected.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != digest
    ]
