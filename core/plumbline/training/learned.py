"""Whether a run has learned anything: the weights that it trains, beside what they began as."""

import hashlib
import json
from pathlib import Path
from typing import Any

from plumbline.files import write_whole

BEGAN = "adapter_began.json"  # in a run's folder


def note(model: Any, folder: Path) -> None:
    """Write down what the weights that will be trained are before the first step."""
    write_whole(folder / BEGAN, json.dumps(_digests(model)) + "\n")


def nothing(model: Any, folder: Path) -> bool | None:
    """Whether the adapter computes what it did before the first step; None where that was not noted.

    Weight decay moves an A whose B is zero: their product is nothing, as it was.
    """
    path = folder / BEGAN
    if not path.exists():
        return None
    began, trained = json.loads(path.read_text(encoding="utf-8")), dict(_trained(model))
    if began.keys() != trained.keys():
        return None
    return all(
        digest == began[name] or _without_effect(name, trained) for name, digest in _digests(model).items()
    )


def _without_effect(name: str, trained: dict[str, Any]) -> bool:
    """Whether a weight is multiplied with one that is zero."""
    for one, other in (("lora_A", "lora_B"), ("lora_embedding_B", "lora_embedding_A")):
        if f".{one}." in name:
            return not trained[name.replace(f".{one}.", f".{other}.")].any()
    return False


def _digests(model: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().data).hexdigest()
        for name, tensor in _trained(model)
    }


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
