"""Dataset rows in the store. The rows themselves are files in the dataset's folder."""

import time
from typing import Any

from sqlite_utils.db import NotFoundError

from core.errors import StudioError
from core.store.database import database, insert


def add(values: dict[str, Any]) -> int:
    return insert("datasets", {**values, "created_at": time.time()})


def get(dataset_id: int) -> dict[str, Any]:
    """:raises StudioError: when there is no such dataset"""
    try:
        return database().table("datasets").get(dataset_id)
    except NotFoundError:
        raise StudioError(f"dataset {dataset_id}", "does not exist", "Add it on the Data tab.") from None


def by_name(name: str) -> dict[str, Any]:
    """:raises StudioError: when there is no dataset of this name, with the known ones"""
    for row in database().table("datasets").rows_where("name = ?", [name]):
        return row
    known = ", ".join(row["name"] for row in listed()) or "none yet"
    raise StudioError(f"dataset {name!r}", "does not exist", f"In this workspace: {known}.")


def names() -> list[str]:
    return [row["name"] for row in listed()]


def listed() -> list[dict[str, Any]]:
    return list(database().table("datasets").rows_where(order_by="id"))


def remove(dataset_id: int) -> None:
    database().table("datasets").delete(dataset_id)
