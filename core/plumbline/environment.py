"""What Plumbline's own programs set for the libraries they use. Importing the package sets nothing."""

import logging
import os
import sys
import warnings

DEFAULTS = {
    # Nothing is reported to anybody unless the user says so.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait for work sleep: spinning, they take the cores that the page needs.
    "OMP_WAIT_POLICY": "PASSIVE",
    # These libraries set their loggers from a variable.
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
}
LOGGERS = ("accelerate", "bitsandbytes", "peft", "torch", "trl")


def set_defaults() -> None:
    """For this process and those that it starts; what the user has set stays. Call it before any work."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def quiet_libraries() -> None:
    """Keep what libraries warn their programmers of from a terminal; ``python -W default`` shows it again.

    For this process: each that Plumbline starts calls it itself.
    """
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
