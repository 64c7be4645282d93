"""How the engine computes a step; the planner chooses it."""

from dataclasses import dataclass, field

from plumbline.models.hardware import Choice

SMALL_PIECE, LARGE_PIECE = 64 * 1024**2, 256 * 1024**2  # bytes of logits at once


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed.

    :param tokens: most tokens of a pack
    :param layers_without_recompute: layers whose activations are kept
    """

    tokens: int
    layers_without_recompute: int
    offload: bool
    optimizer: str


@dataclass(frozen=True)
class Plan:
    """:param graphs: packs are replayed as CUDA graphs
    :param processes: that share every step, each on a GPU of its own
    :param sharded: each of them holds a part of every layer of the base
    """

    micro_batch_tokens: int
    layers_without_recompute: int
    layers: int
    offload: bool
    optimizer: str
    graphs: bool
    choices: dict[str, Choice] = field(default_factory=dict)
    processes: int = 1
    sharded: bool = False

    @property
    def multiple(self) -> int:
        """Packs are filled up to a multiple of this many tokens: graphs are made for few sizes."""
        return max(1, self.micro_batch_tokens // 8) if self.graphs else 1

    @property
    def way(self) -> StepConfig:
        return StepConfig(
            self.micro_batch_tokens, self.layers_without_recompute, self.offload, self.optimizer
        )
