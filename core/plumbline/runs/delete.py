"""Deletion of runs: their rows in one transaction, then their folders and those of their exports.

A crash in between leaves folders, which `clear` removes at the next start.
"""

import logging
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from plumbline.checkpoints import folders, inherit
from plumbline.errors import StudioError
from plumbline.home import export_folder, home, run_folder
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.store.database import database, writing
from plumbline.store.records import RunRow

log = logging.getLogger("plumbline")
AWAY = "deleted-"  # begins the name of a folder that is being removed


@dataclass(frozen=True)
class Contents:
    """What is deleted with a run.

    :param bytes: of all its files, exports included
    :param children: numbers of the runs that come from it; they stay
    """

    checkpoints: int
    evaluations: int
    exports: int
    bytes: int
    children: tuple[int, ...]

    @property
    def sentence(self) -> str:
        counted = [
            (self.checkpoints, "checkpoint"),
            (self.evaluations, "evaluation"),
            (self.exports, "export"),
        ]
        parts = ["its adapter, curves and log"]
        parts += [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counted if count]
        text = f"This deletes for good: {', '.join(parts)}; {self.bytes / 1e6:,.1f} MB."
        if self.children:
            names = ", ".join(f"run {child}" for child in self.children)
            is_single = len(self.children) == 1
            text += f" {names[0].upper()}{names[1:]} {'comes' if is_single else 'come'} from it and"
            text += f" {'stays' if is_single else 'stay'}."
        return text


def contents(run_id: int) -> Contents:
    """:raises StudioError: when there is no such run"""
    runs.get(run_id)
    folder = run_folder(run_id, create=False)
    exports = [path for path in _exports(_jobs(run_id)) if path.exists()]
    files = [path for root in (folder, *exports) for path in root.rglob("*")]
    return Contents(
        len(folders.listed(folder / "checkpoints")),
        database().table("evaluations").count_where("run_id = ?", [run_id]),
        len(exports),
        sum(path.lstat().st_size for path in files if path.is_file()),
        tuple(child["id"] for child in runs.children(run_id)),
    )


def remove(run_id: int) -> None:
    """Delete a run with all it has measured and saved, its evaluations and its exports.

    Runs that come from it stay, with its number: an adapter that was trained is whole without it.

    :raises StudioError: while a job of it waits or is being worked on, or a run has yet to begin with it
    """
    with writing():
        runs.get(run_id)
        job_ids = queue.forget(run_id)
        for child in _beginning_with(run_id):
            if child["state"] != "completed" and not inherit.steps(child["id"]):
                what = f"is needed by run {child['id']}, which has saved nothing of its own yet"
                fix = f"Delete run {child['id']} first, or train it."
                raise StudioError(f"run {run_id}", what, fix)
        runs.remove(run_id, job_ids)
    _let_go_of_chat(run_id)
    clear()


def _beginning_with(run_id: int) -> list[RunRow]:
    """The runs that come from one, and those that train these again: they begin as these do."""
    descendants = runs.children(run_id)
    for child in descendants:  # grows: a reproduction may be trained again too
        descendants += [again for again in runs.children(child["id"]) if again["relation"] == "reproduction"]
    return descendants


def clear() -> None:
    """Remove the folders of deleted runs and of their exports. Links are never followed."""
    run_ids, job_ids = runs.deleted()
    for path in [*(run_folder(run_id, create=False) for run_id in run_ids), *_exports(job_ids)]:
        if path.exists() or path.is_symlink():
            try:
                # By renaming first, nobody reads a folder that is half gone.
                path.rename(path.with_name(f"{AWAY}{path.name}-{uuid.uuid4().hex[:8]}"))
            except OSError as error:
                log.warning("%s of a deleted run could not be removed: %s", path.name, error)
    for name in ("runs", "exports"):
        for path in (home() / name).glob(f"{AWAY}*"):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


def _jobs(run_id: int) -> list[int]:
    rows = database().execute("select id from jobs where run_id = ?", [run_id]).fetchall()
    return [row[0] for row in rows]


def _exports(job_ids: list[int]) -> list[Path]:
    return [export_folder(job_id, create=False) for job_id in job_ids]


def _let_go_of_chat(run_id: int) -> None:
    from plumbline.chat import session  # it answers with a run that was trained, as most processes never do

    if session.is_loaded(run_id):
        session.close()
