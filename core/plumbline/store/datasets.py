"""Dataset rows in the store, and saved mappings. The rows themselves are files in a folder."""

import itertools
import json
import re
import time
import unicodedata
from pathlib import Path
from typing import Any, cast

from sqlite_utils.db import NotFoundError

from plumbline.errors import StudioError
from plumbline.home import PRIVATE, folder, numbers_in
from plumbline.near_names import question
from plumbline.program import where
from plumbline.store import sidecars
from plumbline.store.database import database, insert, writing
from plumbline.store.records import DatasetRow, Finding

LONGEST_NAME = 60  # letters


def add(name: str, values: dict[str, Any], rows: Path) -> int:
    """Store a dataset whose rows stand ready in a folder, which becomes its own. :returns: its id

    :param name: as wanted; made free and safe to show, never used as a path
    """
    with writing() as db:
        row = {**values, "name": free_name(name), "created_at": time.time()}
        known = db.execute("select coalesce(max(id), 0) from datasets").fetchone()[0]
        # A folder that no row knows, as after a crash or beside an older database, is never written to.
        dataset_id = insert("datasets", {"id": 1 + max(known, *numbers_in("datasets"), 0), **row})
        target = folder("datasets") / str(dataset_id)
        target.mkdir(mode=PRIVATE)
        for file in rows.iterdir():
            file.rename(target / file.name)
        sidecars.note("dataset", dataset_id)
    return dataset_id


def rename(dataset_id: int, new_name: str) -> str:
    """Call a dataset by another name; recipes and runs that call it by an earlier one still find it.

    :param new_name: made safe to show, as at an import
    :returns: the new name
    :raises StudioError: when it is empty or too long, or another dataset is or was called so
    """
    refuse_long_name("dataset", new_name)
    with writing() as db:
        dataset = get(dataset_id)
        old, new = dataset["name"], _clean(new_name)
        if not new:
            raise StudioError(f"dataset {old!r}", "has no new name yet", "Write letters or digits.")
        for other in listed():
            if other["id"] != dataset_id and new in called(other):
                which = "another is" if other["name"] == new else f"{other['name']!r} was"
                raise StudioError(
                    f"dataset {old!r}", f"cannot be {new!r}: {which} called so", "Choose another."
                )
        former = [name for name in called(dataset) if name != new]
        origin = json.loads(dataset["origin"] or "{}") | {"former_names": former}
        db.table("datasets").update(dataset_id, {"name": new, "origin": json.dumps(origin)})
        sidecars.note("dataset", dataset_id)
    return new


def called(dataset: DatasetRow) -> list[str]:
    """Its name, and those it had before: recipes may use any of them."""
    return [dataset["name"], *json.loads(dataset["origin"] or "{}").get("former_names", [])]


def refuse_long_name(what: str, name: str) -> None:
    """:param what: that is to have the name :raises StudioError: when the name is too long for a list"""
    if (length := len(name.strip())) > LONGEST_NAME:
        raise StudioError(
            f"{what} name",
            f"has {length:,} letters, and at most {LONGEST_NAME} are shown",
            f"Choose a name of {LONGEST_NAME} letters or fewer.",
        )


def _clean(name: str) -> str:
    """A name that is safe to show, in a command too; empty when nothing is left."""
    return re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name)).strip("-.")


def free_name(preferred: str) -> str:
    """A readable name that no dataset has, or had: an old recipe must not find another dataset."""
    clean = _clean(preferred)[:LONGEST_NAME] or "dataset"
    taken = {name for dataset in listed() for name in called(dataset)}
    if clean not in taken:
        return clean
    return next(f"{clean}-{n}" for n in itertools.count(2) if f"{clean}-{n}" not in taken)


def exists(dataset_id: int) -> bool:
    return database().execute("select 1 from datasets where id = ?", [dataset_id]).fetchone() is not None


def get(dataset_id: int) -> DatasetRow:
    """:raises StudioError: when there is no such dataset"""
    try:
        return cast(DatasetRow, database().table("datasets").get(dataset_id))
    except NotFoundError:
        fix = f"{where('Data', 'data')} lists all datasets."
        raise StudioError(f"dataset {dataset_id}", "does not exist", fix) from None


def by_name(name: str) -> DatasetRow:
    """The dataset that is, or was, called so.

    :raises StudioError: when there is none, with the known ones
    """
    for row in database().table("datasets").rows_where("name = ?", [name]):
        return cast(DatasetRow, row)
    for dataset in listed():
        if name in called(dataset):
            return dataset
    known = f"In this workspace: {', '.join(names()) or 'none yet'}."
    raise StudioError(f"dataset {name!r}", "does not exist", f"{question(name, names())} {known}".strip())


def current(name: Any) -> Any:
    """What a dataset is called now; anything else is given back as it is."""
    return next((row["name"] for row in listed() if name in called(row)), name)


def names() -> list[str]:
    return [row["name"] for row in listed()]


def listed() -> list[DatasetRow]:
    return cast(list[DatasetRow], list(database().table("datasets").rows_where(order_by="id")))


def findings(dataset: DatasetRow) -> list[Finding]:
    """What its checks found: ``kind``, ``text``, ``part`` and the first ``rows``."""
    return json.loads(dataset["findings"] or "[]")


def set_findings(dataset_id: int, all_findings: list[Finding]) -> None:
    database().table("datasets").update(dataset_id, {"findings": json.dumps(all_findings)})
    sidecars.note("dataset", dataset_id)


def replace_finding(dataset_id: int, kind: str, finding: Finding | None) -> None:
    """Put a finding in the place of earlier ones of its kind; None only takes those away."""
    with writing():
        others = [each for each in findings(get(dataset_id)) if each["kind"] != kind]
        set_findings(dataset_id, others + ([finding] if finding else []))


def left_out(dataset: DatasetRow) -> int:
    """How many records of its files could not be rows."""
    return int(dataset["left_out"] or 0)


def columns(dataset: DatasetRow) -> list[str]:
    """Columns kept beside its rows, for splits, order and scores."""
    return json.loads(dataset["columns"] or "[]")


def verdict(dataset: DatasetRow) -> str:
    """Its state in words."""
    count = len(findings(dataset))
    return "ready" if not count else f"ready, {count} warning{'s' if count > 1 else ''}"


def remove(dataset_id: int) -> None:
    database().table("datasets").delete(dataset_id)


def mapping_name(wanted: str) -> str:
    """:raises StudioError: when it is empty or too long"""
    if not wanted.strip():
        raise StudioError("mapping", "has no name yet", "Write one.")
    refuse_long_name("mapping", wanted)
    return wanted.strip()


def save_mapping(name: str, mapping: str) -> None:
    """Keep a mapping (as JSON) under a `mapping_name`; an older one of that name is replaced."""
    row = {"name": name, "mapping": mapping, "created_at": time.time()}
    database().table("mappings").insert(row, replace=True)
    sidecars.note("mappings")


def mappings() -> dict[str, str]:
    """Saved mappings by name, as JSON."""
    return {row["name"]: row["mapping"] for row in database().table("mappings").rows_where(order_by="name")}
