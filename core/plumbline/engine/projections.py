"""Frozen linear layers with LoRA adapters, several of one input computed as one product.

A base that is dequantised for every product anyway gets its adapter added in the same pass, in
float32, so that one matrix product does for both: x (W + s B A)^T. A 16-bit base is used as it
lies, and its adapter beside it: added to weights that have 16 bits already, the small steps of
training would be rounded away.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from plumbline.engine import elementwise
from plumbline.models.precision import dense

MERGE_ROWS, MERGE_COLUMNS, MERGE_RANK = 32, 256, 16  # weights a program, ranks a product


@dataclass
class Adapter:
    """LoRA matrices of one layer (Hu et al., 2021): the layer's output gets ``scale * x a^T b^T``.

    :param a: (rank, inputs), in the type that products are computed in
    :param b: (outputs, rank), likewise
    :param trained: the parameters behind them, float32
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    trained: tuple[torch.nn.Parameter, torch.nn.Parameter]


class Scratch:
    """One stretch of memory that every dequantised weight is written to in its turn."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.memory = torch.empty(0, dtype=dtype, device=device)

    def reserve(self, numbers: int) -> None:
        if numbers > len(self.memory):
            self.memory = torch.empty(numbers, dtype=self.dtype, device=self.device)

    def matrix(self, rows: int, columns: int) -> torch.Tensor:
        return self.memory[: rows * columns].view(rows, columns)


class Projections:
    """Linear layers that share their input.

    :param layers: modules of the model, with peft's adapters or without
    :param together: one product for all of them; else one after the other, with less scratch memory
    """

    def __init__(self, layers: list[Any], scratch: Scratch, together: bool = True) -> None:
        self.frozen = [getattr(layer, "base_layer", layer) for layer in layers]
        self.adapters = [_adapter(layer) for layer in layers]
        self.scratch, self.dtype = scratch, scratch.dtype
        self.outputs = [layer.out_features for layer in self.frozen]
        self.inputs = self.frozen[0].in_features
        ends = [sum(self.outputs[: count + 1]) for count in range(len(layers))]
        self.places = [slice(end - size, end) for size, end in zip(self.outputs, ends, strict=True)]
        present = [adapter for adapter in self.adapters if adapter is not None]
        self.rank = sum(len(adapter.a) for adapter in present)
        # All a of the group one below the other, and their gradients; FlatAdapters lays them out so.
        self.all_a = torch.empty(0)
        self.all_a_gradient = torch.empty(0)
        self.merged = scratch.dtype == torch.float32 or all(_packed(layer) for layer in self.frozen)
        biases = [layer.bias for layer in self.frozen]
        self.bias = None
        if any(bias is not None for bias in biases):
            self.bias = torch.cat(
                [
                    torch.zeros(size, dtype=self.dtype, device=scratch.device)
                    if bias is None
                    else bias.detach().to(self.dtype)
                    for bias, size in zip(biases, self.outputs, strict=True)
                ]
            )
        self.together = self.merged and together
        if self.merged or any(_packed(layer) for layer in self.frozen):
            scratch.reserve((sum if self.together else max)(self.outputs) * self.inputs)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(tokens, inputs) -> (tokens, sum of outputs), plus ``residual`` where given."""
        if self.together:
            weight = self._weight().t()
            if residual is not None:
                out = torch.addmm(residual, x, weight)
                return out if self.bias is None else out.add_(self.bias)
            return x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)
        return self._one_by_one(x, residual)

    def backward(self, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The gradient of the input; those of the adapters are added to their ``grad``.

        :param gradient: of the output, (tokens, sum of outputs)
        :param x: what `forward` was given
        """
        self.adapter_gradients(gradient, x)
        return self.input_gradient(gradient)

    def input_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The first half of `backward`, for when the input itself is still to be computed."""
        if self.together:
            return gradient @ self._weight()
        result: torch.Tensor | None = None
        for number, columns in enumerate(self.places):
            piece, weight = gradient[:, columns], self._weight_of(number)
            result = piece @ weight if result is None else result.addmm_(piece, weight)
        assert result is not None
        if self.merged:
            return result
        into_ranks = self._given(gradient)
        for adapter, _, mine in self.each():
            result.addmm_(into_ranks[:, mine], adapter.a, alpha=adapter.scale)
        return result

    def _weight(self) -> torch.Tensor:
        """Base and adapters of all layers as one matrix (outputs, inputs), in the shared scratch memory."""
        matrix = self.scratch.matrix(sum(self.outputs), self.inputs)
        for layer, adapter, columns in zip(self.frozen, self.adapters, self.places, strict=True):
            merge(layer, adapter, matrix[columns])
        return matrix

    def _weight_of(self, number: int) -> torch.Tensor:
        """One layer's weight, with its adapter where they are merged."""
        layer = self.frozen[number]
        if not self.merged and not _packed(layer):
            return layer.weight.detach().to(self.dtype)
        matrix = self.scratch.matrix(layer.out_features, layer.in_features)
        return merge(layer, self.adapters[number] if self.merged else None, matrix)

    def _one_by_one(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        out = torch.empty((len(x), sum(self.outputs)), dtype=self.dtype, device=x.device)
        for number, columns in enumerate(self.places):
            torch.mm(x, self._weight_of(number).t(), out=out[:, columns])
        if self.rank and not self.merged:
            thin = x @ self.all_a.t()
            for adapter, columns, mine in self.each():
                out[:, columns].addmm_(thin[:, mine], adapter.b.t(), alpha=adapter.scale)
        if self.bias is not None:
            out += self.bias
        return out if residual is None else out.add_(residual)

    def adapter_gradients(self, gradient: torch.Tensor, x: torch.Tensor) -> None:
        """The second half of `backward`: what the adapters' weights get."""
        if not self.rank:
            return
        thin, into_ranks = x @ self.all_a.t(), self._given(gradient)
        for adapter, columns, mine in self.each():
            b_gradient = adapter.trained[1].grad
            assert b_gradient is not None
            add_product(b_gradient, gradient[:, columns].t(), thin[:, mine], adapter.scale)
        scales = {adapter.scale for adapter, _, _ in self.each()}
        if len(scales) == 1:
            add_product(self.all_a_gradient, into_ranks.t(), x, scales.pop())
            return
        for adapter, _, mine in self.each():
            add_product(self.all_a_gradient[mine], into_ranks[:, mine].t(), x, adapter.scale)

    def _given(self, gradient: torch.Tensor) -> torch.Tensor:
        """The output's gradient times b of every adapter, (tokens, rank of all)."""
        into_ranks = torch.empty((len(gradient), self.rank), dtype=self.dtype, device=gradient.device)
        for adapter, columns, mine in self.each():
            torch.mm(gradient[:, columns], adapter.b, out=into_ranks[:, mine])
        return into_ranks

    def each(self) -> Iterator[tuple[Adapter, slice, slice]]:
        """Every adapter with its place among the outputs, and among the ranks of all."""
        begin = 0
        for adapter, columns in zip(self.adapters, self.places, strict=True):
            if adapter is not None:
                yield adapter, columns, slice(begin, begin + len(adapter.a))
                begin += len(adapter.a)


def add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> None:
    """``into += scale * left @ right``, where ``into`` is float32 and the others may have 16 bits."""
    if left.dtype == torch.float32:
        into.addmm_(left, right, alpha=scale)
    elif left.is_cuda:
        into.add_(torch.mm(left, right, out_dtype=torch.float32), alpha=scale)
    else:
        into.add_(left @ right, alpha=scale)


def merge(layer: Any, adapter: Adapter | None, out: torch.Tensor) -> torch.Tensor:
    """A layer's dequantised weight plus what its adapter adds, summed in float32, rounded once into ``out``.

    :param layer: a frozen linear layer of any kind that `plumbline.models.precision.dense` knows
    :param out: (outputs, inputs), contiguous
    """
    weight = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is not None and elementwise.fast(out) and out.shape[1] % state.blocksize == 0:
        _merge_on_gpu(weight, state, adapter, out)
        return out
    if state is None:
        full = dense(layer, torch.float32)
    else:
        from bitsandbytes.functional import dequantize_4bit

        state = copy.copy(state)
        state.dtype = torch.float32
        full = dequantize_4bit(weight.data, state)
    if adapter is not None:
        full = torch.addmm(full, adapter.b.float(), adapter.a.float(), alpha=adapter.scale)
    return out.copy_(full)


def _merge_on_gpu(weight: Any, state: Any, adapter: Adapter | None, out: torch.Tensor) -> None:
    from plumbline.engine.kernels.elementwise import merge_kernel

    rows, columns = out.shape
    nested = state.nested
    grid = (-(-rows // MERGE_ROWS), -(-columns // MERGE_COLUMNS))
    merge_kernel[grid](
        out,
        weight.data.view(torch.uint8),
        state.absmax,
        state.code,
        state.state2.absmax if nested else state.absmax,
        state.state2.code if nested else state.code,
        state.offset if nested else state.code,
        out if adapter is None else adapter.a,
        out if adapter is None else adapter.b,
        1.0 if adapter is None else adapter.scale,
        rows,
        columns,
        0 if adapter is None else len(adapter.a),
        NESTED=nested,
        BLOCK=state.blocksize,
        OUTER_BLOCK=state.state2.blocksize if nested else 1,
        RANK=MERGE_RANK,
        ROWS=MERGE_ROWS,
        COLUMNS=MERGE_COLUMNS,
        num_warps=4,
    )


def _packed(layer: Any) -> bool:
    """True for a 4-bit or 8-bit layer."""
    return getattr(layer.weight, "quant_state", None) is not None or layer.weight.dtype == torch.int8


def _adapter(layer: Any) -> Adapter | None:
    if not hasattr(layer, "lora_A"):
        return None
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Adapter(a.detach(), b.detach(), layer.scaling[name], (a, b))
