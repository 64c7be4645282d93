"""Copies of the database, made while it is used: one before it is migrated, and one a day."""

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from plumbline.home import folder
from plumbline.store.opening import database_path, read_only

log = logging.getLogger("plumbline")
KEPT = 5  # of each kind
DAILY, BEFORE = "daily-", "before-"
_looked_at = ("", "")  # the workspace and the day that this process made a backup, or found one


def make(name: str) -> Path:
    """Copy the database to a file in the workspace's folder for backups; the oldest of its kind go.

    :param name: begins with `DAILY` or `BEFORE`
    :raises sqlite3.Error, OSError: when it cannot be copied; nothing stays of the copy then
    """
    backups = folder("backups")
    final, staged = backups / f"{name}.db", backups / f"{name}.new"
    try:
        os.close(os.open(staged, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600))
        with closing(read_only(database_path())) as source, closing(sqlite3.connect(staged)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, that can be copied as it is
        os.replace(staged, final)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    kind = DAILY if name.startswith(DAILY) else BEFORE
    others = sorted(path for path in backups.glob(f"{kind}*.db") if path != final)  # by name, never by clock
    for old in others[: 1 - KEPT]:
        old.unlink(missing_ok=True)
    return final


def before_migration(first: str) -> None:
    """:param first: the migration that is to be applied"""
    make(f"{BEFORE}{first}-{time.strftime('%Y%m%d-%H%M%S')}")


def daily() -> None:
    """Make today's backup unless there is one. A disk that is full is no reason to stop working."""
    global _looked_at
    today = time.strftime("%Y-%m-%d")
    try:
        now = str(folder("backups")), today
        if _looked_at == now:
            return
        _looked_at = now
        if not (folder("backups") / f"{DAILY}{today}.db").exists():
            make(f"{DAILY}{today}")
    except (OSError, sqlite3.Error) as error:
        log.warning("no backup of the database was made today: %s", error)
