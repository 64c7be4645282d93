"""What the database file is asked before it is used. Nothing is written while it is asked.

A file that is lost, damaged, older than the folders, newer than this version or not Plumbline's is refused
with a sentence: to go on with it would give numbers a second time, or lose what another version wrote.
"""

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plumbline.errors import StudioError
from plumbline.home import home, numbers_in
from plumbline.program import command

APPLIED = "_sqlite_migrations"


class UnusableDatabase(StudioError):
    """The database file cannot be gone on with.

    :param fix: what helps; where a rebuild does, it follows
    :param rebuilt: whether a new one made from the folders is the way out
    """

    def __init__(self, what: str, fix: str = "", rebuilt: bool = True) -> None:
        self.rebuilt = rebuilt
        advice = f"{fix} {_rebuild_advice()}".strip() if rebuilt else fix
        super().__init__(str(database_path()), what, advice)


@dataclass(frozen=True)
class Stamp:
    """Which database wrote the folders' records last, and how many changes it had by then."""

    id: str
    changes: int


def database_path() -> Path:
    return home() / "plumbline.db"


def _rebuild_advice() -> str:
    kept = ", and keeps the old file beside" if database_path().exists() else ""
    rebuild = command("doctor", "--rebuild")
    return f"Run `{rebuild}`: it lists every run and dataset again from their folders{kept}."


def beside(path: Path) -> list[Path]:
    """A database file and what SQLite keeps beside it, as far as they are there."""
    files = (path.with_name(path.name + end) for end in ("", "-wal", "-shm"))
    return [file for file in files if file.exists() or file.is_symlink()]


def applied(path: Path, known: Collection[str]) -> list[str]:
    """The names of the migrations that a database file has; empty for one that is new.

    :param known: those of this version
    :raises UnusableDatabase: when it is not to be used
    """
    last = last_stamp()  # before the file: what it has may only grow meanwhile
    if not path.exists() or path.stat().st_size == 0:
        _refuse_lost("is empty" if path.exists() else "is not there")
        return []
    connection = read_only(path)
    try:
        return _looked_at(connection, known, last)
    except sqlite3.DatabaseError as error:
        # A lock or a missing right is an OperationalError, and says nothing of the file.
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise UnusableDatabase(f"is damaged ({error})") from None
    finally:
        connection.close()


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot change a database file."""
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=10.0)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _looked_at(connection: sqlite3.Connection, known: Collection[str], last: Stamp | None) -> list[str]:
    objects = connection.execute("select type, name from sqlite_master").fetchall()
    for kind, name in objects:
        if kind in ("trigger", "view"):
            what = f"has a {kind} named {name!r:.60}, which Plumbline did not make"
            raise UnusableDatabase(what, "Nothing of it was run.")
    tables = {name for kind, name in objects if kind == "table"}
    if not tables:
        _refuse_lost("has no tables")
        return []
    if APPLIED not in tables:
        raise UnusableDatabase("is a database of another program")
    query = f"select name from {APPLIED} where migration_set = 'plumbline' order by rowid"
    names = [row[0] for row in connection.execute(query)]
    if newer := [name for name in names if name not in known]:
        raise UnusableDatabase(
            f"was written by a newer version of Plumbline ({newer[-1]})",
            "Update Plumbline, or name another workspace with PLUMBLINE_HOME. Nothing was changed.",
            rebuilt=False,
        )
    if last is not None and (numbers_in("runs") or numbers_in("datasets")):
        _refuse_older(stamp_of(connection) if "workspace" in tables else None, last)
    return names


def _refuse_lost(what: str) -> None:
    """A file without anything in it is new only where there is nothing that it should know."""
    runs, datasets = len(numbers_in("runs")), len(numbers_in("datasets"))
    if runs or datasets:
        counted = f"{runs} run{'s'[: runs != 1]} and {datasets} dataset{'s'[: datasets != 1]}"
        raise UnusableDatabase(f"{what}, but there are folders of {counted} beside it")


def _refuse_older(own: Stamp | None, last: Stamp) -> None:
    if own is None or own.id != last.id:
        raise UnusableDatabase("is not the one that the folders of this workspace were made with")
    if own.changes < last.changes:
        missing = last.changes - own.changes
        what = f"is an older copy: {missing} change{'s'[: missing != 1]} of runs and datasets"
        raise UnusableDatabase(f"{what} {'is' if missing == 1 else 'are'} not in it")


def stamp_of(connection: Any) -> Stamp | None:
    """Who a database is, and how many changes it has; None before it was told."""
    row = connection.execute("select id, changes from workspace").fetchone()
    return None if row is None else Stamp(*row)


def stamp_path() -> Path:
    return home() / "plumbline.stamp"


def last_stamp() -> Stamp | None:
    """The stamp beside the database; None in a workspace of a version that wrote none."""
    try:
        stamp = json.loads(stamp_path().read_text(encoding="utf-8"))
        return Stamp(str(stamp["id"]), int(stamp["changes"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def damage(path: Path) -> str | None:
    """What SQLite finds wrong when it looks at a whole file, or None. Takes seconds for a large one."""
    connection = read_only(path)
    try:
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        verdict = str(error)
    finally:
        connection.close()
    return None if verdict == "ok" else " ".join(verdict.split())[:200]
