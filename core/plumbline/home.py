"""Where things are: the workspace (PLUMBLINE_HOME) and the assets that ship with the code.

Paths are asked for at call time, never at import, so that one variable moves everything. Folders that are
made here are their owner's alone; one that is there keeps the rights that it has.
"""

import errno
import os
import sys
from pathlib import Path

from plumbline.errors import StudioError

PRIVATE = 0o700
LONGEST_NUMBER = 16  # digits; a name with more was not given here, and SQLite could not go on from it
ELSEWHERE = "Mend that, or name another folder, which this user may write to, with PLUMBLINE_HOME."


def home() -> Path:
    """The workspace folder, created when missing: database, datasets, runs, exports.

    :raises StudioError: when it cannot be made, or is no folder
    """
    path = Path(os.environ.get("PLUMBLINE_HOME") or _default_home())
    try:
        path = path.expanduser()
        _make(path)  # before links are followed: one to a disk that is missing must not be made anew
        return path.resolve()
    except RuntimeError as error:  # a user without a home; before Python 3.13 links in a circle, too
        raise StudioError(f"workspace {path}", f"cannot be used ({error})", ELSEWHERE) from None


def _default_home() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")) / "plumbline"
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/plumbline")
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "plumbline"


def folder(*parts: str | int) -> Path:
    """A folder inside the workspace, created when missing. Parts are fixed names or ids."""
    path = home()
    for part in parts:
        path /= str(part)
        _make(path)
    return path


def _make(path: Path) -> None:
    """:raises StudioError: when there can be no such folder"""
    try:
        if path.is_dir():
            return
        # The mode of `mkdir` is for the last folder alone; those above a workspace are the user's.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=PRIVATE, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"cannot be made ({error.strerror})"
        if isinstance(error, FileExistsError):
            what = (
                "is a link to something that is not there" if path.is_symlink() else "is a file, not a folder"
            )
        text = str(path)
        shown = text if len(text) <= 200 else f"{text[:100]}…{text[-60:]}"
        raise StudioError(f"workspace {shown}", what, ELSEWHERE) from None


def run_folder(run_id: int, create: bool = True) -> Path:
    """:param create: False to look only, at a run that may have been deleted meanwhile"""
    return folder("runs", int(run_id)) if create else home() / "runs" / str(int(run_id))


def export_folder(job_id: int, create: bool = True) -> Path:
    """What an export made; it goes when its run is deleted. :param create: as of `run_folder`"""
    return folder("exports", int(job_id)) if create else home() / "exports" / str(int(job_id))


def numbers_in(name: str) -> set[int]:
    """Numbers that things of a folder of the workspace are called by: those of runs, datasets or exports."""
    try:
        names = os.listdir(home() / name)
    except FileNotFoundError:
        return set()
    return {int(each) for each in names if each.isascii() and each.isdecimal() and len(each) < LONGEST_NUMBER}


def assets() -> Path:
    """The folder of the files that ship with the code: starter model, samples, presets."""
    package = Path(__file__).resolve().parent
    installed = package / "assets"
    return installed if installed.is_dir() else package.parent.parent / "assets"
