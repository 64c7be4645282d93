"""How an adapter begins, where that is more than peft's own draw (Hu et al., 2021).

None of these changes the base. PiSSA and OLoRA begin at a product that is part of the base's weights;
in place of subtracting it there (which 4 bits could not hold), the adapter has twice the rank, and its
second half is that product, negated and frozen. So the base stays as it is, bit for bit, and what is
saved is a plain LoRA adapter for it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.errors import StudioError

EVA_TOKENS = 2048  # of a batch that EVA looks at
EVA_FORWARDS = 400  # most, before it is given up


def of_peft(init: str) -> bool | str:
    """What peft is told; the rest is done here."""
    return init if init in ("gaussian", "eva") else True


def begin(model: Any, config: RunConfig) -> None:
    """Set a new adapter's weights as ``lora.init_lora_weights`` says; eva's are set by `from_rows`.

    :param model: a PeftModel with one new adapter
    :raises StudioError: when loftq cannot have the base's own weights
    """
    import torch

    init, rank = config.lora.init_lora_weights, config.lora.r
    if init in ("default", "gaussian", "eva"):
        return
    original = _originals(config) if init == "loftq" else None
    sharded = getattr(model, "sharded", None)
    with torch.no_grad():
        for name, layer in layers(model):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            if sharded is not None:
                sharded.bring(layer.get_base_layer().weight)
            if init == "orthogonal":
                start = _orthogonal(a.shape[1], b.shape[0], rank)
            elif original is not None:
                start = _loftq(layer, original(name), rank)
            else:
                start = _principal(_dense(layer), init, rank)
            start_a, start_b = (part.to(a.device) for part in start)
            if init != "orthogonal":
                start_b = start_b / layer.scaling["default"]
            if config.lora.halved:
                start_a, start_b = torch.cat([start_a, start_a]), torch.cat([start_b, -start_b], dim=1)
            a.copy_(start_a)
            b.copy_(start_b)


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, under the base's own names."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            yield name.removeprefix("base_model.model."), module


def from_rows(model: Any, config: RunConfig, rows: list[Any], check_stop: Callable[[], None]) -> None:
    """EVA (Paischer et al., 2024): A begins at the directions in which the inputs of its layer vary most.

    Every layer keeps the recipe's rank. Nothing is done for another ``lora.init_lora_weights``.

    :param rows: training rows as tokens, with ``input_ids``
    :raises StudioError: when there are too few tokens, or the directions do not settle
    """
    if config.lora.init_lora_weights != "eva":
        return
    from peft import initialize_lora_eva_weights

    batches = _batches(rows, config.lora.r)
    done = 0

    def forward(tuned: Any, inputs: dict[str, Any]) -> Any:
        nonlocal done
        check_stop()
        done += 1
        if done > EVA_FORWARDS:
            what = f"eva has not settled after {EVA_FORWARDS} batches"
            raise StudioError("lora.init_lora_weights", what, "Lower lora.r, or take default.")
        return tuned(**{name: value.to(tuned.device) for name, value in inputs.items()}, use_cache=False)

    initialize_lora_eva_weights(model, batches, forward_fn=forward, show_progress_bar=False)


def _batches(rows: list[Any], rank: int) -> list[dict[str, Any]]:
    """Rows side by side, padded at the right; EVA leaves the padding out."""
    import torch

    batches: list[dict[str, Any]] = []
    some: list[list[int]] = []
    least = 2 * rank
    for number, row in enumerate(rows):
        some.append(list(row.input_ids))
        token_count = sum(map(len, some))
        if token_count < max(EVA_TOKENS, least) and number < len(rows) - 1:
            continue
        if token_count >= least:
            longest = max(map(len, some))
            ids = torch.zeros((len(some), longest), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number_in_batch, tokens in enumerate(some):
                ids[number_in_batch, : len(tokens)] = torch.tensor(tokens)
                mask[number_in_batch, : len(tokens)] = 1
            batches.append({"input_ids": ids, "attention_mask": mask})
        some = []
    if not batches:
        what = f"eva needs {least} tokens of training rows for rank {rank}"
        raise StudioError("lora.init_lora_weights", what, "Lower lora.r, add rows, or take default.")
    return batches


def _dense(layer: Any) -> Any:
    import torch

    from plumbline.models.precision import dense

    return dense(layer.get_base_layer(), torch.float32)


def _principal(weight: Any, init: str, rank: int) -> tuple[Any, Any]:
    """A and B whose product is the largest part of a weight (outputs, inputs)."""
    import torch

    if init == "olora":  # Büyükakyüz, 2024
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    if init == "pissa":  # Meng et al., 2024
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    else:
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=int(init.rpartition("_")[2]))
        vt = v.t()
    root = s.sqrt()
    # Both get the same share, as they do in the paper.
    return root[:, None] * vt, u * root


def _orthogonal(inputs: int, outputs: int, rank: int) -> tuple[Any, Any]:
    """A and B that are orthogonal to each other: their product is nothing, as with B = 0."""
    import torch

    q, _ = torch.linalg.qr(torch.randn(rank, rank))
    a = (torch.randn(inputs, rank // 2) @ q[0::2]).t() / 10
    b = (torch.randn(outputs, rank // 2) @ q[1::2]) / 10
    return a, b


def _loftq(layer: Any, weight: Any, rank: int) -> tuple[Any, Any]:
    """A and B that make up for what quantisation took from a weight (Li et al., 2023; one round, for the
    base stays as it is)."""
    quantised = _dense(layer)
    return _principal(weight.to(quantised.device, quantised.dtype) - quantised, "pissa", rank)


def _originals(config: RunConfig) -> Callable[[str], Any]:
    """Reads a layer's weight as the base's files have it, in 16 or 32 bits."""
    import json
    from pathlib import Path

    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    from plumbline.models.load import resolve

    def file(name: str) -> Path | None:
        cached = cached_file(
            resolve(config.model.base),
            name,
            revision=config.model.revision,
            _raise_exceptions_for_missing_entries=False,
        )
        return Path(cached) if cached else None

    index, single = file("model.safetensors.index.json"), file("model.safetensors")
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index else {}

    def read(layer: str) -> Any:
        weight_name = f"{layer}.weight"
        path = file(places[weight_name]) if weight_name in places else single
        if path is not None:
            with safe_open(path, framework="pt") as tensors:
                if weight_name in tensors.keys():  # noqa: SIM118  # it is no dict
                    return tensors.get_tensor(weight_name)
        what = f"loftq does not find {weight_name} in the files of {config.model.base}"
        raise StudioError("lora.init_lora_weights", what, "Take default, or pissa.")

    return read
