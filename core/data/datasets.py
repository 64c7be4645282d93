"""Datasets of the workspace: import a file, list rows, split into train and held-out.

A dataset is one line in SQLite and a folder with train.jsonl and, where the user brought one,
held_out.jsonl. An import either stores everything or nothing.
"""

import hashlib
import itertools
import json
import random
import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.read import DataError, read
from core.data.shapes import convert
from core.errors import StudioError
from core.home import assets, dataset_folder, home
from core.store import datasets as store
from core.store.database import database

Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """The rows that are trained on and the rows that are only ever evaluated."""

    train: list[Row]
    held_out: list[Row]


def import_file(
    path: Path,
    name: str,
    held_out: Path | None = None,
    held_out_name: str | None = None,
    leave_out: bool = False,
    dataset_name: str | None = None,
) -> int:
    """Check a file and store it as a dataset.

    :param name: the file's own name (the path may be an upload's temporary one)
    :param held_out: a second file whose rows are held out from training
    :param leave_out: store the good rows although some are bad, and remember how many were not
    :returns: the new dataset's id
    :raises StudioError: with file, line and field of everything wrong; nothing is stored then
    """
    shape, rows, left_out = _checked(path, name, leave_out)
    held_rows: list[Row] = []
    if held_out is not None:
        held_name = held_out_name or held_out.name
        held_shape, held_rows, held_left_out = _checked(held_out, held_name, leave_out)
        left_out += held_left_out
        if held_shape != shape:
            raise StudioError(held_name, f"has the shape {held_shape}, {name} has {shape}", "Use one shape.")
    train_text, held_text = _lines(rows), _lines(held_rows)
    dataset_id = store.add(
        {
            "name": _free_name(dataset_name or Path(name).stem),
            "shape": shape,
            "rows": len(rows),
            "held_out_rows": len(held_rows),
            "sha256": hashlib.sha256((train_text + "\n" + held_text).encode()).hexdigest(),
            "source": name,
            "left_out": str(left_out),
        }
    )
    try:
        target = dataset_folder(dataset_id)
        (target / "train.jsonl").write_text(train_text, encoding="utf-8")
        if held_rows:
            (target / "held_out.jsonl").write_text(held_text, encoding="utf-8")
    except OSError:
        remove(dataset_id)
        raise
    return dataset_id


def _checked(path: Path, name: str, leave_out: bool) -> tuple[str, list[Row], int]:
    """Shape, rows and the number of rows left out. :raises StudioError: unless all is well"""
    records, problems = read(path, name)
    shape, rows = "", list[Row]()
    if records:
        shape, rows, more = convert(records, name)
        problems = sorted([*problems, *more], key=lambda problem: problem.line)
    if problems and (not leave_out or not rows):
        fix = "Mend the file" + (", or choose to leave bad rows out." if rows else ".")
        raise DataError(name, problems, fix)
    return shape, rows, len(problems)


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _free_name(wanted: str) -> str:
    """A readable name that no dataset has yet; never used as a path."""
    clean = unicodedata.normalize("NFC", wanted)
    clean = re.sub(r"[^\w.-]+", "-", clean).strip("-.")[:60] or "dataset"
    taken = set(store.names())
    if clean not in taken:
        return clean
    return next(f"{clean}-{n}" for n in itertools.count(2) if f"{clean}-{n}" not in taken)


def remove(dataset_id: int) -> None:
    """Delete a dataset. :raises StudioError: while a run refers to it"""
    name = store.get(dataset_id)["name"]
    users = list(database().table("runs").rows_where("dataset_id = ?", [dataset_id]))
    if users:
        listed = ", ".join(f"{run['name']} (run {run['id']})" for run in users[:5])
        raise StudioError(f"dataset {name!r}", f"is used by {listed}", "Its runs need it to be reproduced.")
    store.remove(dataset_id)
    shutil.rmtree(home() / "datasets" / str(dataset_id), ignore_errors=True)


def ensure_samples() -> None:
    """Put the sample datasets that ship with the code into a workspace that has none."""
    if store.names():
        return
    for folder in sorted((assets() / "samples").iterdir()):
        if (folder / "train.jsonl").exists():
            import_file(
                folder / "train.jsonl",
                "train.jsonl",
                folder / "held_out.jsonl",
                dataset_name=folder.name,
            )


def rows(dataset_id: int, part: str = "train", start: int = 0, count: int | None = None) -> list[Row]:
    """Stored rows in file order.

    :param part: ``train`` or ``held_out``
    """
    path = dataset_folder(dataset_id) / ("held_out.jsonl" if part == "held_out" else "train.jsonl")
    if not path.exists():
        return []
    stop = None if count is None else start + count
    with open(path, encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in itertools.islice(file, start, stop)]


def split(dataset_id: int, held_out_share: float, seed: int, max_rows: int | None = None) -> Split:
    """Train and held-out rows: the user's own held-out file, else a seeded random share.

    :raises StudioError: when there are too few rows to hold any out
    """
    train = rows(dataset_id)
    held_out = rows(dataset_id, "held_out")
    if not held_out:
        if len(train) < 2:
            raise StudioError(
                "data.held_out_share", f"would take all {len(train)} rows", "Add rows or a held-out file."
            )
        count = min(len(train) - 1, max(1, round(len(train) * held_out_share)))
        chosen = set(random.Random(seed).sample(range(len(train)), count))
        held_out = [train[i] for i in sorted(chosen)]
        train = [row for i, row in enumerate(train) if i not in chosen]
    if max_rows is not None:
        train = train[:max_rows]
    return Split(train, held_out)
