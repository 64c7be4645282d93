"""Import the training stack once, one thread at a time.

transformers fills its module lazily; two threads that import it at once can see it half made.
"""

import threading

_lock = threading.Lock()


def ready() -> None:
    """torch and the parts of transformers that every job and preview needs, imported."""
    with _lock:
        import torch  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
