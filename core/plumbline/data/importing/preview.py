"""What an import would do, seen from a file's first records."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from plumbline.config.mapping import Mapping
from plumbline.data.errors import DataError, Problem, RowError
from plumbline.data.formats import held_out_marks
from plumbline.data.formats.convert import converter
from plumbline.data.formats.detect import Guess
from plumbline.data.importing.chunk import as_line
from plumbline.data.importing.importer import SAMPLE, Options, guess
from plumbline.data.readers import source_files
from plumbline.data.readers.json_lines import Record
from plumbline.data.readers.registry import records
from plumbline.data.readers.source_files import Source
from plumbline.errors import StudioError


@dataclass(frozen=True)
class Preview:
    """What an import would do, seen from a file's first records.

    :param columns: each column with a few of its values, as text
    :param rows: the first rows, or for each record that cannot be one, why
    :param held_out: what a column that marks rows as held out will do; empty where there is none
    """

    file: str
    shape: str
    mapping: Mapping
    columns: dict[str, list[str]]
    rows: list[dict[str, Any] | Problem]
    problem: str = ""
    held_out: str = ""


def of_file(source: Source, options: Options = Options(), count: int = 20) -> Preview:  # noqa: B008 (frozen)
    """The guess, the columns and the first rows of a file, without storing anything.

    When the columns are not known, ``problem`` says so and the mapping is an empty one to fill in.

    :raises StudioError: when the file cannot be read at all
    """
    with source_files.opened(source, options.reading) as file:
        sample = list(islice(records(file), SAMPLE))
    good = [record for record in sample if isinstance(record, Record)]
    columns: dict[str, list[str]] = {}
    for one in good[:count]:
        for name, value in one.value.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            columns.setdefault(_whole(name), []).append(_whole(text))
    problem = ""
    try:
        found = guess(file, sample, options)
    except DataError:
        raise
    except StudioError as error:
        found, problem = Guess("", options.mapping or Mapping()), error.text
    rows: list[dict[str, Any] | Problem] = []
    held_out = held_out_marks.foreseen(
        [record.value for record in good],
        found.mapping.columns(),
        options.all_trained,
        len(sample) < SAMPLE,
    )
    if not problem and not found.mapping.missing():
        convert = converter(found.mapping)
        for record in sample[:count]:
            rows += _rows(convert, record)
    return Preview(file.name, found.shape, found.mapping, columns, rows[:count], problem, held_out)


def _whole(text: str) -> str:
    """Text without halves of characters, which a page could not show."""
    return text.encode(errors="replace").decode()


def _rows(convert: Any, record: Record | Problem) -> list[dict[str, Any] | Problem]:
    if isinstance(record, Problem):
        return [record]
    try:
        made = convert(record.value)
        for row in made if isinstance(made, list) else [made]:
            if isinstance(row, RowError):
                raise row
            row.pop("noted", None)
            as_line(row)
    except RowError as error:
        return [Problem(record.line, str(error), fix=error.fix)]
    return made if isinstance(made, list) else [made]
