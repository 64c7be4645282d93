"""CSV, TSV, Parquet and Arrow to records. Text stays text: ``007`` and ``NA`` are what they say."""

import csv
import json
import re
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from core.data.errors import Problem
from core.data.files import File
from core.data.jsonread import Record
from core.data.limits import MAX_COLUMNS, MAX_LINE
from core.errors import StudioError

MAX_FOOTER = 64 * 1024**2
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SNIFFED = 256 * 1024
_NUL_IS_READ = sys.version_info >= (3, 11)


def parse_csv(file: File) -> Iterator[Record | Problem]:
    """Every line of a table as a record; quoted cells may hold line breaks.

    :raises StudioError: at a header that cannot be used
    """
    csv.field_size_limit(MAX_LINE)
    delimiter, header = dialect(file)
    with open(file.path, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(_lines(text, file.name), delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "expected after" not in str(error):
                    raise _unclosed(file.name, line, error) from None
                yield Problem(line, f"is not valid CSV: {error}")
                continue
            if not cells:
                continue
            if not header:
                header = _header(cells, file.name)
            elif len(cells) != len(header):
                count = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
                yield Problem(line, f"has {count}, the header has {len(header)}")
            else:
                yield Record(line, dict(zip(header, cells, strict=True)))


def _unclosed(name: str, line: int, error: csv.Error) -> StudioError:
    """A quote that takes in the rest of the file: no row after it can be told from its text."""
    if "end of data" in str(error) or "limit" in str(error):
        what = "opens a quote that is never closed"
        return StudioError(f"{name} line {line}", what, "Close it, or double the quotes inside a cell.")
    return StudioError(f"{name} line {line}", f"is not valid CSV: {error}", "Mend that line.")


def _lines(text: TextIO, name: str) -> Iterator[str]:
    """Lines as they are. :raises StudioError: at one longer than MAX_LINE"""
    for number, line in enumerate(iter(partial(text.readline, MAX_LINE + 1), ""), start=1):
        if len(line) > MAX_LINE:
            what = f"is longer than {MAX_LINE // 1024**2} MB"
            raise StudioError(f"{name} line {number}", what, "Break it into rows.")
        # Before Python 3.11 csv refuses a NUL.
        yield line if _NUL_IS_READ or "\x00" not in line else line.replace("\x00", "\ufffd")


def dialect(file: File) -> tuple[str, list[str]]:
    """The delimiter, and the columns' names where the file itself does not name them.

    :returns: names ``column 1``, ... for a table without a header, else an empty list
    """
    with open(file.path, encoding="utf-8-sig", newline="") as text:
        sample = text.read(_SNIFFED)
    delimiter = file.reading.delimiter or _delimiter(sample, file.name)
    rows = _first_rows(sample, delimiter)
    named = file.reading.header if file.reading.header is not None else _names_columns(rows)
    if named or not rows:
        return delimiter, []
    return delimiter, [f"column {number}" for number in range(1, len(rows[0]) + 1)]


def _first_rows(sample: str, delimiter: str, count: int = 50) -> list[list[str]]:
    """The first rows as far as they can be read; what is wrong is found when all is read."""
    rows: list[list[str]] = []
    reader = csv.reader(sample.splitlines(keepends=True), delimiter=delimiter)
    try:
        for cells in reader:
            if cells:
                rows.append(cells)
            if len(rows) == count:
                break
    except csv.Error:
        pass
    # The sample may end in the middle of a row.
    return rows[:-1] if len(rows) < count and len(sample) == _SNIFFED else rows


def _delimiter(sample: str, name: str) -> str:
    """The delimiter that splits the first rows into the same number of cells, more than one."""
    best, score = "\t" if name.lower().endswith((".tsv", ".tsv.gz")) else ",", 0.0
    for delimiter in DELIMITERS:
        widths = [len(row) for row in _first_rows(sample, delimiter)]
        if not widths or widths[0] < 2:
            continue
        same = sum(width == widths[0] for width in widths) / len(widths)
        if same > score + (0.2 if delimiter in ";|" else 0.0):
            best, score = delimiter, same
    return best


_NAME = re.compile(r"[^\W\d][\w .:/()#-]{0,63}")


def _names_columns(rows: list[list[str]]) -> bool:
    """Whether the first row reads like names: short, distinct, not found again below."""
    first = [cell.strip() for cell in rows[0]] if rows else []
    named = [cell for cell in first if cell]
    if not named or first.count("") > 1:
        return False
    if not all(_NAME.fullmatch(cell) and len(cell.split()) <= 5 for cell in named):
        return False
    below = [{row[column].strip() for row in rows[1:] if len(row) > column} for column in range(len(first))]
    return not any(cell in values for cell, values in zip(first, below, strict=True) if cell)


def _header(cells: list[str], name: str) -> list[str]:
    if len(cells) > MAX_COLUMNS:
        raise StudioError(
            f"{name} line 1", f"has {len(cells):,} columns, the limit is {MAX_COLUMNS}", "Leave some out."
        )
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    repeated = sorted({column for column in names if names.count(column) > 1})
    if repeated:
        raise StudioError(f"{name} line 1", f"names the column {repeated[0]!r} twice", "Rename one.")
    return names


def parse_parquet(file: File) -> Iterator[Record]:
    """:raises StudioError: when it is damaged, encrypted, too wide, or holds no text"""
    import pyarrow.parquet

    _check_footer(file.path, file.name)
    with _readable(file.name, "Parquet"):
        table = pyarrow.parquet.ParquetFile(file.path)
        clean = _cleaner(table.schema_arrow, file.name)
        number = 0
        for batch in table.iter_batches(batch_size=2048):
            for value in batch.to_pylist():
                number += 1
                yield Record(number, clean(value))


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
        number = 0
        for batch in batches:
            for start in range(0, batch.num_rows, 2048):
                for value in batch.slice(start, 2048).to_pylist():
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


def _cleaner(schema: Any, name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
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

    def clean(record: dict[str, Any]) -> dict[str, Any]:
        for column in nested:
            record[column] = _without_nulls(record[column])
        for column, names in classes.items():
            record[column] = _named(record[column], names)
        return record

    return clean


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
    except (KeyError, ValueError, TypeError):
        return {}
    found = {}
    for column, feature in features.items():
        feature = feature[0] if isinstance(feature, list) and feature else feature
        for part in (feature, feature.get("feature")) if isinstance(feature, dict) else ():
            if isinstance(part, dict) and part.get("_type") == "ClassLabel" and "names" in part:
                found[column] = part["names"]
    return found


def _named(value: Any, names: list[str]) -> Any:
    if type(value) is list:
        return [_named(part, names) for part in value]
    return names[value] if type(value) is int and 0 <= value < len(names) else value
