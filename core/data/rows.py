"""Stored rows: a file of JSON lines and an index, so that any row is one seek away."""

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import orjson
import xxhash

from core.home import home

Row = dict[str, Any]
# One entry a stored row: where its line is, what it and its prompt equal, and where it came from.
INDEX = numpy.dtype(
    [("offset", "<u8"), ("row", "<u8"), ("prompt", "<u8"), ("size", "<u4"), ("line", "<u4"), ("file", "<u4")]
)
PARTS = ("train", "held_out")


def paths(dataset_id: int, part: str) -> tuple[Path, Path]:
    """The lines and the index of a part; they need not exist."""
    folder = home() / "datasets" / str(int(dataset_id))
    name = "held_out" if part == "held_out" else "train"
    return folder / f"{name}.jsonl", folder / f"{name}.npy"


def index(dataset_id: int, part: str) -> Any:
    """One entry a row (INDEX), mapped and not read; empty where there is no such part."""
    lines, path = paths(dataset_id, part)
    if not path.exists():
        if not lines.exists():
            return numpy.empty(0, INDEX)
        _index_again(lines, path)
    return numpy.load(path, mmap_mode="r")


def _index_again(lines: Path, path: Path) -> None:
    """Make the index of rows that have none, as older versions stored them."""
    entries = []
    offset = 0
    with open(lines, "rb") as file:
        for number, line in enumerate(file, start=1):
            row, prompt = (
                xxhash.xxh3_64_intdigest(line),
                xxhash.xxh3_64_intdigest(prompt_of(orjson.loads(line))),
            )
            entries.append((offset, row, prompt, len(line), number, 0))
            offset += len(line)
    staged = path.with_suffix(".staged.npy")
    numpy.save(staged, numpy.array(entries, INDEX))
    staged.rename(path)


def prompt_of(row: Row) -> bytes:
    """What the model is given before it answers; equal prompts are one question."""
    if "text" in row:
        return row["text"].encode()
    messages = row["messages"]
    if len(messages) == 2:
        return messages[0]["content"].encode()
    return "\x00".join([message["content"] for message in messages[:-1]]).encode()


def at(dataset_id: int, part: str, numbers: Iterable[int]) -> Iterator[Row]:
    """Rows by number, from 0, in the order given."""
    entries = index(dataset_id, part)
    lines, _ = paths(dataset_id, part)
    if not len(entries):
        return
    offsets, sizes = entries["offset"], entries["size"]
    with open(lines, "rb") as file:
        for number in numbers:
            file.seek(int(offsets[number]))
            yield orjson.loads(file.read(int(sizes[number])))


def page(dataset_id: int, part: str, start: int = 0, count: int | None = None) -> list[Row]:
    """Rows in file order."""
    total = len(index(dataset_id, part))
    stop = total if count is None else min(total, start + count)
    return list(at(dataset_id, part, range(max(0, start), stop)))


def search(dataset_id: int, part: str, words: str, start: int = 0, count: int = 50) -> list[int]:
    """Numbers of the first rows, from ``start``, that hold the words exactly as they stand."""
    entries = index(dataset_id, part)
    lines, _ = paths(dataset_id, part)
    # As they stand in a JSON string: with its escapes, without its quotes.
    wanted = orjson.dumps(words)[1:-1]
    if not wanted or not len(entries):
        return []
    found: list[int] = []
    offsets = entries["offset"]
    with open(lines, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = int(offsets[start]) if start < len(entries) else len(data)
        while len(found) < count and (hit := data.find(wanted, position)) >= 0:
            number = int(numpy.searchsorted(offsets, hit, side="right")) - 1
            found.append(number)
            position = int(offsets[number]) + int(entries["size"][number])
    return found
