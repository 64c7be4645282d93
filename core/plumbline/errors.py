"""Errors that are meant for people, and the one place where any exception becomes a message.

Everything that is not a StudioError is a bug: it keeps its traceback in the log.
"""

import errno
import logging
import os
import secrets
import sqlite3

from plumbline.program import command

log = logging.getLogger("plumbline")


class StudioError(Exception):
    """Something the user can mend: where it is, what is wrong, and how to fix it.

    :param where: the file and line, or the setting, for example ``data.jsonl line 3``
    :param what: one sentence, without a full stop
    :param fix: one sentence that says what to do, or empty
    """

    def __init__(self, where: str, what: str, fix: str = "") -> None:
        self.where, self.what, self.fix = where, what, fix
        super().__init__(self.text)

    @property
    def text(self) -> str:
        sentence = f"{self.where}: {self.what}" if self.where else self.what
        if not sentence.endswith((".", "?", "!")):  # another error's text is a sentence already
            sentence += "."
        return f"{sentence} {self.fix}" if self.fix else sentence


class RecipeError(StudioError):
    """A recipe with one or more wrong settings, all of them listed by field."""

    def __init__(self, problems: dict[str, str], where: str = "recipe") -> None:
        self.problems = problems
        listed = "; ".join(f"{field} {problem}" for field, problem in problems.items())
        super().__init__(where, listed)


class StopRequested(Exception):
    """The user pressed Stop; raised at the next safe point of a job."""


class Interrupted(StopRequested):
    """The process is to end: what was done is saved, and the run goes on from there when it is resumed."""


# What SQLite says, and what it means for whoever reads it.
_DATABASE = (
    ("disk is full", ""),
    ("is locked", "The database is held by another program. Close that, or wait, then try again."),
    ("readonly database", "The database cannot be written. Give this user the right to write the workspace."),
    (
        "unable to open database",
        "The database cannot be opened. See that this user may read and write the workspace, then try again.",
    ),
    ("disk I/O error", "The disk could not be read or written. Check the disk, then try again."),
    (
        "malformed",
        "The database is damaged. Stop Plumbline, then run `{doctor}`: it lists every run and dataset again "
        "from their folders, and keeps the damaged file beside.",
    ),
)
_FULL = "The disk is full. Free some space, then {again}: what was saved before is intact."
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)


def system_sentence(error: BaseException, again: str = "try again") -> str | None:
    """What went wrong with the disk or the database, in words; None when it was neither of them.

    :param again: what to do once there is room, as ``resume`` for a run
    """
    if isinstance(error, sqlite3.DatabaseError):
        sentence = next((text or _FULL for phrase, text in _DATABASE if phrase in str(error)), None)
        return sentence and sentence.format(again=again, doctor=command("doctor", "--rebuild"))
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _FULL.format(again=again)
    why = os.strerror(error.errno or 0)
    if error.errno in _REFUSED and error.filename is not None:
        return f"{error.filename}: cannot be used ({why}). Mend that, or choose another place."
    if error.errno in (errno.EIO, errno.EROFS, errno.EFBIG):  # a write names no file
        return f"The disk could not be written ({why}). Check it, then try again: what was saved is intact."
    return None


def message_of(error: BaseException, again: str = "try again") -> str:
    """The text that a person sees for this exception.

    Disks, databases and exhausted memory are told apart, because each has a remedy; any other
    exception that is not a StudioError is logged with its traceback under a short code.

    :param again: as of `system_sentence`
    """
    if isinstance(error, StudioError):
        return error.text
    if (known := system_sentence(error, again)) is not None:
        return known
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return (
            "Out of memory. Lower training.micro_batch_tokens or training.max_length, or set "
            "training.gradient_checkpointing to offload, then start again."
        )
    code = secrets.token_hex(4)
    log.error("internal error %s", code, exc_info=error)
    files = [handler.baseFilename for handler in log.handlers if isinstance(handler, logging.FileHandler)]
    place = next((file for file in files if file != os.devnull), "The log")
    return f"Internal error {code}: {type(error).__name__}. {place} has the details."
