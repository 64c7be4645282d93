"""Decoder passes as CUDA graphs: a small pack is bound by the launches of its kernels, not by their work.

A graph replays the launches of one pack size at once. Packs are filled up to few sizes, so few graphs
are made. The head and the loss between the passes depend on how much is learned, and are launched as ever.
"""

from dataclasses import dataclass
from typing import Any

import torch

from plumbline.batches.packing import TILE, Pack
from plumbline.engine.chunked_loss import Weigh
from plumbline.engine.decoder import DecoderEngine, SavedActivations

# The work list has room for this many times the tiles that one long row would have.
ROOM = (1.5, 3.0, 6.0)
NO_TOKEN = 2**30  # a tile that begins behind its row's end is skipped


@dataclass
class Captured:
    """Both passes of one pack size, and the memory they read and write."""

    pack: Pack
    forward: Any
    out: torch.Tensor
    backward: Any


class GraphedEngine:
    """A DecoderEngine whose passes are recorded when a pack size first comes.

    :param tokens: of the largest pack
    """

    def __init__(self, engine: DecoderEngine, tokens: int) -> None:
        self.engine, self.warm = engine, False
        self.beside = engine.beside
        hidden = engine.embedding.weight.shape[1]
        # Pinned memory cannot be had while a graph is recorded.
        engine.hosted.reserve(engine.recomputed, tokens * hidden, engine.dtype)
        self.captured: dict[tuple[int, int], Captured] = {}
        self.pool = torch.cuda.graph_pool_handle()

    @torch.no_grad()
    def step(self, pack: Pack, weight: float | Weigh) -> torch.Tensor:
        """As `DecoderEngine.step`."""
        size = pack.tokens, _room(pack)
        if not self.warm:
            # Kernels are compiled outside any recording.
            self.warm = True
            return self.engine.step(pack, weight)
        self.engine.adapters.attach_gradients()
        if size not in self.captured:
            self.captured[size] = self._capture(*size)
        graphs = self.captured[size]
        graphs.pack.ids.copy_(pack.ids)
        graphs.pack.positions.copy_(pack.positions)
        graphs.pack.boundaries[: len(pack.boundaries)].copy_(pack.boundaries)
        graphs.pack.tiles[: len(pack.tiles)].copy_(pack.tiles)
        graphs.pack.tiles[len(pack.tiles) :] = NO_TOKEN
        graphs.pack.tiles[len(pack.tiles) :, 0] = 0
        graphs.forward.replay()
        # The gradient takes the place of what it is the gradient of: the backward graph reads it there.
        loss, _ = self.engine.loss(graphs.out, pack, weight)
        graphs.backward.replay()
        return loss

    def losses(self, pack: Pack) -> torch.Tensor:
        """As `DecoderEngine.losses`."""
        return self.engine.losses(pack)

    def gradients(self) -> list[torch.Tensor]:
        """As `DecoderEngine.gradients`."""
        return self.engine.gradients()

    def _capture(self, tokens: int, tiles: int) -> Captured:
        device = self.engine.device
        whole = torch.zeros(tokens, dtype=torch.int64, device=device)
        numbers = torch.zeros(tokens + 1, dtype=torch.int32, device=device)
        work = torch.zeros((tiles, 2), dtype=torch.int32, device=device)
        pack = Pack(whole, whole.clone(), numbers, (tokens,), whole[:0], whole[:0], work)
        saved: list[SavedActivations | None] = []
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads (a chat beside the training) may use the GPU meanwhile.
        with torch.cuda.graph(forward, pool=self.pool, capture_error_mode="thread_local"):
            out = self.engine.forward(pack, saved)
        with torch.cuda.graph(backward, pool=self.pool, capture_error_mode="thread_local"):
            self.engine.backward(out, pack, saved)
        return Captured(pack, forward, out, backward)


def _room(pack: Pack) -> int:
    """Tiles that the work list of a pack's graph has room for: few sizes, so that few graphs are made."""
    least = -(-pack.tokens // TILE)
    sizes = [round(least * times) for times in ROOM]
    return next((size for size in sizes if size >= len(pack.tiles)), len(pack.tiles))
