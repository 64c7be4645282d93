"""Checkpoints that survive: written aside, checksummed, synced, then renamed into place.

A folder named checkpoint-N is complete and verified by its manifest, or it is not used. The manifest
also says what the checkpoint is of (plumbline.checkpoints.identity).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from plumbline.files import sha256_of, sync

MANIFEST = "MANIFEST.json"
STAGING = "staging"
QUARANTINE = "quarantine"
REPLACED, GONE = ".old", ".gone"  # what is about to be deleted: given back, or not, after a crash


def publish(staged: Path, final: Path, identity: dict[str, Any]) -> None:
    """Make a staged folder a checkpoint: manifest, sync to disk, rename.

    training_args.bin is left out: it is a pickle, and may hold a token.
    """
    (staged / "training_args.bin").unlink(missing_ok=True)
    files = {
        name: {"bytes": (staged / name).stat().st_size, "sha256": sha256_of(staged / name)}
        for name in _names(staged)
    }
    body = {"step": step_of(final), "identity": identity, "files": files}
    (staged / MANIFEST).write_text(_sealed(body), encoding="utf-8")
    put(staged, final)


def put(staged: Path, final: Path) -> None:
    """Sync a staged folder to disk and rename it into place; one that is there is kept until then."""
    for path in [*staged.rglob("*"), staged]:
        sync(path)
    replaced = final.with_name(final.name + REPLACED)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(final, replaced)
    os.replace(staged, final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _names(folder: Path) -> list[str]:
    """The files of a checkpoint by their relative names, without the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted({path.relative_to(folder).as_posix() for path in files} - {MANIFEST})


def _sealed(body: dict[str, Any]) -> str:
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": seal}, indent=1, sort_keys=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def listed(folder: Path) -> list[Path]:
    """Checkpoints by step, oldest first."""
    checkpoints = (path for path in folder.glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit())
    return sorted(checkpoints, key=step_of)


def size_of(checkpoint: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())


def identity_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint that verifies is of; empty for one of a version that did not say it."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")).get("identity", {})


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None when all of them are what the manifest says."""
    try:
        text = (checkpoint / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        files = manifest.get("files", manifest)  # earlier versions listed files alone
        if files is not manifest:
            body = {name: manifest[name] for name in ("step", "identity", "files")}
            if text != _sealed(body) or body["step"] != step_of(checkpoint):
                return f"{MANIFEST} was changed"
        known = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    names = _names(checkpoint)
    for name in sorted(known.keys() | set(names)):
        if name not in names:
            return f"{name} is missing"
        if name not in known:
            return f"{name} does not belong to it"
        size, path = known[name][0], checkpoint / name
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if sha256_of(path) != known[name][1]:
            return f"{name} has another checksum"
    return None if known else f"{MANIFEST} names no files"


def recover(folder: Path) -> list[str]:
    """Put in order what a save or a rotation left when its process ended in the middle of it.

    :returns: a sentence for each save that was lost
    """
    lost = []
    staging = folder / STAGING
    for staged in listed(staging):
        # Only the renames were missing when its manifest verifies.
        if fault(staged) is None and not (folder / staged.name).exists():
            put(staged, folder / staged.name)
        else:
            lost.append(f"the save of step {step_of(staged)} had not ended and was removed")
    shutil.rmtree(staging, ignore_errors=True)
    for replaced in folder.glob("*" + REPLACED):
        final = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, final)
    for gone in folder.glob("*" + GONE):
        shutil.rmtree(gone)
    return lost


def newest_good(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest checkpoint that verifies, and what is wrong with newer ones, by name.

    Those are moved to ``quarantine``, so that nothing picks them up later.
    """
    bad: dict[str, str] = {}
    for checkpoint in reversed(listed(folder)):
        wrong = fault(checkpoint)
        if wrong is None:
            return checkpoint, bad
        quarantine = folder / QUARANTINE
        quarantine.mkdir(exist_ok=True)
        shutil.rmtree(quarantine / checkpoint.name, ignore_errors=True)
        os.replace(checkpoint, quarantine / checkpoint.name)
        bad[checkpoint.name] = wrong
    return None, bad


def quarantined(folder: Path) -> list[Path]:
    """Checkpoints that were set aside, by step."""
    return listed(folder / QUARANTINE)


def rotate(folder: Path, keep: int, spared: Container[int] = ()) -> None:
    """Delete the oldest checkpoints by step, never by clock.

    :param spared: steps that stay beside the newest
    """
    for checkpoint in listed(folder)[:-keep]:
        if step_of(checkpoint) in spared:
            continue
        gone = checkpoint.with_name(checkpoint.name + GONE)
        os.replace(checkpoint, gone)
        shutil.rmtree(gone)
