"""Which engine computes a run's packs: the hand-written decoder where it can, autograd elsewhere."""

from typing import TYPE_CHECKING, Any, Protocol

from core.config import RunConfig
from core.models.hardware import Choice
from core.training.packing import Pack
from core.training.plan import Plan

if TYPE_CHECKING:
    from core.training.head import Weigh


class Engine(Protocol):
    """Adds the gradients of packs to the adapter's.

    :ivar beside: what steps have added up beside their losses, by name, times their weights; 0-dim. Whoever
        reads it sets it to zero
    """

    beside: dict[str, Any]

    def step(self, pack: Pack, weight: "float | Weigh") -> Any:
        """:param pack: on the model's device
        :param weight: 1 / the supervised tokens of the optimizer step; or a loss of the pack's
            log-probabilities, as `core.training.head` takes it
        :returns: ``weight`` times the summed negative log-likelihood, float32, 0-dim, on the device
        """

    def losses(self, pack: Pack) -> Any:
        """:returns: the negative log-likelihood of every learned token in nats, float32, (supervised,)"""

    def gradients(self) -> list[Any]:
        """:returns: all gradients of the adapter, zero where there are none yet"""


def engine(model: Any, config: RunConfig, plan: Plan) -> tuple[Engine, dict[str, Choice]]:
    """The engine for a PeftModel, and what was decided about it."""
    from core.training.decoder import DecoderEngine
    from core.training.refusals import odd_adapters, odd_recipe, refusal

    max_length = config.training.max_length
    dtype = str(model.dtype).removeprefix("torch.")
    why = refusal(model.get_base_model(), max_length, dtype) or odd_adapters(model) or odd_recipe(config)
    if why is not None:
        from core.training.autograd import AutogradEngine

        checkpointing = "none" if plan.kept_layers == plan.layers else "offload" if plan.offload else "full"
        made = AutogradEngine(model, config, checkpointing)
        return made, {"training path": Choice("autograd", why)} | made.decisions
    # A pack that is filled up ends in a row of its own, which may be longer than any other.
    longest = max(max_length, plan.micro_batch_tokens)
    smoothing = config.training.label_smoothing
    decoder = DecoderEngine(model, longest, plan.kept_layers, plan.offload, smoothing)
    if plan.graphs:
        from core.training.graphs import GraphedEngine

        return GraphedEngine(decoder, plan.micro_batch_tokens), {}
    return decoder, {}
