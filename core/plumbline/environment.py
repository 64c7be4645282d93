"""What Plumbline's own programs set for the libraries they use. Importing the package sets nothing."""

import os

DEFAULTS = {
    # Nothing is reported to anybody unless the user says so.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait for work sleep: spinning, they take the cores that the page needs.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_defaults() -> None:
    """For this process and those that it starts; what the user has set stays. Call it before any work."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
