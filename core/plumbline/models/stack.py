"""Import the training stack once, one thread at a time.

transformers fills its module lazily; two threads that import it at once can see it half made.
"""

import os
import threading

_lock = threading.Lock()
# cuBLAS sums in the same order every time only with such a workspace. torch looks for it once in a process,
# at the first product, so it is there before anybody knows whether a run will be deterministic.
WORKSPACE, FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


def ready() -> None:
    """torch and the parts of transformers that every job and preview needs, imported.

    Without a GPU torch computes with half the logical cores (or OMP_NUM_THREADS): those are about
    the physical ones, and a page that is watched while a run trains needs room.
    """
    with _lock:
        os.environ.setdefault(WORKSPACE, FIXED)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

        if not (os.environ.get("OMP_NUM_THREADS") or torch.cuda.is_available()):
            torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
