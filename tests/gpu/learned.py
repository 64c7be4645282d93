"""What a run has learned, as plain peft gives it back."""

import json
from typing import Any

from plumbline.home import run_folder
from plumbline.store import runs
from tests import tiny

NEAR = 0.02  # relative, of logits in 16 bits; kernels of another kind round elsewhere
EXACT = 1e-5  # in float32


def logits(model: Any) -> Any:
    """Of two rows of ordinary tokens, on the host in float32."""
    import torch

    from plumbline.models.precision import autocast

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model):
            ids = torch.arange(5, 65, device=model.device).reshape(2, 30)
            return model(input_ids=ids, use_cache=False).logits.float().cpu()
    finally:
        model.train(was_training)


def refuse_other_logits(run_id: int, trained: list[Any]) -> str:
    """The adapter on a base that was loaded anew, by peft alone, gives what was trained.

    :param trained: the fixture of that name
    :returns: how near it is, in words
    """
    import torch
    from peft import PeftModel

    from plumbline.models import load

    base = load.base_model(runs.recipe(run_id))
    loaded = logits(PeftModel.from_pretrained(base, str(run_folder(run_id) / "artifact")))
    own, of_base = trained[-1]
    distance, moved = tiny.distance(loaded, own), tiny.distance(of_base, own)
    assert distance <= (EXACT if base.dtype == torch.float32 else NEAR)
    assert moved > 4 * distance  # else what was learned might be lost, and nobody would see it
    largest = float((loaded - own).abs().max())
    return f"largest difference of a logit {largest:.2g}, relative {distance:.1e} (moved by {moved:.1e})"


def losses(run_id: int) -> list[float]:
    return [point["loss"] for point in runs.metrics(run_id) if point["loss"] is not None]


def history(run_id: int, name: str) -> list[float]:
    """One of the figures of metrics_history.jsonl."""
    lines = (run_folder(run_id) / "metrics_history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines if name in json.loads(line)]


def path(run_id: int) -> str:
    """How its steps were computed, in words."""
    choice = runs.decisions(run_id)["training path"]
    return f"{choice['value']}, {choice['why']}"
