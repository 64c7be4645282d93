"""The version of Plumbline."""

__version__ = "0.1.0"
