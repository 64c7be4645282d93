"""Forward and backward of Llama-like decoders, written out by hand.

The base is frozen, so most of what autograd would keep and compute is not needed: gradients of
weights exist for the adapters only, buffers are overwritten as soon as nothing reads them, a
recomputed layer stops before its last product, and a step launches a fraction of the kernels.
`plumbline.engine.autograd` computes the same for every other model, and is what this is tested against.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from plumbline.batches.packing import Pack
from plumbline.engine import chunked_loss, elementwise
from plumbline.engine.chunked_loss import Weigh
from plumbline.engine.cpu_offload import ActivationOffload
from plumbline.engine.plan import LARGE_PIECE, SMALL_PIECE
from plumbline.engine.projections import Adapter, Projections, Scratch
from plumbline.engine.row_attention import Attended, attend, attend_backward


@dataclass
class SavedActivations:
    """What a layer's backward reads of its forward. The norms' outputs, cheap to have, are computed again."""

    x: torch.Tensor
    raw: torch.Tensor | None
    attended: Attended
    middle: torch.Tensor
    gate_up: torch.Tensor


@dataclass(frozen=True)
class Rope:
    """Cosines and sines by position, each (positions, head_dim / 2)."""

    cosine: torch.Tensor
    sine: torch.Tensor


class Layer:
    """One decoder layer: attention and gated feed-forward, each after a norm, each added to its input.

    :param small: dequantise weights one after the other: less memory, a little slower
    """

    def __init__(self, module: Any, scratch: Scratch, small: bool) -> None:
        attention, feed_forward = module.self_attn, module.mlp
        self.qkv = Projections([attention.q_proj, attention.k_proj, attention.v_proj], scratch, not small)
        self.out = Projections([attention.o_proj], scratch)
        self.gate_up = Projections([feed_forward.gate_proj, feed_forward.up_proj], scratch, not small)
        self.down = Projections([feed_forward.down_proj], scratch)
        self.norm, self.middle_norm = module.input_layernorm, module.post_attention_layernorm
        self.query_norm = getattr(attention, "q_norm", None)
        self.key_norm = getattr(attention, "k_norm", None)
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.query_heads = self.qkv.outputs[0] // self.head_dim
        self.key_heads = self.qkv.outputs[1] // self.head_dim

    @property
    def groups(self) -> tuple[Projections, ...]:
        return self.qkv, self.out, self.gate_up, self.down

    def forward(
        self, x: torch.Tensor, pack: Pack, rope: Rope, keep: bool
    ) -> tuple[torch.Tensor, SavedActivations | None]:
        """(tokens, hidden size) -> the same, and what `backward` needs where ``keep``."""
        saved = self.forward_to_gate(x, pack, rope, keep)
        product = elementwise.swiglu(saved.gate_up)
        if keep:
            return self.down.forward(product, saved.middle), saved
        middle = saved.middle
        del saved
        return self.down.forward(product, middle), None

    def forward_to_gate(self, x: torch.Tensor, pack: Pack, rope: Rope, keep: bool) -> SavedActivations:
        """All of `forward` that `backward` reads: everything but the last product.

        :param keep: attention can be differentiated later
        """
        qkv = self.qkv.forward(_norm(self.norm, x))
        query, key, value = self._heads(qkv, pack, rope)
        attended = attend(query, key, value, pack, self.scale, keep)
        raw = qkv if self.query_norm is not None else None
        del qkv
        middle = self.out.forward(attended.out.detach().flatten(1), x)
        gate_up = self.gate_up.forward(_norm(self.middle_norm, middle))
        return SavedActivations(x, raw, attended, middle, gate_up)

    def backward(
        self, gradient: torch.Tensor, saved: SavedActivations, pack: Pack, rope: Rope
    ) -> torch.Tensor:
        """The gradient of the layer's input from that of its output; adapters' gradients are added up."""
        product, gate_up = elementwise.swiglu_backward(self.down.input_gradient(gradient), saved.gate_up)
        self.down.adapter_gradients(gradient, product)
        del product
        normed = _norm(self.middle_norm, saved.middle)
        into_part = self.gate_up.backward(gate_up, normed)
        del gate_up, normed
        saved.gate_up = None  # type: ignore[assignment]
        gradient = _norm_backward(self.middle_norm, into_part, saved.middle, gradient)
        del into_part
        saved.middle = None  # type: ignore[assignment]
        out = saved.attended.out.detach()
        into_part = self.out.backward(gradient, out.flatten(1)).view_as(out)
        qkv = attend_backward(saved.attended, into_part, pack, self.scale)
        del into_part, out
        saved.attended = None  # type: ignore[assignment]
        self._heads_backward(qkv, saved.raw, pack, rope)
        into_part = self.qkv.backward(qkv, _norm(self.norm, saved.x))
        return _norm_backward(self.norm, into_part, saved.x, gradient)

    def _heads(self, qkv: torch.Tensor, pack: Pack, rope: Rope) -> Any:
        """Queries, keys (both with their position) and values, each (tokens, heads, head_dim)."""
        queries, keys, width = self.query_heads, self.key_heads, self.head_dim
        turned = qkv
        if self.query_norm is not None:
            # What comes before the norm stays: the norm's gradient needs it.
            turned = torch.empty((len(qkv), (queries + keys) * width), dtype=qkv.dtype, device=qkv.device)
            per_head = turned.unflatten(1, (-1, width))
            raw = qkv.unflatten(1, (-1, width))
            for norm, part in self._norms():
                flat = raw[:, part].reshape(-1, width)
                per_head[:, part] = _norm(norm, flat).view(len(qkv), -1, width)
        elementwise.rotate(turned, queries + keys, rope.cosine, rope.sine, pack.positions)
        split = turned[:, : (queries + keys) * width].unflatten(1, (-1, width))
        values = qkv[:, (queries + keys) * width :].unflatten(1, (-1, width))
        return split[:, :queries], split[:, queries:], values

    def _norms(self) -> Iterator[tuple[Any, slice]]:
        yield self.query_norm, slice(0, self.query_heads)
        yield self.key_norm, slice(self.query_heads, self.query_heads + self.key_heads)

    def _heads_backward(self, qkv: torch.Tensor, raw: torch.Tensor | None, pack: Pack, rope: Rope) -> None:
        """In place: gradients of queries and keys become those of what they were before rope and norm."""
        heads, width = self.query_heads + self.key_heads, self.head_dim
        elementwise.rotate(qkv, heads, rope.cosine, rope.sine, pack.positions, inverse=True)
        if raw is None:
            return
        per_head, before = qkv.unflatten(1, (-1, width)), raw.unflatten(1, (-1, width))
        for norm, part in self._norms():
            flat = per_head[:, part].reshape(-1, width)
            back = _norm_backward(norm, flat, before[:, part].reshape(-1, width))
            per_head[:, part] = back.view(len(qkv), -1, width)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return elementwise.rms_norm(x, module.weight, module.variance_epsilon)


def _norm_backward(
    module: Any, gradient: torch.Tensor, x: torch.Tensor, add: torch.Tensor | None = None
) -> torch.Tensor:
    return elementwise.rms_norm_backward(gradient, x, module.weight, module.variance_epsilon, add)


class DecoderEngine:
    """Computes loss and adapter gradients of packs.

    :param model: a PeftModel that `refusal` has nothing against; its adapters' weights move into one
        stretch of memory, and stay the module's parameters
    :param longest: positions that a row may have, in tokens
    :param kept_layers: last layers whose activations are kept; those before are computed again
    :param offload: inputs of recomputed layers wait in the host's memory
    :param smoothing: of the labels, in training
    """

    def __init__(
        self, model: Any, longest: int, kept_layers: int, offload: bool, smoothing: float = 0.0
    ) -> None:
        base = model.get_base_model()
        decoder = base.get_decoder()
        self.device, self.dtype = base.device, base.dtype
        self.embedding, self.final_norm = decoder.embed_tokens, decoder.norm
        self.head = base.get_output_embeddings().weight
        scratch = Scratch(self.dtype, self.device)
        self.layers = [Layer(module, scratch, small=offload) for module in decoder.layers]
        self.recomputed = max(0, len(self.layers) - kept_layers)
        self.rope = _rope(decoder.rotary_emb, longest, self.dtype, self.device)
        self.hosted = ActivationOffload(self.device, offload)
        self.adapters = FlatAdapters(self.layers, self.dtype, self.device)
        self.piece_bytes = SMALL_PIECE if offload else LARGE_PIECE
        self.sharded = getattr(base, "sharded", None)
        self.smoothing = smoothing
        self.beside: dict[str, Any] = {}

    @torch.no_grad()
    def step(self, pack: Pack, weight: float | Weigh) -> torch.Tensor:
        """Add the gradients of ``weight`` times the pack's summed negative log-likelihood.

        :param weight: 1 / the supervised tokens of the optimizer step, for their mean; or a loss of the
            pack's log-probabilities, as `plumbline.engine.chunked_loss` takes it
        :returns: the weighted loss in nats, float32, 0-dim, on the device
        """
        self.adapters.attach_gradients()
        saved: list[SavedActivations | None] = []
        loss, gradient = self.loss(self.forward(pack, saved), pack, weight)
        self.backward(gradient, pack, saved)
        return loss

    @torch.no_grad()
    def losses(self, pack: Pack) -> torch.Tensor:
        """The negative log-likelihood of every learned token in nats, float32, (supervised,)."""
        x = torch.nn.functional.embedding(pack.ids, self.embedding.weight)
        for number, layer in enumerate(self.layers):
            self._load(number, number + 1)
            x, _ = layer.forward(x, pack, self.rope, keep=False)
        normed = _norm(self.final_norm, x[pack.learned])
        return chunked_loss.losses(normed, self.head, pack.targets, self.piece_bytes)

    def forward(self, pack: Pack, saved: list[SavedActivations | None]) -> torch.Tensor:
        """The last layer's output, (tokens, hidden size); ``saved`` gets what `backward` needs."""
        x = torch.nn.functional.embedding(pack.ids, self.embedding.weight)
        for number, layer in enumerate(self.layers):
            self._load(number, number + 1)
            keep = number >= self.recomputed
            if not keep:
                self.hosted.put(number, x)
            x, layer_saved = layer.forward(x, pack, self.rope, keep)
            saved.append(layer_saved)
            del layer_saved
        self.hosted.all_put()
        return x

    def loss(self, x: torch.Tensor, pack: Pack, weight: float | Weigh) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted loss, and its gradient by the last layer's output ``x``, which it overwrites."""
        last = x[pack.learned]
        normed = _norm(self.final_norm, last)
        loss, gradient = chunked_loss.loss_and_gradient(
            normed, self.head, pack.targets, weight, self.piece_bytes, self.smoothing
        )
        gradient = _norm_backward(self.final_norm, gradient, last)
        return loss, x.zero_().index_copy_(0, pack.learned, gradient)

    def backward(self, gradient: torch.Tensor, pack: Pack, saved: list[SavedActivations | None]) -> None:
        """Add the adapters' gradients, given that of the last layer's output; empties ``saved``."""
        for number in reversed(range(len(self.layers))):
            layer, layer_saved = self.layers[number], saved.pop()
            self._load(number, number - 1)
            if layer_saved is None:
                x = self.hosted.take(number)
                layer_saved = layer.forward_to_gate(x, pack, self.rope, keep=True)
                del x
            gradient = layer.backward(gradient, layer_saved, pack, self.rope)
            del layer_saved
        self.hosted.clear()

    def gradients(self) -> list[torch.Tensor]:
        """All of the adapter's, zero where nothing was computed yet since the last optimizer step."""
        self.adapters.attach_gradients()
        return [self.adapters.gradients]

    def _load(self, number: int, following: int) -> None:
        """Have a layer's weights where its products are computed from; ``following`` comes after it."""
        self.adapters.load(number)
        if self.sharded is not None:
            self.sharded.load(number, following)


