"""NEFTune (Jain et al., 2023): noise on the embeddings of training rows, none in evaluation."""

from typing import Any

import torch

from plumbline.batches.packing import Pack


class Noise:
    """Adds uniform noise of size ``alpha / sqrt(tokens of the row * hidden size)``, row by row of a pack.

    transformers' own would take a whole pack for one row.

    :param embedding: the model's input embeddings
    """

    def __init__(self, embedding: Any, alpha: float) -> None:
        self.alpha = alpha
        self.pack: Pack | None = None
        embedding.register_forward_hook(self._add)

    def _add(self, module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        if self.pack is None or not module.training:
            return out
        bounds = self.pack.boundaries.long()
        lengths = bounds.diff()
        of_row = self.alpha / (lengths * out.shape[-1]).float().sqrt()
        size = of_row.repeat_interleave(lengths, output_size=out.shape[-2])
        noise = torch.empty_like(out, dtype=torch.float32).uniform_(-1, 1) * size[None, :, None]
        return out + noise.to(out.dtype)
