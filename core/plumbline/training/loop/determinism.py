"""Deterministic mode: only operations that give the same bits every time, while a run trains."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """As torch asks for it; other jobs of the process get back what they had.

    What it asks of cuBLAS has to be there before the first product: see plumbline.models.stack.
    """
    import torch

    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn
    held = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        cudnn.deterministic, cudnn.benchmark = held
