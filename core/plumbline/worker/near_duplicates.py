"""The job that looks for rows of a dataset that say nearly the same.

What it finds becomes one of the dataset's findings; every group stands in near.json in its folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from plumbline.data import rows
from plumbline.data.importing import near_duplicates
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.store import datasets as store
from plumbline.store.database import writing
from plumbline.store.records import Finding

THRESHOLD = 0.85
SHOWN = 20  # rows that the finding names


class CheckResult(TypedDict):
    """How many rows were compared, and the numbers of the first that repeat another."""

    rows: int
    groups: int
    repeated: int
    first: list[int]
    threshold: float


def start(dataset_id: int, threshold: float = THRESHOLD, token: str | None = None) -> int:
    """Queue a check of a dataset's training rows; one that waits or runs already is not queued again.

    :param threshold: how alike rows are that count as nearly the same, from 0.7 to 1
    :returns: the job's id
    :raises StudioError: when there is no such dataset, or the threshold is out of range
    """
    store.get(dataset_id)
    if not 0.7 <= threshold <= 1:
        raise StudioError("threshold", f"must be from 0.7 to 1, got {threshold:g}", "0.85 is usual.")
    with writing():
        if (job_id := queue.unfinished_check(dataset_id, threshold=threshold)) is not None:
            return job_id
        return queue.enqueue("check", None, token, dataset_id=dataset_id, threshold=threshold)


def check(job: Job) -> CheckResult:
    """Do the job. :returns: how many ``rows``, ``groups`` and ``repeated`` rows, and the ``first`` of these

    :raises StopRequested: when the user pressed Stop; an earlier finding stays then
    """
    dataset = store.get(job.dataset_id)
    threshold = job.payload.get("threshold", THRESHOLD)
    job.report("reading rows", 0.0)
    job.running()
    near = near_duplicates.near_duplicates(
        _texts(dataset["id"]), threshold, job.report, job.check_stop, total=dataset["rows"]
    )
    job.check_stop()
    repeated = sorted(number for group in near.groups for number in group[1:])
    result: CheckResult = {
        "rows": near.rows,
        "groups": len(near.groups),
        "repeated": len(repeated),
        "first": repeated[:SHOWN],
        "threshold": threshold,
    }
    _write(near_path(dataset["id"]), {"threshold": threshold, "rows": near.rows, "groups": near.groups})
    store.replace_finding(dataset["id"], "near", _finding(result))
    job.report("near-duplicates are known", 1.0)
    return result


def near_path(dataset_id: int) -> Path:
    """Where the groups of a dataset's last check are; row numbers from 1."""
    return rows.paths(dataset_id, "train")[0].with_name("near.json")


def said(result: CheckResult) -> str:
    """A check's result in a sentence."""
    count, groups = result["repeated"], result["groups"]
    if not count:
        return f"no row of {result['rows']:,} nearly repeats another"
    return (
        f"{count:,} of {result['rows']:,} rows nearly repeat another row "
        f"({groups:,} group{'s' if groups > 1 else ''})"
    )


def _texts(dataset_id: int) -> Iterator[tuple[int, str]]:
    total = len(rows.index(dataset_id, "train"))
    for number, row in enumerate(rows.at(dataset_id, "train", range(total)), start=1):
        yield number, near_duplicates.text_of(row)


def _finding(result: CheckResult) -> Finding | None:
    if not result["repeated"]:
        return None
    return {"kind": "near", "text": said(result), "part": "train", "rows": result["first"]}


def _write(path: Path, content: object) -> None:
    staged = path.with_suffix(".staged.json")
    staged.write_text(json.dumps(content), encoding="utf-8")
    staged.replace(path)
