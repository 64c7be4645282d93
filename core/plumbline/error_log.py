"""The file in which unexpected errors keep their tracebacks. Entry points attach it."""

import logging
import os
import sys
import tempfile
from pathlib import Path

from plumbline.errors import StudioError, log
from plumbline.home import home

FILE = "errors.txt"


def attach() -> None:
    """From now on what Plumbline logs as an error goes to a file, which is made with the first one.

    It is the workspace's, or one of the system's temporary folder where the workspace cannot be written.
    """
    if not any(isinstance(handler, ErrorFile) for handler in log.handlers):
        log.addHandler(ErrorFile())


class ErrorFile(logging.FileHandler):
    """``baseFilename`` is where the last error is; ``os.devnull`` when it could be written nowhere."""

    def __init__(self) -> None:
        super().__init__(os.devnull, delay=True, encoding="utf-8", errors="backslashreplace")
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            if logging.lastResort is not None:
                logging.lastResort.handle(record)  # which prints it, as without this handler
            return
        self.close()
        self.baseFilename = str(_in_workspace(record) or _in_temporary_folder(record) or os.devnull)
        super().emit(record)


def _in_workspace(record: logging.LogRecord) -> Path | None:
    try:
        path = home() / FILE
        _begin(path, record)
    except (OSError, StudioError):
        return None
    return path


def _in_temporary_folder(record: logging.LogRecord) -> Path | None:
    try:
        number, name = tempfile.mkstemp(prefix="plumbline-", suffix=".txt")
        os.close(number)
        _begin(Path(name), record)
    except OSError:
        return None
    return Path(name)


def _begin(path: Path, record: logging.LogRecord) -> None:
    """Write which command it was; a file that cannot be written is found out by it."""
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"process {record.process}: {' '.join(sys.argv)}\n")
