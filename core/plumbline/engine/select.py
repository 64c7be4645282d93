"""Which engine computes a run's packs: the hand-written decoder where it can, autograd elsewhere."""

from typing import TYPE_CHECKING, Any, Protocol

from plumbline.batches.packing import Pack
from plumbline.config.schema import RunConfig
from plumbline.engine.plan import Plan
from plumbline.models.hardware import Choice

if TYPE_CHECKING:
    from plumbline.engine.chunked_loss import Weigh


class Engine(Protocol):
    """Adds the gradients of packs to the adapter's.

    :ivar beside: what steps have added up beside their losses, by name, times their weights; 0-dim. Whoever
        reads it sets it to zero
    """

    beside: dict[str, Any]

    def step(self, pack: Pack, weight: "float | Weigh") -> Any:
        """:param pack: on the model's device
        :param weight: 1 / the supervised tokens of the optimizer step; or a loss of the pack's
            log-probabilities, as `plumbline.engine.chunked_loss` takes it
        :returns: ``weight`` times the summed negative log-likelihood, float32, 0-dim, on the device
        """

    def losses(self, pack: Pack) -> Any:
        """:returns: the negative log-likelihood of every learned token in nats, float32, (supervised,)"""

    def gradients(self) -> list[Any]:
        """:returns: all gradients of the adapter, zero where there are none yet"""


def engine(model: Any, config: RunConfig, plan: Plan) -> tuple[Engine, dict[str, Choice]]:
    """The engine for a PeftModel, and what was decided about it."""
    from plumbline.engine.decoder import DecoderEngine
    from plumbline.engine.support import odd_adapters, odd_recipe, refusal

    max_length = config.training.max_length
    dtype = str(model.dtype).removeprefix("torch.")
    why = refusal(model.get_base_model(), max_length, dtype) or odd_adapters(model) or odd_recipe(config)
    if why is not None:
        from plumbline.engine.autograd import AutogradEngine

        checkpointing = (
            "none" if plan.layers_without_recompute == plan.layers else "offload" if plan.offload else "full"
        )
        made = AutogradEngine(model, config, checkpointing)
        return made, {"training path": Choice("autograd", why)} | made.decisions
    # A pack that is filled up ends in a row of its own, which may be longer than any other.
    longest = max(max_length, plan.micro_batch_tokens)
    smoothing = config.training.label_smoothing
    decoder = DecoderEngine(model, longest, plan.layers_without_recompute, plan.offload, smoothing)
    if plan.graphs:
        from plumbline.engine.cuda_graphs import GraphedEngine

        return GraphedEngine(decoder, plan.micro_batch_tokens), {}
    return decoder, {}
