"""The GPUs that this process may use, and which of them nobody else is using."""

import os
import shutil
import subprocess

IDLE_SHARE = 0.05  # of a GPU's memory may be taken by what waits or draws a screen


def visible() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process sees, in torch's order."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if len(named) >= count else [str(number) for number in range(count)]


def idle() -> list[str]:
    """Those of `visible` that may be joined: the first, which a run uses anyway, and idle ones like it."""
    names = visible()
    if len(names) < 2:
        return names
    import torch

    used = _used_shares()
    about = [torch.cuda.get_device_properties(number) for number in range(len(names))]
    alike = [
        (properties.name, properties.total_memory) == (about[0].name, about[0].total_memory)
        for properties in about
    ]
    return [
        name
        for number, name in enumerate(names)
        if number == 0 or (alike[number] and used.get(str(about[number].uuid), 0.0) <= IDLE_SHARE)
    ]


def chosen(count: int) -> list[str]:
    """Names of so many GPUs, or of all: the first, idle ones, then those that others use as well."""
    free = idle()
    return (free + [name for name in visible() if name not in free])[:count]


def _used_shares() -> dict[str, float]:
    """The share of its memory that is taken of each of the machine's GPUs, by id; empty when not known."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    asked = [program, "--query-gpu=uuid,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        printed = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    shares = {}
    for line in printed.splitlines():
        id_, used, total = (part.strip() for part in line.split(","))
        if used.isdecimal() and total.isdecimal():
            shares[id_.removeprefix("GPU-")] = int(used) / max(1, int(total))
    return shares


def count_without_torch() -> int:
    """How many GPUs the machine has, as far as its driver tells."""
    return len(_used_shares())
