"""Bytes to records: JSONL, JSON, CSV and Parquet, with the line each record began on.

Text stays text: no value is guessed to be a number, a date or a missing value.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StudioError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SHOWN_PROBLEMS = 8


@dataclass(frozen=True)
class Record:
    """One record of a file. ``line`` counts from 1; for Parquet it is the row number."""

    line: int
    value: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why one record cannot be used."""

    line: int
    what: str


class DataError(StudioError):
    """A file that cannot be imported, with every bad line (the first few are listed)."""

    def __init__(self, name: str, problems: list[Problem], fix: str) -> None:
        self.problems = problems
        if len(problems) == 1:
            super().__init__(f"{name} line {problems[0].line}", problems[0].what, fix)
            return
        listed = "".join(f"\nline {p.line}: {p.what}" for p in problems[:SHOWN_PROBLEMS])
        more = len(problems) - SHOWN_PROBLEMS
        tail = f"\nand {more} more" if more > 0 else ""
        super().__init__(name, f"{len(problems)} rows cannot be used:{listed}{tail}", fix)


def read(path: Path, name: str) -> tuple[list[Record], list[Problem]]:
    """All records of a file, and the lines that could not be read.

    :param name: the file's own name, which says its format and stands in messages
    :raises StudioError: when the file as a whole is unusable (empty, wrong format, not UTF-8)
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise StudioError(
            name, f"has no known format ({suffix or 'no suffix'})", f"Use one of {', '.join(SUFFIXES)}."
        )
    if path.stat().st_size == 0:
        raise StudioError(name, "is empty", "Choose a file with at least one row.")
    problems: list[Problem] = []
    if suffix == ".parquet":
        records = list(_parquet(path, name))
    else:
        text = _decode(path.read_bytes(), name)
        if suffix == ".jsonl":
            records, problems = _json_lines(text)
        elif suffix == ".json":
            records, problems = _json(text, name)
        else:
            records, problems = _csv(text, name)
    if not records and not problems:
        raise StudioError(name, "has no rows", "Choose a file with at least one row.")
    return records, problems


def _decode(data: bytes, name: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise StudioError(f"{name} line 1", "looks like UTF-16", "Save the file as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise StudioError(
            f"{name} line {line}, byte {column}",
            f"0x{data[error.start]:02x} is not UTF-8",
            "Save the file as UTF-8.",
        ) from None


def _json_lines(text: str) -> tuple[list[Record], list[Problem]]:
    records, problems = [], []
    # Not str.splitlines(): it also splits at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(Problem(number, f"is not valid JSON at column {error.colno}: {error.msg}"))
            continue
        except RecursionError:
            problems.append(Problem(number, "is nested too deeply"))
            continue
        if isinstance(value, dict):
            records.append(Record(number, value))
        else:
            problems.append(Problem(number, f"is {_kind(value)}, expected an object"))
    return records, problems


def _json(text: str, name: str) -> tuple[list[Record], list[Problem]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise StudioError(
            f"{name} line {error.lineno}",
            f"is not valid JSON at column {error.colno}: {error.msg}",
            "Mend that line; a file with one object per line should end in .jsonl.",
        ) from None
    except RecursionError:
        raise StudioError(name, "is nested too deeply", "Flatten it to a list of objects.") from None
    if not isinstance(value, list):
        raise StudioError(name, f"holds {_kind(value)}, expected a list of objects", "Wrap the rows in [ ].")
    records, problems = [], []
    for number, item in enumerate(value, start=1):
        if isinstance(item, dict):
            records.append(Record(number, item))
        else:
            problems.append(Problem(number, f"is {_kind(item)}, expected an object"))
    return records, problems


def _csv(text: str, name: str) -> tuple[list[Record], list[Problem]]:
    csv.field_size_limit(16 * 1024 * 1024)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[Record] = []
    problems: list[Problem] = []
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells
                repeated = sorted({column for column in header if header.count(column) > 1})
                if repeated:
                    raise StudioError(
                        f"{name} line 1", f"names the column {repeated[0]!r} twice", "Rename one."
                    )
            elif len(cells) != len(header):
                problems.append(Problem(line, f"has {len(cells)} cells, the header has {len(header)}"))
            else:
                records.append(Record(line, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        problems.append(Problem(start, f"is not valid CSV: {error}"))
    return records, problems


def _parquet(path: Path, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Record(number, value)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise StudioError(name, f"is not readable as Parquet ({error})"[:300], "Write it again.") from None


def _kind(value: Any) -> str:
    names = {str: "a text", int: "a number", float: "a number", list: "a list", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "an object")
