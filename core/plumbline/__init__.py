"""Everything Plumbline does, without a user interface: data, training, evaluation, chat, export.

Importing this package is cheap: torch and transformers are imported when work starts.
"""

__version__ = "0.1.0"
