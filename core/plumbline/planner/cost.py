"""What a step costs in memory and time, by counting: bytes held, products, bytes moved, launches.

The counts follow plumbline.engine.decoder; the shares that a device reaches of its own measured rates
were fitted on one H200 (tests/benchmarks/training.py prints forecast beside outcome).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from plumbline.batches.packing import TILE
from plumbline.engine.plan import StepConfig
from plumbline.planner.model_size import ModelSize, kept_bytes, recomputed_bytes, scratch_bytes

MIB = 1024**2
# Shares of the measured rates that the parts of a step reach, and what is fixed.
PRODUCTS, MOVES, MERGES, ATTENTION = 0.95, 0.85, 0.28, 0.55
TILE_BEGINS = 1.7  # a tile's beginning and end cost as much as this many pairs of tiles
ATTENTION_BACKWARD = 3.3  # times the forward
# A layer's launches forward and backward, and of its second forward: about 110 and 20 kernels, each of
# which takes six times as long to launch as the small one that a launch is measured with.
KERNELS, KERNELS_RECOMPUTED = 110, 20
LAUNCHES, LAUNCHES_RECOMPUTED = 6 * KERNELS, 6 * KERNELS_RECOMPUTED
KERNEL_SECONDS = 1.5e-6  # that a kernel takes however little it does, and the gap before it
# Of a layer for each token of an answer: transformers' own layers, with 4-bit weights and an adapter.
ANSWERING_KERNELS = 100
LIBRARIES = 40 * MIB  # workspaces of the matrix libraries
ON_CPU_TIME, ON_CPU_LIBRARIES = 1.5, 768 * MIB  # torch in place of kernels; what is imported to train
AUTOGRAD_MEMORY, AUTOGRAD_TIME = 2.5, 1.6  # against the hand-written decoder, roughly
FORWARD = 0.4  # of the time of a pass forward and backward in which nothing is computed again
# Reading and quantising a base, bytes of it as held a second; and what is imported before. Taking its digest.
LOADING_BYTES, IMPORTING_SECONDS, DIGEST_BYTES = 1.0e9, 4.0, 1.5e9
ADAPTER_BYTES, WRITING_BYTES, SAVE_SECONDS = 12.0, 4e8, 0.05  # a parameter of a checkpoint; a second; fixed
STATES = {"adamw_torch": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 0.0}  # bytes a parameter on the GPU
STEP_NANOSECONDS = {"adamw_torch": 0.02, "adamw_8bit": 1.0, "paged_adamw_8bit": 1.8}  # a parameter


@dataclass(frozen=True)
class DeviceSpeed:
    """What the device does: products in FLOP/s, memory in bytes/s, a launch in seconds."""

    matmul_flops: float
    bandwidth: float
    launch_overhead: float
    cuda: bool


def peak_bytes(shape: ModelSize, way: StepConfig, tokens: int, supervised: int) -> int:
    """Most bytes of torch tensors at once, on a device.

    :param tokens: of the largest pack that will come, with ``supervised`` of them in the loss
    """
    number, parameters = shape.number_bytes, shape.adapter_parameters
    fixed = shape.base_bytes + LIBRARIES + scratch_bytes(shape, way.offload)
    fixed += int(parameters * (8 + STATES[way.optimizer])) + number * parameters // shape.layers
    factor = AUTOGRAD_MEMORY if shape.refusal else 1.0
    saved_activations = way.layers_without_recompute * kept_bytes(shape) * tokens * factor
    row = shape.hidden * number
    recomputed = shape.layers - way.layers_without_recompute
    inputs = min(3, recomputed) * row * tokens if way.offload else recomputed * row * tokens
    loss = row * (tokens + 2 * supervised) + _piece(shape, way)
    gate = number * (2 * shape.hidden + shape.intermediate) * tokens
    at_the_turn = saved_activations + inputs + max(loss, gate if way.layers_without_recompute else 0)
    while_recomputing = inputs + recomputed_bytes(shape) * tokens * factor if recomputed else 0
    return int(fixed + max(at_the_turn, while_recomputing))


def _piece(shape: ModelSize, way: StepConfig) -> int:
    from plumbline.engine.plan import LARGE_PIECE, SMALL_PIECE

    return SMALL_PIECE if way.offload else LARGE_PIECE


def step_seconds(
    shape: ModelSize,
    way: StepConfig,
    rates: DeviceSpeed,
    packs: Sequence[Sequence[int]],
    supervised_share: float,
) -> float:
    """Seconds of one optimizer step.

    :param packs: the rows' lengths of each micro-batch
    :param supervised_share: of the tokens, those in the loss
    """
    again = (shape.layers - way.layers_without_recompute) / shape.layers
    work = launches = 0.0
    for lengths in packs:
        work += pack_seconds(shape, way, rates, lengths, supervised_share)
        launches += shape.layers * (LAUNCHES + LAUNCHES_RECOMPUTED * again) * rates.launch_overhead
    moments = shape.adapter_parameters * STEP_NANOSECONDS[way.optimizer] * 1e-9
    if not rates.cuda:
        return work + moments
    return (work if graphed(shape, way, rates) else max(work, launches)) + moments


def pack_seconds(
    shape: ModelSize, way: StepConfig, rates: DeviceSpeed, lengths: Sequence[int], supervised_share: float
) -> float:
    """Seconds of computing one pack, forward and backward."""
    tokens, number, hidden = sum(lengths), shape.number_bytes, shape.hidden
    again = (shape.layers - way.layers_without_recompute) / shape.layers
    down = shape.layers * shape.intermediate * hidden / shape.linear_weights
    flops = 2 * tokens * shape.linear_weights * (2 + again * (1 - down))
    flops += 4 * tokens * supervised_share * shape.vocabulary * hidden
    queries = shape.query_heads * shape.head_dim
    turned = queries + shape.key_heads * shape.head_dim
    moved: float = 30 * hidden + 2 * queries + 2 * shape.heads_width + 4 * turned + 15 * shape.intermediate
    moved += again * (7 * hidden + 4 * turned)
    moved *= tokens * number * shape.layers
    moved += 5 * tokens * supervised_share * shape.vocabulary * number
    merged = shape.linear_weights * (2 + again * (1 - down)) * 2.5
    counts = [-(-length // TILE) for length in lengths]
    pairs = sum(count * (count + 1) / 2 + TILE_BEGINS * count for count in counts)
    attention = pairs * 4 * TILE * TILE * queries * shape.layers * (1 + again + ATTENTION_BACKWARD)
    seconds = flops / (PRODUCTS * rates.matmul_flops) + attention / (ATTENTION * rates.matmul_flops)
    seconds += moved / (MOVES * rates.bandwidth) + merged / (MERGES * rates.bandwidth)
    if rates.cuda:
        seconds += shape.layers * (KERNELS + KERNELS_RECOMPUTED * again) * KERNEL_SECONDS
    seconds *= 1.0 if rates.cuda else ON_CPU_TIME
    return seconds * (AUTOGRAD_TIME if shape.refusal else 1.0)


def evaluation_seconds(
    shape: ModelSize,
    way: StepConfig,
    rates: DeviceSpeed,
    packs: Sequence[Sequence[int]],
    supervised_share: float,
) -> float:
    """Seconds of measuring held-out rows once. :param packs: their lengths, as for `step_seconds`"""
    once = replace(way, layers_without_recompute=shape.layers)
    return FORWARD * sum(pack_seconds(shape, once, rates, lengths, supervised_share) for lengths in packs)


def loading_seconds(shape: ModelSize, rates: DeviceSpeed) -> float:
    """Seconds until the base is in memory and its digest is taken, which is taken again at the end."""
    return IMPORTING_SECONDS + shape.base_bytes * (1 / LOADING_BYTES + 2 / DIGEST_BYTES)


def saving_seconds(shape: ModelSize) -> float:
    """Seconds of one checkpoint."""
    return SAVE_SECONDS + ADAPTER_BYTES * shape.adapter_parameters / WRITING_BYTES


def answering_seconds(shape: ModelSize, rates: DeviceSpeed, answers: int, at_once: int, tokens: int) -> float:
    """Seconds of trying answers, token by token: for each, all weights are dequantised and read again.

    The prompts, which are read at once, and what is kept of them are left out.

    :param at_once: answers that get their tokens together
    :param tokens: of the longest answer
    """
    head = shape.vocabulary * shape.hidden
    rounds = -(-answers // at_once)
    moved = (shape.linear_weights + head) * shape.number_bytes / MOVES + shape.linear_weights * 2.5 / MERGES
    flops = 2 * min(answers, at_once) * (shape.linear_weights + head)
    token = moved / rates.bandwidth + flops / (PRODUCTS * rates.matmul_flops)
    if not rates.cuda:
        return rounds * tokens * token * ON_CPU_TIME
    kernels = shape.layers * ANSWERING_KERNELS
    return rounds * tokens * max(token + kernels * KERNEL_SECONDS, 6 * kernels * rates.launch_overhead)


def graphed(shape: ModelSize, way: StepConfig, rates: DeviceSpeed) -> bool:
    """True when a full pack is computed faster than it is launched: then a graph launches it at once."""
    if not rates.cuda or shape.refusal or shape.number_bytes != 2 or shape.head_dim not in (32, 64, 128):
        return False
    work = pack_seconds(shape, way, rates, [min(way.tokens, 512)] * max(1, way.tokens // 512), 1.0)
    again = (shape.layers - way.layers_without_recompute) / shape.layers
    return work < shape.layers * (LAUNCHES + LAUNCHES_RECOMPUTED * again) * rates.launch_overhead


@lru_cache(maxsize=4)
def device_speed(device: str, dtype: str) -> DeviceSpeed:
    """What the device does, measured once in a process, in well under a second."""
    import torch

    speed = _measured(device, dtype)
    if speed.cuda:
        torch.cuda.empty_cache()  # the studio's process measures too, to forecast, and would keep over 1 GiB
    return speed


def _measured(device: str, dtype: str) -> DeviceSpeed:
    import torch

    kind = getattr(torch, dtype)
    cuda = device == "cuda"
    size = 8192 if cuda else 768
    left, right = (torch.randn(size, size, dtype=kind, device=device) for _ in range(2))
    products = 2 * size**3 / _seconds(lambda: left @ right, cuda)
    stretch = torch.empty((512 if cuda else 32) * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(stretch)
    memory = 2 * len(stretch) / _seconds(lambda: target.copy_(stretch), cuda)
    few = torch.zeros(8, device=device)
    count = 200

    def launch() -> None:
        for _ in range(count):
            few.add_(1)

    launch()
    begun = time.perf_counter()
    launch()
    return DeviceSpeed(products, memory, (time.perf_counter() - begun) / count, cuda)


def _seconds(work: Any, cuda: bool, repeats: int = 6) -> float:
    """The median time of some work, the first two runs left out."""
    import torch

    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return sorted(taken[2:])[(repeats - 2) // 2]
