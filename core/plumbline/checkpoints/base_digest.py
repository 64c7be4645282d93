"""Proof that training left the base alone: a digest of its weights in memory, before and after."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbline import version
from plumbline.models import adapters


def base_digest(model: Any) -> dict[str, Any]:
    """SHA-256 over every tensor of the base, in order of name, adapters left out.

    Quantised weights are hashed as they are held: packed values and their scales. A base that is spread
    over several processes has the digest that it has in one; all of them call this together.

    :returns: ``sha256``, ``tensors`` and ``bytes``, as this process sees them
    """
    sharded = getattr(model, "sharded", None)
    total = hashlib.sha256()
    count = size = 0
    for name, parameter in _still(adapters.base_tensors(model)):
        if sharded is not None:
            sharded.bring(parameter)
        for part, tensor in _held_as(name, parameter):
            data = _bytes_of(tensor)
            total.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(hashlib.sha256(data).digest())
            count, size = count + 1, size + len(data)
    return {"sha256": total.hexdigest(), "tensors": count, "bytes": size}


def _still(tensors: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Position frequencies as they were at first: some families make others of them for a longer row.

    (Rope of the types dynamic and longrope; they are computed from the config, no file holds them.)
    """
    by_name = dict(tensors)
    for name, tensor in tensors:
        before, sign, kind = name.rpartition("inv_freq")
        at_first = f"{before}original_inv_freq"
        yield name, by_name.get(at_first, tensor) if sign and not kind else tensor


def _held_as(name: str, parameter: Any) -> Iterator[tuple[str, Any]]:
    yield name, parameter.detach()
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        yield f"{name}.absmax", state.absmax
        if state.nested:
            yield f"{name}.nested_absmax", state.state2.absmax


def _bytes_of(tensor: Any) -> memoryview:
    import torch

    flat = tensor.contiguous().cpu().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def code() -> dict[str, str]:
    """The version of this package, and a digest over its sources."""
    folder, total = Path(version.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return {"version": version.__version__, "sha256": total.hexdigest()}
