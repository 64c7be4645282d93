"""Checkpoints that survive: written aside, checksummed, synced, then renamed into place.

A folder named checkpoint-N is complete and verified by its manifest, or it is not used.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

MANIFEST = "MANIFEST.json"


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256(file)
        )


def _sha256(file) -> str:  # type: ignore[no-untyped-def]
    # Python 3.10 has no hashlib.file_digest.
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def publish(staged: Path, final: Path) -> None:
    """Make a staged folder a checkpoint: manifest, sync to disk, rename.

    training_args.bin is left out: it is a pickle, and may hold a token.
    """
    (staged / "training_args.bin").unlink(missing_ok=True)
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(staged)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files
    }
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps(entries, indent=2), encoding="utf-8")
    for path in [*files, manifest]:
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder for syncing
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def listed(folder: Path) -> list[Path]:
    """Checkpoints by step, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=step_of)


def verifies(checkpoint: Path) -> bool:
    """True when every file of the manifest is there with its size and checksum."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    for name, entry in entries.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            return False
    return bool(entries)


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and the names of newer ones that do not.

    Those are moved to ``quarantine``, so that nothing picks them up later.
    """
    bad: list[str] = []
    for checkpoint in reversed(listed(folder)):
        if verifies(checkpoint):
            return checkpoint, bad
        quarantine = folder / "quarantine"
        quarantine.mkdir(exist_ok=True)
        shutil.rmtree(quarantine / checkpoint.name, ignore_errors=True)
        os.replace(checkpoint, quarantine / checkpoint.name)
        bad.append(checkpoint.name)
    return None, bad


def rotate(folder: Path, keep: int) -> None:
    """Delete the oldest checkpoints by step, never by clock."""
    for checkpoint in listed(folder)[:-keep]:
        shutil.rmtree(checkpoint)
