"""Everything here finds the source roots, however it is started, and so does what it starts."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ROOTS = [str(ROOT / "core"), str(ROOT / "studio"), str(ROOT)]
sys.path[:0] = [root for root in _ROOTS if root not in sys.path]
_BEFORE = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*_ROOTS, *(path for path in _BEFORE if path and path not in _ROOTS)]
)
