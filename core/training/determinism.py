"""Deterministic mode: only operations that give the same bits every time, while a run trains."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """As torch asks for it; other jobs of the process get back what they had."""
    import torch

    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), os.environ.get(WORKSPACE)
    cudnn = torch.backends.cudnn
    held = cudnn.deterministic, cudnn.benchmark
    # cuBLAS sums in the same order only with a workspace of its own.
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = held
        if before[1] is None:
            os.environ.pop(WORKSPACE, None)
