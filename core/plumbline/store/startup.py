"""What a studio sees to in its workspace before it serves: a sound database, a backup, records beside it."""

import os
import sqlite3

from filelock import Timeout

from plumbline.errors import message_of
from plumbline.home import home, numbers_in
from plumbline.program import command
from plumbline.store import backups, datasets, opening, runs, sidecars
from plumbline.store.database import database


def ready() -> list[str]:
    """:returns: what the user should know, in sentences

    :raises StudioError: when the database is not to be gone on with
    """
    database()
    if damage := opening.damage(opening.database_path()):
        raise opening.UnusableDatabase(f"is damaged ({damage})")
    backups.daily()
    warnings = [text for text in (unlisted(), open_to_others()) if text]
    try:
        sidecars.bring_up_to_date()
    except (OSError, sqlite3.Error, Timeout) as error:
        warnings.append(f"What a lost database is made from could not be written. {message_of(error)}")
    return warnings


def unlisted() -> str:
    """What stands in folders that the database does not know, as beside an older copy; empty for nothing."""
    listed = {row["id"] for row in datasets.listed()}
    deleted, _ = runs.deleted()
    lost = {
        "run": [
            number
            for number in numbers_in("runs") - runs.numbers() - set(deleted)
            if (home() / "runs" / str(number) / "recipe.yaml").exists()
        ],
        "dataset": [
            number
            for number in numbers_in("datasets") - listed
            if (home() / "datasets" / str(number) / "train.jsonl").exists()
        ],
    }
    counted = [
        f"{len(numbers)} {name}{'s'[: len(numbers) != 1]}" for name, numbers in lost.items() if numbers
    ]
    if not counted:
        return ""
    is_single = sum(map(len, lost.values())) == 1
    return (
        f"{' and '.join(counted)} {'is' if is_single else 'are'} in folders and not in the database. To list "
        f"{'it' if is_single else 'them'}, end Plumbline and run `{command('doctor', '--rebuild')}`."
    )


def open_to_others() -> str:
    """What to know when other users of the machine may look into the workspace; empty otherwise."""
    if os.name == "nt" or not home().stat().st_mode & 0o007:
        return ""
    return f"Other users of this machine may look into {home()}. `chmod 700` on it ends that."
