"""Files of this machine that a browser may import: those inside of the folders that PLUMBLINE_DATA names.

Unset means none. The command line and Python take paths directly and do not come here.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from plumbline.data.readers.source_files import KINDS
from plumbline.errors import StudioError

MOST_LISTED = 500
MOST_VISITED = 50_000  # entries; a folder that holds a whole disk must not hold up the page
WHERE = "data folder"


def roots() -> list[Path]:
    """The allowed folders, resolved; those that are not there are left out."""
    named = [part for part in os.environ.get("PLUMBLINE_DATA", "").split(os.pathsep) if part.strip()]
    folders = [Path(part).expanduser().resolve() for part in named]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def listed() -> list[str]:
    """Names of data files that `inside` accepts, relative to their folder, sorted, 500 at most."""
    names: dict[str, None] = {}
    for root in roots():
        for name in _data_files(root):
            if len(names) == MOST_LISTED:
                return sorted(names)
            names[name] = None
    return sorted(names)


def inside(relative: str) -> Path:
    """The real path of a file in one of the allowed folders, the first that has it.

    :param relative: as `listed` gives it; separators are those of this system
    :raises StudioError: when no folder is allowed, the name leads out of it, or names no data file
    """
    folders = roots()
    if not folders:
        raise StudioError(
            WHERE, "no folder may be imported from", "Set PLUMBLINE_DATA on the server, or upload the file."
        )
    path = Path(relative)
    if not relative or "\0" in relative or path.is_absolute() or path.drive or ".." in path.parts:
        raise _refused(relative, "is not a name inside of the data folder")
    if not _is_data(path):
        raise _refused(relative, "is not a data file")
    for root in folders:
        try:
            real_path = (root / path).resolve(strict=True)
            kind = real_path.stat().st_mode
        # Not there, not readable, too long, a circle of links, or characters that no file name has.
        except (OSError, RuntimeError, ValueError):
            continue
        if not real_path.is_relative_to(root):
            raise _refused(relative, "leads out of the data folder")
        if not stat.S_ISREG(kind):
            raise _refused(relative, "is not a plain file")
        return real_path
    raise _refused(relative, "is not there")


def _refused(relative: str, what: str) -> StudioError:
    return StudioError(WHERE, f"{relative[:200]!r} {what}", "Choose one of the files that are listed.")


def _data_files(root: Path) -> Iterator[str]:
    """Data files below a folder by name, hidden ones and those behind linked folders left out."""
    visited = 0
    for folder, below, files in os.walk(root, followlinks=False):
        below[:] = sorted(name for name in below if not name.startswith("."))
        visited += len(files) + len(below)
        if visited > MOST_VISITED:
            return
        for name in sorted(files):
            path = Path(folder, name)
            if _is_data(path.relative_to(root)) and path.is_file() and path.resolve().is_relative_to(root):
                yield path.relative_to(root).as_posix()


def _is_data(path: Path) -> bool:
    """Whether a relative path has a known suffix and nothing hidden in it."""
    known = path.name.lower().removesuffix(".gz").endswith(tuple(KINDS))
    return known and not any(part.startswith(".") for part in path.parts)
