"""Parquet and Arrow to records, a few rows at a time, whatever the size of a row group."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plumbline.data.readers.json_lines import Record
from plumbline.data.readers.limits import MAX_COLUMNS, MAX_RATIO, max_bytes
from plumbline.data.readers.source_files import File
from plumbline.errors import StudioError

MAX_FOOTER = 64 * 1024**2
SLICE = 64  # rows at once: enough for speed, few enough for rows of a megabyte
Clean = Callable[[dict[str, Any]], dict[str, Any]]


def parse_parquet(file: File) -> Iterator[Record]:
    """:raises StudioError: when it is damaged, encrypted, too wide, or holds no text"""
    import pyarrow.parquet

    _check_footer(file.path, file.name)
    with _readable(file.name, "Parquet"):
        # Streamed: by itself it would hold whole row groups, which may be the whole file.
        table = pyarrow.parquet.ParquetFile(file.path, buffer_size=1024**2, pre_buffer=False)
        clean = _cleaner(table.schema_arrow, file.name)
        yield from _rows(table.iter_batches(batch_size=SLICE), clean, file)


def parse_arrow(file: File) -> Iterator[Record]:
    """An Arrow file or stream. :raises StudioError: as for Parquet"""
    import pyarrow
    import pyarrow.ipc

    with _readable(file.name, "Arrow"), pyarrow.memory_map(str(file.path)) as source:
        with open(file.path, "rb") as head:
            whole = head.read(6) == b"ARROW1"
        reader = pyarrow.ipc.open_file(source) if whole else pyarrow.ipc.open_stream(source)
        clean = _cleaner(reader.schema, file.name)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader
        yield from _rows(batches, clean, file)


def types(file: File) -> dict[str, str]:
    """The columns' types as Arrow names them."""
    import pyarrow.ipc
    import pyarrow.parquet

    if file.kind == "parquet":
        schema = pyarrow.parquet.read_schema(file.path)
    else:
        with pyarrow.memory_map(str(file.path)) as source, open(file.path, "rb") as head:
            whole = head.read(6) == b"ARROW1"
            schema = (pyarrow.ipc.open_file if whole else pyarrow.ipc.open_stream)(source).schema
    return {field.name: str(field.type) for field in schema}


def _rows(batches: Iterator[Any], clean: Clean, file: File) -> Iterator[Record]:
    """The rows of all batches, a few at a time.

    :raises StudioError: when they unpack to far more than text does
    """
    size = file.path.stat().st_size
    limit = min(max_bytes(), max(size * MAX_RATIO, 16 * 1024**2))
    number = unpacked = 0
    for batch in batches:
        for start in range(0, batch.num_rows, SLICE):
            some = batch.slice(start, SLICE)
            unpacked += some.nbytes
            if unpacked > limit:
                what = f"unpacks to more than {limit:,} bytes from {size:,}"
                raise StudioError(file.name, what, "Save it as JSONL if you trust it.")
            for value in some.to_pylist():
                number += 1
                yield Record(number, clean(value))


class _readable:
    """Turns what pyarrow raises into a message."""

    def __init__(self, name: str, format: str) -> None:
        self.name, self.format = name, format

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyarrow

        if isinstance(error, (pyarrow.ArrowException, OSError, ValueError)) and not isinstance(
            error, StudioError
        ):
            first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise StudioError(
                self.name, f"is not readable as {self.format} ({first})", "Write it again."
            ) from None


def _check_footer(path: Path, name: str) -> None:
    """Look at the size of the metadata before anything parses it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if tail[4:] == b"PARE":
        raise StudioError(name, "is encrypted Parquet", "Save it without encryption.")
    footer = struct.unpack("<I", tail[:4])[0] if tail[4:] == b"PAR1" else size
    if footer > size - 12:
        raise StudioError(name, "is not whole Parquet (its end is missing)", "Copy or write it again.")
    if footer > MAX_FOOTER:
        raise StudioError(name, f"has {footer:,} bytes of metadata", "Write it again with fewer row groups.")


def _cleaner(schema: Any, name: str) -> Clean:
    """What gives a record of Arrow the values it had: names for classes, no keys that it did not have.

    :raises StudioError: when there are too many columns
    """
    import pyarrow

    if len(schema.names) > MAX_COLUMNS:
        raise StudioError(
            name, f"has {len(schema.names):,} columns, the limit is {MAX_COLUMNS}", "Leave some out."
        )
    classes = _class_names(schema)
    nested = [field.name for field in schema if pyarrow.types.is_nested(field.type)]
    types = pyarrow.types
    binary = [
        field.name for field in schema if types.is_binary(field.type) or types.is_large_binary(field.type)
    ]

    def clean(record: dict[str, Any]) -> dict[str, Any]:
        for column in nested:
            record[column] = _without_nulls(record[column])
        for column in binary:
            record[column] = _text(record[column])
        for column, names in classes.items():
            record[column] = _named(record[column], names)
        return record

    return clean


def _text(value: Any) -> Any:
    """Bytes as the text that they are; as they stand when they are none."""
    try:
        return value.decode() if type(value) is bytes else value
    except UnicodeDecodeError:
        return value


def _without_nulls(value: Any) -> Any:
    """Arrow gives every object of a list all keys that any of them has; those it did not have are null."""
    if type(value) is list:
        return [_without_nulls(part) for part in value]
    if type(value) is dict:
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of labels that the Hub's datasets store as numbers, or as lists of numbers, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    names_by_column = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        feature = feature[0] if isinstance(feature, list) and feature else feature
        for part in (feature, feature.get("feature")) if isinstance(feature, dict) else ():
            names = (
                part.get("names") if isinstance(part, dict) and part.get("_type") == "ClassLabel" else None
            )
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                names_by_column[column] = names
    return names_by_column


def _named(value: Any, names: list[str]) -> Any:
    if type(value) is list:
        return [_named(part, names) for part in value]
    return names[value] if type(value) is int and 0 <= value < len(names) else value
