"""How large what is read may be. Past these a file is refused, with a message, before it fills memory."""

import os

MAX_LINE = 16 * 1024**2
MAX_DEPTH = 32  # of nested JSON in what is stored
MAX_COLUMNS = 256
MAX_RATIO = 100  # of unpacked to packed bytes; real text stays below 30
CHUNK = 4 * 1024**2  # read at once


def max_bytes() -> int:
    """Largest file, unpacked. PLUMBLINE_MAX_BYTES changes it."""
    return int(os.environ.get("PLUMBLINE_MAX_BYTES", 20 * 1024**3))


def max_rows() -> int:
    """Most rows of one dataset. PLUMBLINE_MAX_ROWS changes it."""
    return int(os.environ.get("PLUMBLINE_MAX_ROWS", 10_000_000))
