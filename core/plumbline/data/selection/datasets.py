"""Datasets of the workspace: the samples, and deletion."""

import shutil
from collections.abc import Iterator
from typing import Any

from filelock import FileLock

from plumbline.config.mapping import Mapping
from plumbline.config.schema import RunConfig
from plumbline.data import rows
from plumbline.data.importing.importer import Options, add, seen
from plumbline.data.readers.source_files import Source
from plumbline.data.selection import preference_rows
from plumbline.errors import StudioError
from plumbline.home import assets, home
from plumbline.jobs import queue
from plumbline.store import datasets as store
from plumbline.store import runs
from plumbline.store.database import writing
from plumbline.store.records import DatasetRow, RunRow


def ensure_samples() -> None:
    """Put the sample datasets that ship with the code into a workspace that has none."""
    if store.names():
        return
    with FileLock(home() / "samples.lock", mode=0o600):  # two processes may start at once
        if not store.names():
            for sources in _samples():
                add(*sources)


def samples() -> dict[str, dict[str, Any]]:
    """What is stored of each sample beside its rows, by its rows' checksum."""
    return {row["sha256"]: row for row in (seen(*sources) for sources in _samples())}


def _samples() -> Iterator[tuple[list[Source], list[Source], Options]]:
    for folder in sorted((assets() / "samples").iterdir()):
        if (folder / "train.jsonl").exists():
            train, held_out = (Source(folder / name, name) for name in ("train.jsonl", "held_out.jsonl"))
            yield [train], [held_out], Options(name=folder.name)


def remove(dataset_id: int) -> None:
    """Delete a dataset; its queued checks are stopped.

    :raises StudioError: while a run refers to it, or a check of it is being worked on
    """
    dataset = store.get(dataset_id)
    name, called = dataset["name"], store.called(dataset)
    users = [run for run in runs.listed(limit=-1) if dataset_id == run["dataset_id"] or _in_mix(called, run)]
    if users:
        listed = ", ".join(f"{run['name']} (run {run['id']})" for run in users[:5])
        raise StudioError(f"dataset {name!r}", f"is used by {listed}", "Its runs need it to be reproduced.")
    with writing():
        queue.detach(dataset_id, name)
        store.remove(dataset_id)
    # By renaming first, nobody reads a folder that is half gone.
    folder = home() / "datasets" / str(dataset_id)
    trash = home() / "staging" / f"deleted-{dataset_id}"
    trash.parent.mkdir(exist_ok=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _in_mix(called: list[str], run: RunRow) -> bool:
    """Whether a run learns from a dataset as part of a mix.

    :param called: the dataset's name and its former ones
    """
    if not any(name in run["recipe"] for name in called):
        return False
    return any(part.dataset in called for part in runs.recipe(run["id"]).data.mix)


def fitting(dataset: DatasetRow, method: str) -> str:
    """A method as it was chosen, if it learns from a dataset's rows; else the one that is made for them."""
    (row,) = rows.page(dataset["id"], "train", 0, 1)  # all have the parts that the mapping gives them
    return preference_rows.fitting(row, method)


def described(config: RunConfig) -> RunConfig:
    """A recipe that says how its dataset's columns became rows, so that it can be made again elsewhere."""
    if config.data.mix or config.data.mapping is not None:
        return config
    text = store.by_name(config.data.dataset)["mapping"]
    if not text:  # stored by an earlier version
        return config
    mapping = Mapping.model_validate_json(text)
    return config.model_copy(update={"data": config.data.model_copy(update={"mapping": mapping})})
