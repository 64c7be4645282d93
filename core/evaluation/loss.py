"""Held-out loss: the mean negative log-likelihood per supervised token, in nats.

Token-weighted over the whole set. (A mean of batch means, as transformers' evaluation takes
it, weighs a token by the company it keeps.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.data.xray import IGNORED, Encoded


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss in nats per supervised token, perplexity = exp(loss), and the tokens it is over."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


def held_out_loss(
    model: Any,
    rows: list[Encoded],
    pad_token: int,
    batch: int,
    each_batch: Callable[[int], None] = lambda done: None,
) -> HeldOutLoss:
    """:param each_batch: called with the number of rows done, may raise to stop"""
    import torch

    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    # Rows of like length share a batch; the sum does not depend on the order.
    ordered = sorted((row for row in rows if row.supervised), key=lambda row: len(row.input_ids))
    try:
        with torch.no_grad(), autocast(model):
            for start in range(0, len(ordered), batch):
                each_batch(start)
                loss, tokens = _batch_loss(model, ordered[start : start + batch], pad_token)
                total, count = total + loss, count + tokens
    finally:
        model.train(was_training)
    return HeldOutLoss(total / count if count else math.nan, count)


def _batch_loss(model: Any, rows: list[Encoded], pad_token: int) -> tuple[float, int]:
    """Summed NLL and number of supervised tokens; logits only where a token is supervised."""
    import torch

    length = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), length), pad_token)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[number, : len(row.labels)] = torch.tensor(row.labels)
        mask[number, : len(row.input_ids)] = 1
    targets = labels[:, 1:]
    positions = (targets != IGNORED).any(dim=0).nonzero().flatten()
    device = model.device
    output = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        logits_to_keep=positions.to(device),
        use_cache=False,
    )
    wanted = targets[:, positions].to(device)
    loss = torch.nn.functional.cross_entropy(
        output.logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss.item(), int((wanted != IGNORED).sum())


def autocast(model: Any) -> Any:
    """The precision the base computes in, for the float32 adapter beside it."""
    import torch

    dtype = model.dtype
    enabled = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, dtype=dtype if enabled else None, enabled=enabled)
