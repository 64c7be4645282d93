"""What this machine can do. Every choice comes with its reason, which the page shows."""

import os
import platform
from contextlib import suppress
from typing import Any, NamedTuple

from plumbline.config.schema import RunConfig
from plumbline.models import stack

GIB = 1024**3
PACKAGES = [
    "gradio",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "trl",
    "datasets",
    "accelerate",
    "plotly",
    "sqlite-utils",
]


class Choice(NamedTuple):
    """A decision and why it was taken."""

    value: str
    why: str


def device() -> Choice:
    stack.ready()
    import torch

    if torch.cuda.is_available():
        return Choice("cuda", torch.cuda.get_device_name(0))
    return Choice("cpu", "no CUDA device was found")


def compute_dtype(config: RunConfig) -> Choice:
    """The type of the matrix products and of the adapter's activations."""
    import torch

    setting = config.quantisation.compute_dtype
    if setting != "auto":
        return Choice(setting, "set in the recipe")
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bfloat16", "this GPU computes in bfloat16")
        return Choice("float16", "this GPU has no bfloat16")
    if "avx512_bf16" in cpu_flags() or "amx_bf16" in cpu_flags() or platform.machine() == "arm64":
        return Choice("bfloat16", "this CPU computes in bfloat16")
    return Choice("float32", "this CPU has no bfloat16 instructions")


def optimizer(planned: str) -> str:
    """transformers' name for an optimizer on this device."""
    import torch

    cuda = torch.cuda.is_available()
    if planned == "adamw_torch":
        return "adamw_torch_fused" if cuda else "adamw_torch"
    return planned if cuda else "adamw_8bit"  # paged memory needs CUDA


def threads() -> Choice:
    """CPU threads of the matrix products; see plumbline.models.stack."""
    import torch

    why = "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "half the cores; the page needs some"
    return Choice(str(torch.get_num_threads()), why)


def cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        return set()
    return set()


def forget_peak() -> None:
    """Start a new measurement of peak GPU memory."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def allocated_bytes() -> int:
    """What torch's tensors hold on the GPU now; 0 without one."""
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def process_bytes() -> int:
    """What this process holds on a machine that trains without a GPU; 0 with one, where it does not count."""
    import psutil
    import torch

    return 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss


def memory_used_gb() -> float:
    """GiB: the GPU's peak of allocated memory where there is one, else what this process holds."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return psutil.Process().memory_info().rss / GIB


def memory_total_gb(device: str) -> float | None:
    """GiB of the device that trains, ``cuda`` or ``cpu``.

    Torch, which knows a GPU's, is not imported for it: None where another process has it.
    """
    import sys

    import psutil

    if device != "cuda":
        return psutil.virtual_memory().total / GIB
    torch = sys.modules.get("torch")
    return None if torch is None else torch.cuda.get_device_properties(0).total_memory / GIB


def versions() -> list[tuple[str, str]]:
    """Python, the system, and the packages a run depends on."""
    import importlib.metadata

    rows = [("Python", platform.python_version()), ("system", platform.platform())]
    for package in PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, "MISSING: python3 launch.py installs it"))
    return rows


def environment() -> dict[str, Any]:
    """What a run records of its environment, so that it can be reproduced."""
    return dict(versions()) | {"device": device().why if device().value == "cuda" else "cpu"}


def release_memory() -> None:
    """Give back what a finished job held, on the host and on the GPU."""
    import ctypes
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # 32 MiB for every stream that a matrix product ran in; the next product takes one again.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # What was freed goes back to the system: glibc keeps it for this process otherwise.
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
