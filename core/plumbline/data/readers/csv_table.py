"""CSV and TSV to records. Text stays text: ``007`` and ``NA`` are what they say."""

import csv
import re
import sys
from collections.abc import Iterator
from functools import partial
from typing import TextIO

from plumbline.data.errors import Problem
from plumbline.data.readers.json_lines import Record
from plumbline.data.readers.limits import MAX_COLUMNS, MAX_LINE
from plumbline.data.readers.source_files import File
from plumbline.errors import StudioError

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
