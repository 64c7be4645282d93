"""Stored rows: a file of JSON lines and an index, so that any row is one seek away."""

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, AnyStr

import numpy
import orjson
import xxhash

from plumbline.home import home

# A call as chat templates expect it: ``type``, ``id`` and ``function``, with ``name`` and ``arguments``.
ToolCall = dict[str, Any]
# A turn: ``role``, ``content``, ``tool_calls``, ``reasoning_content``; ``learn``: False where only shown.
Message = dict[str, Any]
# A conversation (``messages``, ``tools``, ``rejected``, ``asked``, ``desirable``) or a ``text``; with each
# ``label``, ``group`` and other ``columns``. ``noted`` is what the import tells of it, and is not stored.
Row = dict[str, Any]
# One entry a stored row: where its line is, what it and its prompt equal, and where it came from.
INDEX = numpy.dtype(
    [("offset", "<u8"), ("row", "<u8"), ("prompt", "<u8"), ("size", "<u4"), ("line", "<u4"), ("file", "<u4")]
)
PARTS = ("train", "held_out")
# What is written around texts, and cannot be in one: a quote would stand behind a backslash there.
AROUND = (
    *(
        f'"role":{space}"{role}",{space}"content":'.encode()
        for role in ("user", "assistant", "system", "tool")
        for space in ("", " ")
    ),
    *(f'"{name}":'.encode() for name in ("messages", "rejected", "role", "content", "text", "label")),
    *(f'"{name}":'.encode() for name in ("group", "columns", "desirable", "learn", "tools")),
)
BLOCK = 4 * 1024**2  # bytes that a search looks through at once


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
    """Numbers of the first rows, from ``start``, whose texts hold the words, in upper or lower case."""
    entries = index(dataset_id, part)
    try:
        folded = words.casefold().encode()
    except UnicodeEncodeError:  # half a character, which no stored row holds
        return []
    if not folded or start >= len(entries):
        return []
    numbers: list[int] = []
    lines, _ = paths(dataset_id, part)
    with open(lines, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number in _candidates(entries, data, folded.decode(), start):
            offset, size = int(entries["offset"][number]), int(entries["size"][number])
            if _holds(orjson.loads(data[offset : offset + size]), folded.decode()):
                numbers.append(number)
                if len(numbers) == count:
                    break
    return numbers


def _candidates(entries: Any, data: mmap.mmap, folded: str, start: int) -> Iterator[int]:
    """Numbers of the rows whose line holds the words anywhere, in their texts or around them.

    Words of ASCII are looked for among bytes, where only ASCII has a case; all others in the text.
    """
    # As they stand in a JSON string: with its escapes, without its quotes.
    escaped = orjson.dumps(folded)[1:-1].lower()
    while start < len(entries):
        begin = int(entries["offset"][start])
        stop = max(start + 1, int(numpy.searchsorted(entries["offset"], begin + BLOCK)))
        last = entries[stop - 1]
        block = data[begin : int(last["offset"]) + int(last["size"])]
        if folded.isascii():
            yield from _lines_with(_bare(block.lower(), escaped), escaped, b"\n", start)
        else:
            yield from _lines_with(block.decode().casefold(), escaped.decode(), "\n", start)
        start = stop


def _bare(block: bytes, escaped: bytes) -> bytes:
    """Lines without what is written around texts, where the words would be found in every row."""
    for written in AROUND:
        if escaped in written:
            block = block.replace(written, b"")
    return block


def _lines_with(block: AnyStr, needle: AnyStr, newline: AnyStr, first: int) -> Iterator[int]:
    """Numbers of the lines that hold the words, where ``first`` is the number of the block's first."""
    hit, counted = block.find(needle), 0
    while hit >= 0:
        first += block.count(newline, counted, hit)
        yield first
        end = block.find(newline, hit)
        if end < 0:
            return
        counted, first = end + 1, first + 1
        hit = block.find(needle, counted)


def _holds(row: Row, folded: str) -> bool:
    """Whether one of a row's texts holds folded words."""
    turns = (turn.get("content") for part in ("messages", "rejected") for turn in row.get(part) or ())
    others = (row.get(name) for name in ("text", "label", "group"))
    values = (row.get("columns") or {}).values()
    texts = (str(value) for value in (*turns, *others, *values) if value is not None)
    return any(folded in text.casefold() for text in texts)
