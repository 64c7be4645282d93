"""Room on the disk: asked for before a save, and the one message for a write that found none."""

import errno
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.errors import StudioError

MB = 1_000_000
MARGIN = 200 * MB
RESERVE = 131_072  # bytes; SQLite needs a few pages to say that a run failed
FULL = (errno.ENOSPC, errno.EDQUOT)
# torch's own writer reports no error number; Rust's libraries put it in the text.
_TORCH = re.compile(r"PytorchStreamWriter|inline_container")
_RUST = re.compile(r"os error (\d+)")


def needed(size: int) -> int:
    """Bytes that must be free for a checkpoint of this size.

    Twice its size, for the older one goes only when the new one is whole, and a margin for everything
    else that is written meanwhile, in proportion for small ones.
    """
    return 2 * size + min(MARGIN, 2 * size)


def require(folder: Path, size: int) -> None:
    """:raises StudioError: when there is too little room for a checkpoint of this size"""
    if shutil.disk_usage(folder).free < needed(size):
        raise full(folder, size)


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Hold a little of the disk meanwhile, so that afterwards there is room to say that it is full."""
    reserve = folder / "reserve"
    reserve.write_bytes(os.urandom(RESERVE))  # zeros might be stored as nothing
    try:
        yield
    finally:
        reserve.unlink(missing_ok=True)


def full(folder: Path, size: int) -> StudioError:
    free = shutil.disk_usage(folder).free
    return StudioError(
        "",
        f"disk full, needs {_mb(needed(size))}, {_mb(free)} are free",
        "Free some space, then resume: what was saved before is intact.",
    )


def explained(error: BaseException, folder: Path, size: int) -> StudioError | None:
    """The message for a write that failed, or None for any other error.

    :param folder: where it was to be written
    :param size: bytes of a checkpoint
    """
    numbers = [number for cause in _chain(error) if (number := _errno(cause)) is not None]
    if not numbers:
        return None
    known = next((number for number in numbers if number), 0) or _tried(folder, size)
    if known in FULL:
        return full(folder, size)
    why = f" ({os.strerror(known)})" if known else ""
    return StudioError(
        "disk", f"could not be written{why}", "Check the disk, then resume: what was saved before is intact."
    )


def _tried(folder: Path, size: int) -> int:
    """The error number of writing as much again; 0 when that goes well."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(0, size, MB):
                file.write(bytes(MB))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return errno.ENOSPC if shutil.disk_usage(folder).free < needed(size) else 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _errno(error: BaseException) -> int | None:
    """The system's number of a failed write; 0 where it is not known; None for other errors."""
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EIO, errno.EFBIG, errno.EROFS):
        return error.errno
    if isinstance(error, sqlite3.OperationalError):
        if "disk is full" in str(error):
            return errno.ENOSPC
        return errno.EIO if "disk I/O error" in str(error) else None
    if match := _RUST.search(str(error)):
        return int(match[1])
    return 0 if isinstance(error, RuntimeError) and _TORCH.search(str(error)) else None


def _mb(count: float) -> str:
    return f"{count / MB:,.0f} MB" if count >= 10 * MB else f"{count / MB:.1f} MB"
