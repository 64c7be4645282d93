"""The language model head and the loss, in pieces: whole logits are never held."""

from collections.abc import Callable

import torch

from plumbline.engine import elementwise

# The loss and a weight for each token, from the tokens' negative log-likelihoods.
Weigh = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
PIECE_BYTES = 128 * 1024**2  # of logits


def piece_rows(vocabulary: int, bytes_each: int, piece_bytes: int = PIECE_BYTES) -> int:
    """Rows of hidden states whose logits are computed at once; a multiple of 64 where it can be."""
    rows = piece_bytes // (vocabulary * bytes_each)
    return max(64, min(4096, rows // 64 * 64))


def loss_and_gradient(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    weight: float | Weigh,
    piece_bytes: int = PIECE_BYTES,
    smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight`` times the summed negative log-likelihood, and its gradient.

    A function for a weight is given every token's own, and answers with the loss and with its
    derivative by each: so any loss of log-probabilities is computed, for one more product.

    Only the hidden states are differentiated: the head is frozen. Overwrites ``hidden`` with the gradient.

    :param hidden: final hidden states where a token is learned, (supervised, hidden size)
    :param head: the head's weight, (vocabulary, hidden size)
    :param targets: the learned tokens, (supervised,)
    :param piece_bytes: most bytes of logits at once
    :param smoothing: share of each target that is spread over the whole vocabulary (label smoothing)
    :returns: loss, float32 and 0-dim; gradient, shape and type of ``hidden``
    """
    piece_losses = []
    total: torch.Tensor | None = None
    weights: float | torch.Tensor
    if callable(weight):
        total, weights = weight(losses(hidden, head, targets, piece_bytes))
    else:
        weights = weight
    for piece in _pieces(hidden, head, piece_bytes):
        logits = hidden[piece] @ head.t()
        each = weights[piece] if isinstance(weights, torch.Tensor) else weights
        spread = _spread(logits, targets[piece]) if smoothing else None
        piece_losses.append(elementwise.cross_entropy(logits, targets[piece], each))
        if spread is not None:
            assert isinstance(each, float)
            piece_losses[-1] = piece_losses[-1] + smoothing * spread
            _smooth_gradient(logits, targets[piece], smoothing * each)
        torch.mm(logits, head, out=hidden[piece])
        del logits  # else the next piece's would be held beside them
    return (_joined(piece_losses, hidden).sum() * weights if total is None else total), hidden


def losses(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, piece_bytes: int = PIECE_BYTES
) -> torch.Tensor:
    """The negative log-likelihood of every target in nats, float32, (supervised,); see above."""
    piece_losses = [
        elementwise.cross_entropy(hidden[piece] @ head.t(), targets[piece], 0.0)
        for piece in _pieces(hidden, head, piece_bytes)
    ]
    return _joined(piece_losses, hidden)


def _spread(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What the loss would gain if the whole target were spread over the vocabulary, float32, (rows,)."""
    own = logits.gather(1, targets[:, None].long())[:, 0].float()
    return own - logits.mean(dim=1, dtype=torch.float32)


def _smooth_gradient(gradient: torch.Tensor, targets: torch.Tensor, share: float) -> None:
    """In place: from the gradient for whole targets to that for smoothed ones."""
    gradient.sub_(share / gradient.shape[1])
    places = targets[:, None].long()
    gradient.scatter_(1, places, gradient.gather(1, places) + share)


def _pieces(hidden: torch.Tensor, head: torch.Tensor, piece_bytes: int) -> list[slice]:
    rows = piece_rows(len(head), hidden.element_size(), piece_bytes)
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]


def _joined(piece_losses: list[torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    return torch.cat(piece_losses) if piece_losses else hidden.new_zeros(0, dtype=torch.float32)
