"""Datasets as files that travel: JSON lines that, imported again, become the very same rows.

Rows are written as records with a mapping beside them. Columns kept beside a row stand beside it in its
record too, so what plays a part in a row is renamed where a column has that name already.
"""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from plumbline.config.mapping import Mapping
from plumbline.config.schema import RunConfig
from plumbline.data import rows
from plumbline.data.rows import Row
from plumbline.data.selection import preference_rows
from plumbline.home import assets
from plumbline.store import datasets as store
from plumbline.store.records import DatasetRow

LONGEST = 60  # characters of a dataset's name


@dataclass(frozen=True)
class Parcel:
    """One dataset on its way to another workspace.

    :param name: what it is called there
    :param stem: its files' name, without what tells them apart
    """

    dataset: DatasetRow
    name: str
    stem: str

    @property
    def files(self) -> dict[str, str]:
        """Its files of rows by part, relative to the job's folder."""
        paths = {"train": f"data/{self.stem}.jsonl"}
        if self.dataset["held_out_rows"]:
            paths["held_out"] = f"data/{self.stem}.held_out.jsonl"
        return paths

    @property
    def mapping(self) -> str:
        return f"data/{self.stem}.mapping.yaml"

    @property
    def words(self) -> list[str]:
        """What imports it: a verb and what it is given."""
        held_out = ["--held-out", self.files["held_out"]] if "held_out" in self.files else []
        named = ["--name", self.name, "--mapping", self.mapping]
        return ["data", "add", self.files["train"], *held_out, *named]


def parcels(config: RunConfig) -> list[Parcel]:
    """The datasets of a recipe, under names that a new workspace has free.

    :raises StudioError: when there is no such dataset
    """
    taken = {path.name for path in (assets() / "samples").iterdir()}
    bundled = []
    for number, part in enumerate(config.data.parts, start=1):
        dataset = store.by_name(part.dataset)
        numbered = (f"{part.dataset[:50]}-{count}" for count in itertools.count(number))
        candidates = itertools.chain([part.dataset] if len(part.dataset) <= LONGEST else [], numbered)
        name = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(name)
        bundled.append(Parcel(dataset, name, f"{number}"))
    return bundled


def renamed(config: RunConfig, bundled: list[Parcel]) -> RunConfig:
    """A recipe that learns from the datasets as they are called where they arrive."""
    # By what the recipe calls them, which may be a former name.
    names = {part.dataset: parcel.name for part, parcel in zip(config.data.parts, bundled, strict=True)}
    mix = tuple(part.model_copy(update={"dataset": names[part.dataset]}) for part in config.data.mix)
    dataset = names.get(config.data.dataset, config.data.dataset)
    data = config.data.model_copy(update={"dataset": dataset, "mix": mix, "mapping": None})
    best = names.get(config.training.best_metric, config.training.best_metric)
    training = config.training.model_copy(update={"best_metric": best})
    return config.model_copy(update={"data": data, "training": training})


def write(parcel: Parcel, folder: Path) -> None:
    """Write a dataset's files under a job's folder."""
    parts, columns = _seen(parcel)
    keys = _keys(parts, columns)
    (folder / "data").mkdir(exist_ok=True)
    mapping = {name: value for name, value in _mapping(parts, keys) if value}
    (folder / parcel.mapping).write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    for part, name in parcel.files.items():
        lines, _ = rows.paths(parcel.dataset["id"], part)
        if parts in ({"messages"}, {"text"}):  # records already
            shutil.copyfile(lines, folder / name)
            continue
        with open(lines, "rb") as source, open(folder / name, "wb") as target:
            for line in source:
                record = _record(orjson.loads(line), keys)
                target.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def _seen(parcel: Parcel) -> tuple[set[str], set[str]]:
    """What a dataset's rows have, and the names of the columns beside them."""
    parts: set[str] = set()
    columns: set[str] = set()
    for part in parcel.files:
        lines, _ = rows.paths(parcel.dataset["id"], part)
        with open(lines, "rb") as file:
            for line in file:
                row = orjson.loads(line)
                parts |= row.keys()
                columns |= row.get("columns", {}).keys()
    return parts, columns


def _keys(parts: set[str], columns: set[str]) -> dict[str, str]:
    """What each part of a row is called in a record."""
    keys = {}
    for part in sorted(parts | {"prompt", "chosen"}):
        key = part
        while key in columns:
            key += "_"
        keys[part] = key
        columns = columns | {key}
    return keys


def _mapping(parts: set[str], keys: dict[str, str]) -> Mapping:
    def given(*names: str) -> dict[str, Any]:
        return {name: keys[name] for name in names if name in parts}

    if "text" in parts:
        return Mapping(kind="text", **given("text", "label", "group"))
    if "rejected" in parts:
        asked: dict[str, Any] = {"prompt": keys["prompt"]} if "tools" in parts else {}
        return Mapping(
            kind="preference", chosen=keys["chosen"], **asked, **given("rejected", "label", "group")
        )
    beside = given("tools", "desirable", "label", "group")
    return Mapping(kind="conversation", turns=keys["messages"], **beside)


def _record(row: Row, keys: dict[str, str]) -> Row:
    """A row as a record that the mapping makes the same row of."""
    if "rejected" in row:
        # Both sides whole: what they share is found to be the prompt again.
        better, worse = preference_rows.both(row)
        record: Row = {keys["chosen"]: better["messages"], keys["rejected"]: worse["messages"]}
        if "tools" in row:
            record[keys["prompt"]] = {"messages": better["messages"][:1], "tools": row["tools"]}
    else:
        named = ("messages", "text", "tools", "desirable")
        record = {keys[name]: row[name] for name in named if name in row}
    record |= {keys[name]: row[name] for name in ("label", "group") if name in row}
    return record | row.get("columns", {})
