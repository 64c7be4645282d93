"""What a run begins with that comes from a step of another one."""

import json
import math
from pathlib import Path
from typing import Any

from plumbline.checkpoints import folders
from plumbline.errors import StudioError
from plumbline.home import run_folder
from plumbline.models import artifact
from plumbline.store import runs

WEIGHTS = "adapter_model.safetensors"


def steps(run_id: int) -> list[int]:
    """Steps of a run that a branch may begin with: its checkpoints', and the last."""
    folder = run_folder(run_id, create=False)
    step_numbers = {folders.step_of(path) for path in folders.listed(folder / "checkpoints")}
    if (folder / "artifact" / "metadata.json").exists():
        step_numbers.add(_artifact_step(folder))
    return sorted(step_numbers)


def refuse_too_early(run_id: int) -> None:
    """:raises StudioError: for a stage of a rank schedule while the one before it has not completed"""
    run = runs.get(run_id)
    if run["relation"] == "rank" and (state := runs.get(runs.parent_of(run))["state"]) != "completed":
        what = f"was {state}, and this run begins with what it learns"
        raise StudioError(f"run {run['parent']}", what, "Resume it, then this one.")


def inherit(model: Any, run_id: int) -> str | None:
    """Give a new adapter what its run begins with. :returns: what was done, in words; None for nothing

    An adapter of higher rank computes the same as the one it grows from: what is added to b is zero.

    :raises StudioError: when the weights are not there, do not verify, or do not fit
    """
    run = runs.get(run_id)
    while run["relation"] == "reproduction":  # it begins as the run that it trains again
        run = runs.get(runs.parent_of(run))
    if run["relation"] not in ("branch", "rank"):
        return None
    from safetensors.torch import load_file

    folder = _verified(runs.parent_of(run), run["parent_step"])
    stored = load_file(folder / WEIGHTS)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    before = settings["lora_alpha"] / (
        math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"]
    )
    own = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != stored.keys():
        strange = sorted(own.keys() ^ stored.keys())
        what = f"does not have the weights of this recipe's: {len(strange)} differ, first {strange[0]}"
        raise StudioError(f"the adapter of run {run['parent']}", what, "Keep the adapter's settings.")
    scales = _scales(model)
    for name, parameter in own.items():
        value = stored[name].to(parameter)
        if ".lora_B." in name:
            value = value * (before / scales[name.rpartition(".lora_B.")[0]])
        _grow(name, parameter, value)
    return f"begins with the adapter of run {run['parent']}, step {_step_of(folder)}"


def _grow(name: str, parameter: Any, value: Any) -> None:
    """Write a weight into one that is as large, or larger in its rank."""
    import torch

    own, stored = tuple(parameter.shape), tuple(value.shape)
    axis = 0 if ".lora_A." in name else 1
    fits = own == stored or (
        ".lora_" in name and len(own) == 2 and own[1 - axis] == stored[1 - axis] and own[axis] >= stored[axis]
    )
    if not fits:
        raise StudioError(name, f"has the shape {list(stored)}, and would need {list(own)}")
    with torch.no_grad():
        if axis == 1 and own != stored:
            parameter.zero_()
        parameter[tuple(slice(size) for size in stored)].copy_(value)


def _scales(model: Any) -> dict[str, float]:
    return {
        name: module.scaling[module.active_adapters[0]]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and module.scaling
    }


def _verified(run_id: int, step: int | None) -> Path:
    """The folder with the adapter of a run at a step. :raises StudioError: when it is not whole"""
    folder = run_folder(run_id)
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    if step is not None and checkpoint.exists():
        if fault := folders.fault(checkpoint):
            raise StudioError(f"checkpoint-{step} of run {run_id}", fault, "Take another step.")
        return checkpoint
    artifact_folder = folder / "artifact"
    if not (artifact_folder / "metadata.json").exists() or (
        step is not None and _artifact_step(folder) != step
    ):
        what = "has no adapter yet" if step is None else f"has no step {step} any more"
        raise StudioError(f"run {run_id}", what, "Train it to its end first.")
    if broken := artifact.broken_files(artifact_folder):
        raise StudioError(f"run {run_id}'s {broken[0]}", "is not as it was written", "Take another run.")
    return artifact_folder


def _artifact_step(folder: Path) -> int:
    return int(json.loads((folder / "artifact" / "metadata.json").read_text(encoding="utf-8"))["step"])


def _step_of(folder: Path) -> int:
    return folders.step_of(folder) if folder.name != "artifact" else _artifact_step(folder.parent)