class FlatAdapters:
    """All adapter weights in one stretch of memory, and their gradients in another.

    Products are computed from a copy of one layer's weights in the base's type.
    """

    def __init__(self, layers: list[Layer], dtype: torch.dtype, device: Any) -> None:
        groups_of_layers = [[(group, list(group.each())) for group in layer.groups] for layer in layers]
        sizes = [
            sum(p.numel() for _, adapters in groups for adapter, _, _ in adapters for p in adapter.trained)
            for groups in groups_of_layers
        ]
        self.weights = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        self.gradients = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        self.copy = None
        if dtype != torch.float32:
            self.copy = torch.empty(max(sizes, default=0), dtype=dtype, device=device)
        self.places: list[slice] = []
        self.pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        offset = 0
        for groups, size in zip(groups_of_layers, sizes, strict=True):
            self.places.append(slice(offset, offset + size))
            for group, adapters in groups:
                begin = offset
                for matrix in range(2):
                    for adapter, _, _ in adapters:
                        offset = self._move(adapter, matrix, offset)
                all_a = slice(begin, begin + group.rank * group.inputs)
                group.all_a = self._working(all_a).view(group.rank, group.inputs)
                group.all_a_gradient = self.gradients[all_a].view(group.rank, group.inputs)

    def load(self, number: int) -> None:
        """Bring the copy that a layer's products are computed from."""
        if self.copy is not None:
            stretch = self.places[number]
            self.copy[: stretch.stop - stretch.start].copy_(self.weights[stretch])

    def attach_gradients(self) -> None:
        """Give every adapter weight its gradient, zero where an optimizer step has taken it away."""
        if self.pairs and self.pairs[0][0].grad is None:
            self.gradients.zero_()
            for parameter, gradient in self.pairs:
                parameter.grad = gradient

    def _move(self, adapter: Adapter, matrix: int, begin: int) -> int:
        """Move a (matrix 0) or b (matrix 1) to its place; returns where the next one begins."""
        parameter = adapter.trained[matrix]
        view = slice(begin, begin + parameter.numel())
        self.weights[view] = parameter.detach().flatten()
        parameter.data = self.weights[view].view_as(parameter)
        self.pairs.append((parameter, self.gradients[view].view_as(parameter)))
        working = self._working(view).view_as(parameter)
        if matrix == 0:
            adapter.a = working
        else:
            adapter.b = working
        return view.stop

    def _working(self, stretch: slice) -> torch.Tensor:
        if self.copy is None:
            return self.weights[stretch]
        start = self.places[-1].start
        return self.copy[stretch.start - start : stretch.stop - start]


def _rope(module: Any, longest: int, dtype: torch.dtype, device: Any) -> Rope:
    positions = torch.arange(longest, device=device)[None]
    cosine, sine = module(torch.empty(0, dtype=dtype, device=device), positions)
    half = cosine.shape[-1] // 2
    return Rope(cosine[0, :, :half].contiguous(), sine[0, :, :half].contiguous())
