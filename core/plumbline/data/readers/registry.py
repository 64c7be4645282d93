"""Files to records, whatever their format: the one place that knows which reader reads what."""

from collections.abc import Iterator
from pathlib import Path

from plumbline.data.errors import Problem
from plumbline.data.readers import arrow, csv_table, encoding, json_document, json_lines, plain_text
from plumbline.data.readers.json_lines import Record
from plumbline.data.readers.limits import CHUNK
from plumbline.data.readers.source_files import File


def records(file: File) -> Iterator[Record | Problem]:
    """Every record of a file in order, and why a record cannot be read.

    :raises StudioError: when the file as a whole is unusable
    """
    try:
        yield from _reader(file)
    except UnicodeDecodeError:
        encoding.refuse_other(file.path, file.name)
        raise


def _reader(file: File) -> Iterator[Record | Problem]:
    if file.lines:
        return _lines(file)
    if file.kind in ("jsonl", "json"):
        return json_document.parse_document(file.path, file.name)
    if file.kind == "csv":
        return csv_table.parse_csv(file)
    if file.kind == "parquet":
        return arrow.parse_parquet(file)
    if file.kind == "arrow":
        return arrow.parse_arrow(file)
    if file.kind == "yaml":
        return plain_text.parse_yaml(file)
    return plain_text.parse_text(file)


def _lines(file: File) -> Iterator[Record | Problem]:
    for first, block in line_blocks(file):
        yield from json_lines.parse_lines(block, first)


def line_blocks(file: File) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, with the number of each one's first line."""
    first = 1
    for begin, end in json_lines.line_ranges(file.path, file.name, CHUNK):
        block = read_range(file.path, begin, end)
        yield first, block
        first += lines_in(block)


def read_range(path: Path, begin: int, end: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(begin)
        block = file.read(end - begin)
    return block.removeprefix(b"\xef\xbb\xbf") if begin == 0 else block


def lines_in(block: bytes) -> int:
    """Line ends in a block, whichever of the three kinds."""
    if b"\r" in block:
        return block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
    return block.count(b"\n")
