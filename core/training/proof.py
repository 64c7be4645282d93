"""Proof that training left the base alone: a digest of its weights in memory, before and after."""

import hashlib
from pathlib import Path
from typing import Any

from core.models import adapters


def base_digest(model: Any) -> dict[str, Any]:
    """SHA-256 over every tensor of the base, in order of name, adapters left out.

    Quantised weights are hashed as they are held: packed values and their scales.

    :returns: ``sha256``, ``tensors`` and ``bytes``
    """
    total = hashlib.sha256()
    count = size = 0
    for name, tensor in _base_tensors(model):
        data = _bytes_of(tensor)
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(hashlib.sha256(data).digest())
        count, size = count + 1, size + len(data)
    return {"sha256": total.hexdigest(), "tensors": count, "bytes": size}


def _base_tensors(model: Any) -> list[tuple[str, Any]]:
    found = []
    for name, tensor in adapters.base_tensors(model):
        found.append((name, tensor.detach()))
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            found.append((f"{name}.absmax", state.absmax))
            if state.nested:
                found.append((f"{name}.nested_absmax", state.state2.absmax))
    return found


def _bytes_of(tensor: Any) -> memoryview:
    import torch

    flat = tensor.contiguous().cpu().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def code() -> dict[str, str]:
    """The version of this package, and a digest over its sources."""
    import core

    folder, total = Path(core.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return {"version": core.__version__, "sha256": total.hexdigest()}
