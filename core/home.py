"""Where things are: the workspace (PLUMBLINE_HOME) and the assets that ship with the code.

Paths are asked for at call time, never at import, so that one variable moves everything.
"""

import os
import sys
from pathlib import Path


def home() -> Path:
    """The workspace folder, created when missing: database, datasets, runs, exports."""
    path = Path(os.environ.get("PLUMBLINE_HOME") or _default_home()).expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _default_home() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")) / "plumbline"
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/plumbline")
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "plumbline"


def folder(*parts: str | int) -> Path:
    """A folder inside the workspace, created when missing. Parts are fixed names or ids."""
    path = home().joinpath(*(str(part) for part in parts))
    path.mkdir(parents=True, exist_ok=True)
    return path


def run_folder(run_id: int, create: bool = True) -> Path:
    """:param create: False to look only, at a run that may have been deleted meanwhile"""
    return folder("runs", int(run_id)) if create else home() / "runs" / str(int(run_id))


def export_folder(job_id: int, create: bool = True) -> Path:
    """What an export made; it goes when its run is deleted. :param create: as of `run_folder`"""
    return folder("exports", int(job_id)) if create else home() / "exports" / str(int(job_id))


def assets() -> Path:
    """The folder of the files that ship with the code: starter model, samples, presets."""
    return Path(__file__).resolve().parent.parent / "assets"
