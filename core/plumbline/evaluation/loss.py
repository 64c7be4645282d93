"""Held-out loss: the mean negative log-likelihood per supervised token, in nats.

Token-weighted over the whole set. (A mean of batch means, as transformers' evaluation takes
it, weighs a token by the company it keeps.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.data.tokens.encode import IGNORED, Encoded
from plumbline.models.precision import autocast
from plumbline.planner.figures import perplexity


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss in nats per supervised token, perplexity = exp(loss), and the tokens it is over.

    :param by_source: the loss of each dataset's own rows, where there are several
    """

    loss: float
    tokens: int
    by_source: dict[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


def held_out_loss(
    model: Any,
    rows: list[Encoded],
    pad_token: int,
    batch: int,
    each_batch: Callable[[int], None] = lambda done: None,
    sources: list[str] | None = None,
) -> HeldOutLoss:
    """The loss over all rows.

    :param each_batch: called with the number of rows done, may raise to stop
    :param sources: the dataset of each row, for a loss by dataset
    """
    sums: dict[str, list[float]] = {}
    losses = row_losses(model, rows, pad_token, batch, each_batch)
    for (loss, learned), source in zip(losses, sources or [""] * len(rows), strict=True):
        if learned:
            sums_of_source = sums.setdefault(source, [0.0, 0.0])
            sums_of_source[0], sums_of_source[1] = sums_of_source[0] + loss, sums_of_source[1] + learned
    return weighted(sums)


def row_losses(
    model: Any,
    rows: list[Encoded],
    pad_token: int,
    batch: int,
    each_batch: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, int]]:
    """The summed negative log-likelihood of each row in nats, and its supervised tokens.

    :param each_batch: called with the number of rows done, may raise to stop
    """
    import torch

    loss_of_rows = [(0.0, 0)] * len(rows)
    was_training = model.training
    model.eval()
    # Rows of like length share a batch; what a row gets does not depend on it.
    learned = [number for number, row in enumerate(rows) if row.supervised]
    ordered = sorted(learned, key=lambda number: len(rows[number].input_ids))
    try:
        with torch.no_grad(), autocast(model):
            for start in range(0, len(ordered), batch):
                each_batch(start)
                some = ordered[start : start + batch]
                losses, counts = _batch_loss(model, [rows[number] for number in some], pad_token)
                for number, loss, count in zip(some, losses, counts, strict=True):
                    loss_of_rows[number] = loss, count
    finally:
        model.train(was_training)
    return loss_of_rows


def weighted(sums: Mapping[str, Sequence[float]]) -> HeldOutLoss:
    """The loss over all rows. :param sums: by dataset, its summed negative log-likelihood and its tokens"""
    total, count = 0.0, 0.0
    for loss, tokens in sums.values():
        total, count = total + loss, count + tokens
    by_source = (
        {name: sums_of_source[0] / sums_of_source[1] for name, sums_of_source in sums.items()}
        if len(sums) > 1
        else {}
    )
    return HeldOutLoss(total / count if count else math.nan, int(count), by_source)


def _batch_loss(model: Any, rows: list[Encoded], pad_token: int) -> tuple[list[float], list[int]]:
    """Each row's summed NLL and supervised tokens; logits only where a token is supervised."""
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
    targets_at_positions = targets[:, positions].to(device)
    loss = torch.nn.functional.cross_entropy(
        output.logits.float().flatten(0, 1),
        targets_at_positions.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return loss.view(targets_at_positions.shape).sum(dim=1).tolist(), (targets_at_positions != IGNORED).sum(
        dim=1
    ).tolist()
