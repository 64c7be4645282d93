"""Everything Plumbline does, without a user interface: data, training, evaluation, chat, export.

Importing this package is cheap: torch and transformers are imported when work starts.
"""

import os

__version__ = "0.1.0"

# Nothing is reported to anybody unless the user says so.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for work sleep: spinning, they take the cores that the page needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
