"""Forward and backward of a pack through transformers' own model and torch's autograd.

Every model that transformers can train is trained by this; `plumbline.engine.decoder` is faster for
the layers it knows.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from plumbline.batches.packing import Pack, pack
from plumbline.config.schema import RunConfig
from plumbline.data.tokens.encode import IGNORED
from plumbline.engine import chunked_loss, lora_linear, varlen_attention
from plumbline.engine.chunked_loss import Weigh
from plumbline.engine.cpu_offload import ActivationOffload
from plumbline.engine.neftune import Noise
from plumbline.errors import StudioError
from plumbline.models.hardware import Choice
from plumbline.models.precision import autocast

PROBE_ROWS = (9, 6)  # tokens


class AutogradEngine:
    """Runs packs through a PeftModel.

    :param checkpointing: "none", "full" (layers are computed again in the backward pass) or "offload"
        (what they are computed from waits in the host's memory)
    :ivar decisions: what was chosen, and why
    """

    def __init__(self, model: Any, config: RunConfig, checkpointing: str) -> None:
        self.model, self.base = model, model.get_base_model()
        self.decisions = {
            "LoRA layers": lora_linear.fuse(model).choice,
            "fused kernels": liger(self.base),
            "checkpointing": self._checkpoint(checkpointing),
        }
        self.plain_head = False
        self.smoothing = config.training.label_smoothing
        self.router_loss = config.training.router_loss
        self.beside = {"router_loss": torch.zeros((), device=self.base.device)} if self.router_loss else {}
        self._give_router_logits(bool(self.router_loss))
        alpha = config.training.neftune_alpha
        self.noise = Noise(self.base.get_input_embeddings(), alpha) if alpha else None
        self.decisions["attention"] = self._attention(config.training.max_length)
        self.plain_head = self._head_is_plain()

    def step(self, pack: Pack, weight: float | Weigh) -> torch.Tensor:
        """Forward and backward; gradients are added to the adapter's.

        :param pack: on the model's device
        :param weight: 1 / the supervised tokens of the whole optimizer step (times the loss scale, if any)
        :returns: ``weight`` times the summed negative log-likelihood of the pack, float32, 0-dim
        """
        if not self.model.training:
            self.model.train()
        parts = [part for part in self._parts(pack) if len(part.targets)]
        if callable(weight) and len(parts) > 1:
            return self._step_of_rows(parts, weight)
        total = torch.zeros((), device=pack.ids.device)
        for part in parts:
            total += self._part(part, weight)
        return total

    def _step_of_rows(self, parts: list[Pack], weigh: Weigh) -> torch.Tensor:
        """Rows that run alone, with a loss of them all: their weights come from a pass of their own."""
        with torch.no_grad():
            total, weights = weigh(torch.cat([self._losses(part) for part in parts]))
        for part, some in zip(parts, weights.split([len(part.targets) for part in parts]), strict=True):
            self._part(part, partial(_known, total, some))
        return total

    @torch.no_grad()
    def losses(self, pack: Pack) -> torch.Tensor:
        """The negative log-likelihood of every learned token in nats, float32, (supervised,)."""
        was_training = self.model.training
        self.model.eval()
        try:
            return torch.cat([self._losses(part) for part in self._parts(pack)])
        finally:
            self.model.train(was_training)

    def gradients(self) -> list[torch.Tensor]:
        """All of the adapter's, zero where nothing was computed yet since the last optimizer step."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in trained]  # type: ignore[misc]

    def _losses(self, part: Pack) -> torch.Tensor:
        with self._attending(), autocast(self.model):
            if self.plain_head:
                hidden = self.base.base_model(**self._inputs(part)).last_hidden_state[0]
                matrix = self.base.get_output_embeddings().weight
                return chunked_loss.losses(hidden[part.learned].to(matrix.dtype), matrix, part.targets)
            logits = self._logits(part)[0]
        return torch.nn.functional.cross_entropy(logits.float(), part.targets, reduction="none")

    def _parts(self, pack: Pack) -> list[Pack]:
        return single_rows(pack) if self.attention == varlen_attention.ROWS else [pack]

    def _part(self, part: Pack, weight: float | Weigh) -> torch.Tensor:
        if self.hosted is not None:
            self.hosted.begin()
        if self.noise is not None:
            self.noise.pack = part
        with self._attending():
            with autocast(self.model):
                if self.plain_head:
                    output = self.base.base_model(**self._inputs(part))
                    learned = output.last_hidden_state[0].index_select(0, part.learned)
                    del output
                else:
                    loss, slope = self._model_loss(part, weight)
            if not self.plain_head:
                slope.backward()
                return loss.detach()
            matrix = self.base.get_output_embeddings().weight.detach()
            loss, gradient = chunked_loss.loss_and_gradient(
                learned.detach().to(matrix.dtype),
                matrix,
                part.targets,
                weight,
                smoothing=self.smoothing,
            )
            learned.backward(gradient.to(learned.dtype))
            return loss

    def _model_loss(self, part: Pack, weight: float | Weigh) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss through the model's own head, whatever that does, and what its gradients are of."""
        logits, output = self._logits(part)
        each = torch.nn.functional.cross_entropy(
            logits.float(), part.targets, reduction="none", label_smoothing=self.smoothing
        )
        if callable(weight):
            loss, weights = weight(each.detach())
            return loss, (each * weights).sum()
        loss = each.sum() * weight
        if not self.router_loss:
            return loss, loss
        # Of each row alone, so that it does not depend on what stands beside a row in its pack.
        balance = output.aux_loss.to(loss.device) * (len(part.targets) * weight)
        self.beside["router_loss"] += balance.detach()
        return loss, loss + self.router_loss * balance

    def _give_router_logits(self, asked_for: bool) -> None:
        """Only where their loss is asked for, whatever the base's own config says.

        :raises StudioError: when it is asked for, and the base has none
        """
        text = self.base.config.get_text_config(decoder=True)
        if hasattr(text, "output_router_logits"):
            text.output_router_logits = asked_for
        if not asked_for:
            return
        with self._probing():
            output = self.base(input_ids=torch.arange(4, device=self.base.device)[None], use_cache=False)
        if not isinstance(getattr(output, "aux_loss", None), torch.Tensor):
            what = f"is not for {self.base.config.model_type}, which has no loss of its routers"
            raise StudioError("training.router_loss", what, "Set it to 0.")

    def _logits(self, part: Pack) -> tuple[torch.Tensor, Any]:
        """Logits where a token is learned, (supervised, vocabulary), and the model's whole output."""
        output = self.base(**self._inputs(part), **self._keep(part.learned))
        logits = output.logits[0]
        if len(logits) != len(part.learned):
            logits = logits.index_select(0, part.learned)
        return logits, output

    def _keep(self, places: torch.Tensor) -> dict[str, Any]:
        known = inspect.signature(self.base.forward).parameters
        return {"logits_to_keep": places} if "logits_to_keep" in known else {}

    def _inputs(self, part: Pack) -> dict[str, Any]:
        """What the model is called with. With a cache, transformers would build no masks for packs."""
        inputs: dict[str, Any] = {"input_ids": part.ids[None], "use_cache": False}
        if self.attention != varlen_attention.ROWS:
            inputs["position_ids"] = part.positions[None]
        if self.attention == varlen_attention.NAME:
            inputs |= varlen_attention.arguments(part)
        return inputs

    def _attending(self) -> Any:
        return (
            varlen_attention.packed(self.base) if self.attention == varlen_attention.NAME else nullcontext()
        )

    def _checkpoint(self, checkpointing: str) -> Choice:
        if checkpointing not in ("none", "full", "offload"):
            raise ValueError(f"no checkpointing is called {checkpointing}")
        self.hosted: HostedInputs | None = None
        if not self.base.supports_gradient_checkpointing:
            return Choice("none", f"{self.base.config.model_type} cannot compute its layers again")
        # transformers 5.23 named both anew.
        if checkpointing == "none":
            disable = getattr(self.base, "activation_checkpointing_disable", None)
            (disable or self.base.gradient_checkpointing_disable)()
            return Choice("none", "everything is kept for the backward pass")
        enable = getattr(self.base, "activation_checkpointing_enable", None)
        (enable or self.base.gradient_checkpointing_enable)({"use_reentrant": False})
        if checkpointing == "full":
            return Choice("full", "layers are computed again in the backward pass")
        self.hosted = HostedInputs(self.base.device)
        for module in self.base.modules():
            if getattr(module, "gradient_checkpointing", False):
                module._gradient_checkpointing_func = self.hosted.around(module._gradient_checkpointing_func)
        return Choice("offload", "layers are computed again from inputs that wait in the host's memory")

    def _attention(self, max_length: int) -> Choice:
        """The first way of attending to packs that keeps two short rows apart, for this very model."""
        if self.router_loss:
            self.attention = varlen_attention.ROWS
            return Choice(varlen_attention.ROWS, "every row runs alone, for its router loss")
        first = varlen_attention.usable(self.base.config, max_length)
        own = self.base.config.get_text_config(decoder=True)._attn_implementation
        tried = ""
        for choice in (first, Choice(own, "rows are kept apart by a mask of tokens²")):
            self.attention = choice.value
            if choice.value == varlen_attention.ROWS or f"not {choice.value}:" in tried:
                break
            why = self._disturbed()
            if why is None:
                return Choice(choice.value, tried + choice.why)
            tried += f"not {choice.value}: {why}; "
        self.attention = varlen_attention.ROWS
        return Choice(varlen_attention.ROWS, tried + "every row runs alone" if tried else first.why)

    def _disturbed(self) -> str | None:
        """What keeps the second of two packed rows from the logits that it gets alone; None if nothing."""
        vocabulary = self.base.get_input_embeddings().weight.shape[0]
        rows = [[(7 * position + length) % vocabulary for position in range(length)] for length in PROBE_ROWS]
        both = pack([{"input_ids": row, "labels": row} for row in rows]).to(self.base.device)
        with self._probing():
            alone = self.base(input_ids=both.ids[None, PROBE_ROWS[0] :], use_cache=False).logits[0].float()
            try:
                with self._attending():
                    together = self.base(**self._inputs(both)).logits[0, PROBE_ROWS[0] :].float()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of families that cannot; every one words it differently
                return f"{type(error).__name__}, {error}"[:200]
        # Rows that see each other differ in the first digit; 16-bit kernels in the second or third.
        tolerance = 1e-3 if self.base.dtype == torch.float32 else 0.15
        difference = float((together - alone).norm() / (alone - alone.mean()).norm())
        return None if difference <= tolerance else f"packed rows disturb each other by {difference:.1%}"

    def _head_is_plain(self) -> bool:
        """Whether logits are the decoder's last hidden states times a frozen matrix, to the bit."""
        matrix = self.base.get_output_embeddings()
        if type(matrix) is not torch.nn.Linear or matrix.bias is not None or matrix.weight.requires_grad:
            return False
        if getattr(self.base.config.get_text_config(decoder=True), "output_router_logits", False):
            return False
        seen: list[torch.Tensor] = []
        hooks = [
            matrix.register_forward_hook(lambda _, inputs, out: seen.extend((inputs[0], out))),
            self.base.base_model.register_forward_hook(lambda _, inputs, out: seen.append(out[0])),
        ]
        try:
            with self._probing():
                ids = torch.arange(PROBE_ROWS[1], device=self.base.device)[None]
                logits = self.base(input_ids=ids, use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) != 3:
            return False
        hidden, inputs, out = seen
        return torch.equal(hidden, inputs) and torch.equal(logits.float(), out.float())

    @contextmanager
    def _probing(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), autocast(self.model):
                yield
        finally:
            self.model.train(was_training)


def _known(
    total: torch.Tensor, weights: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return total, weights


def single_rows(whole: Pack) -> list[Pack]:
    """Each row of a pack as a pack of its own. Waits for the device."""
    ids, bounds = whole.ids.tolist(), whole.boundaries.tolist()
    labels = [IGNORED] * (len(ids) + 1)
    for position, target in zip(whole.learned.tolist(), whole.targets.tolist(), strict=True):
        labels[position + 1] = target
    return [
        pack([{"input_ids": ids[start:end], "labels": labels[start:end]}]).to(whole.ids.device)
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def liger(base: Any) -> Choice:
    """liger-kernel's norms and gated layers in the place of a transformers model's, where it has them."""
    if base.device.type != "cuda":
        return Choice("none", "liger-kernel needs CUDA")
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        return Choice("none", "liger-kernel is not installed")
    kind = base.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return Choice("none", f"liger-kernel has no {kind} layers")
    # It also replaces classes and functions of the family for models to come, on whatever device: undone.
    module = vars(sys.modules[type(base).__module__])
    before = dict(module)
    try:
        # The loss is our own, over the supervised tokens only.
        _apply_liger_kernel_to_instance(
            model=base, rope=False, cross_entropy=False, fused_linear_cross_entropy=False
        )
    finally:
        module.update(before)
    return Choice("liger-kernel", f"its {kind} layers")


class HostedInputs:
    """Keeps what checkpointed layers are computed from in the host's memory until the backward pass."""

    def __init__(self, device: torch.device) -> None:
        self.memory = ActivationOffload(device, offload=True)
        self.begin()

    def begin(self) -> None:
        """A new pack comes."""
        self.memory.clear()
        self.count = 0
        self.shape: torch.Size | None = None

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpoint function whose saved inputs are held here."""

        def checkpoint_hosted(*args: Any, **kwargs: Any) -> Any:
            # What is saved inside the layer is not seen here: checkpointing's own hooks are nearer.
            with torch.autograd.graph.saved_tensors_hooks(self._put, self._take):
                return checkpoint(*args, **kwargs)

        return checkpoint_hosted

    def _put(self, tensor: torch.Tensor) -> Any:
        # HostMemory holds tensors of one shape: the hidden states.
        if tensor.dim() != 3 or not tensor.is_floating_point() or self.shape not in (None, tensor.shape):
            return tensor
        self.memory.put(self.count, tensor)
        self.shape, self.count = tensor.shape, self.count + 1
        return self.count - 1

    def _take(self, saved: Any) -> torch.Tensor:
        return self.memory.take(saved) if isinstance(saved, int) else saved
