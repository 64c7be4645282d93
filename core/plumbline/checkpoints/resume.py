"""Where a run goes on: the newest checkpoint that verifies and is of this very run, and what was lost."""

import json
from pathlib import Path
from typing import Any

from plumbline.checkpoints import folders
from plumbline.checkpoints.identity import differences, other_versions
from plumbline.errors import StudioError
from plumbline.files import write_whole
from plumbline.jobs.job import Job
from plumbline.store import history, runs


def checkpoint(job: Job, folder: Path) -> Path | None:
    """The checkpoint to go on from; None for a fresh start. Broken ones are set aside, and named.

    :param folder: of the checkpoints
    :raises StudioError: when there were checkpoints and none of them verifies
    """
    if not job.payload.get("resume"):
        _refuse_trained(job.run_id, folder)
        return None
    for lost in folders.recover(folder):
        job.event(lost, "warning")
    newest, bad = folders.newest_good(folder)
    for name, wrong in bad.items():
        job.event(f"{name} does not verify ({wrong}) and was set aside", "warning")
    if newest is None and (broken := folders.quarantined(folder)):
        names = ", ".join(path.name for path in broken)
        raise StudioError(
            "checkpoints",
            f"none verifies ({names})"[:200],
            "The run cannot go on. Start a new one with the same recipe.",
        )
    return newest


def _refuse_trained(run_id: int, folder: Path) -> None:
    """An older database may know a run as one that has yet to begin: what it has learned is not overwritten.

    :raises StudioError: when it has begun
    """
    if folders.listed(folder) or folder.with_name("artifact").exists():
        what = "has been trained already, as its folder says"
        raise StudioError(f"run {run_id}", what, "Resume it, or start a new one with the same recipe.")


def refuse_other(newest: Path, identity: dict[str, Any], job: Job) -> None:
    """:raises StudioError: when a checkpoint is of another recipe, other data or another base"""
    was = folders.identity_of(newest)
    if not was:
        job.event(f"{newest.name} is of a version that did not write down what it is of", "warning")
    if other := differences(was, identity):
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise StudioError(
            newest.name,
            f"is of another run: {'; '.join(other[:3])}{more}",
            "Undo that to resume, or branch a new run from this checkpoint.",
        )
    if changed := other_versions(was, identity):
        job.event(f"the curve may move a little: {'; '.join(changed)}", "warning")


def truncate_history(job: Job, folder: Path, resumed_from: Path | None) -> None:
    """Forget what was measured past the checkpoint, for it is measured again.

    :param folder: the run's
    """
    step, reached = folders.step_of(resumed_from) if resumed_from else -1, runs.get(job.run_id)["step"] or 0
    runs.update(job.run_id, step=max(step, 0), seconds_left=None)
    runs.forget_after(job.run_id, step)
    cut_history(folder / "metrics_history.jsonl", step)
    history.catch_up(job.run_id)
    if resumed_from is not None:
        again = f"; steps {step + 1} to {reached} are trained again" if reached > step else ""
        job.event(f"resumed from step {step}{again}")


def cut_history(history: Path, step: int) -> None:
    """Drop the points past a checkpoint from metrics_history.jsonl; a torn last line goes too."""
    if not history.exists():
        return
    lines = []
    for line in history.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except ValueError:
            continue
    write_whole(history, "".join(f"{line}\n" for line in lines))
