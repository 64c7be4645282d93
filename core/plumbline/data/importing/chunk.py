"""Records to stored lines: one part of an import, with everything that is counted on the way.

Also a program: for large files the parts are worked by child processes, one a core, which get their
byte ranges as lines of JSON from `plumbline.data.importing.pool`.
"""

import gc
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import orjson
import xxhash

from plumbline.config.mapping import Mapping
from plumbline.data.errors import KEPT_PROBLEMS, Problem, RowError
from plumbline.data.formats.conversations import canonical
from plumbline.data.formats.convert import converter
from plumbline.data.formats.held_out_marks import SplitColumn, side_of
from plumbline.data.importing import quality
from plumbline.data.readers.json_lines import Record, count_keys, parse_lines, repeats_key
from plumbline.data.readers.registry import lines_in, read_range
from plumbline.data.rows import INDEX, Row, prompt_of

BLOCK = 4 * 1024**2
CACHED = 384 * 1024  # rows worked on at once: what fits the processor's cache parses twice as fast
MOST_LABELS = 1000
MOST_KINDS = 100  # of findings: some name a key of the file
MORE = "hold other keys that are not read"
AS_STORED = Mapping(kind="conversation", turns="messages")  # rows that are what is stored


@dataclass
class Counted:
    """What a part came to. ``hits`` has, for each content check, how many rows and the first of them.

    Also for what the conversion tells of rows: then its key is the text that follows "N rows".
    ``marks`` counts rows by what their split column says, where that is to hold them out; ``elsewhere``
    counts records that the column gives to the other part.
    """

    rows: int = 0
    bytes: int = 0
    records: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    hits: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0


@dataclass
class Writer:
    """The rows file as it grows: appended to, hashed and counted, part after part."""

    path: Path
    counted: Counted = field(default_factory=Counted)
    index: list[Any] = field(default_factory=list)

    def __enter__(self) -> None:
        self._file = open(self.path, "wb")  # noqa: SIM115 (closed in __exit__)
        self._hash = hashlib.sha256()

    def __exit__(self, *error: Any) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, block: bytes) -> int:
        self._hash.update(block)
        return self._file.write(block)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def add(self, part: Counted, index: Any, lines: int = 0, records: int = 0) -> None:
        """Take over what a part counted; ``lines`` and ``records`` of the file came before it."""
        counted = self.counted
        index["offset"] += numpy.uint64(counted.bytes)
        index["line"] += numpy.uint32(lines)
        self.index.append(index)
        for kind, (count, rows) in part.hits.items():
            old, first = counted.hits.get(kind, (0, []))
            shown = (first + [counted.rows + row for row in rows])[: quality.SHOWN]
            counted.hits[kind] = (old + count, shown)
        room = KEPT_PROBLEMS - len(counted.problems)
        counted.problems += [
            problem._replace(line=problem.line + lines, row=problem.row + records)
            for problem in part.problems[:room]
        ]
        counted.problem_count += part.problem_count
        counted.records += part.records
        counted.rows += part.rows
        counted.bytes += part.bytes
        counted.labels.update(part.labels)
        counted.groups.update(part.groups)
        counted.columns.update(part.columns)
        counted.marks.update(part.marks)
        counted.elsewhere += part.elsewhere

    def indexed(self) -> Any:
        return numpy.concatenate(self.index) if self.index else numpy.empty(0, INDEX)


class Part:
    """Writes rows to a file and counts; ``index`` grows with them.

    :param split: the column that says which records are taken, where there is one
    """

    def __init__(
        self, mapping: Mapping, out: BinaryIO, file: int = 0, split: SplitColumn | None = None
    ) -> None:
        self.keeps, self.convert = mapping == AS_STORED and split is None, converter(mapping)
        self.split = split
        self.out, self.file = out, file
        self.counted = Counted()
        self.index: list[Any] = []
        self._lines: list[bytes] = []
        self._at: list[int] = []
        self._prompts: list[int] = []
        self._held = 0

    def take_lines(self, block: bytes, first: int = 1) -> None:
        """Take a block of JSON lines. :param first: the number of its first line"""
        start = 0
        while start < len(block):
            end = block.find(b"\n", start + CACHED) + 1 or len(block)
            some = block[start:end]
            if not self._keep_block(some, first):
                self.take(parse_lines(some, first))
            first += lines_in(some)
            start = end

    def _keep_block(self, block: bytes, first: int) -> bool:
        """Take a block whose every line is a row already, as it is; False, and nothing done, for others.

        The same rows as `take` makes, without touching each: for millions of rows that is most of the time.
        """
        if not self.keeps or b"\r" in block:
            return False
        if not block.endswith(b"\n"):
            block += b"\n"
        looked = quality.Block(block)
        if looked.holds(b"\\u", b'" :'):
            return False
        lines = block.split(b"\n")
        lines.pop()
        try:
            values = [orjson.loads(line) for line in lines]
        except orjson.JSONDecodeError:
            return False
        keys, prompts, digest = 0, [], xxhash.xxh3_64_intdigest
        for value in values:
            if type(value) is not dict or len(value) != 1:
                return False
            turns = value.get("messages")
            if type(turns) is not list or not canonical(turns):
                return False
            keys += 1 + 2 * len(turns)
            prompts.append(digest(prompt_of(value)))
        # A key that comes twice would make the block hold more of them than its values do.
        if looked.count(b'":') != keys:
            return False
        if self._lines:
            self.flush()
        self.counted.records += len(lines)
        self._write(looked, [line + b"\n" for line in lines], range(first, first + len(lines)), prompts)
        return True

    def take(self, records: Iterable[Record | Problem]) -> None:
        """Convert and write records until they end."""
        convert, counted = self.convert, self.counted
        for record in records if self.split is None else self._taken(records, self.split):
            counted.records += 1
            if isinstance(record, Problem):
                self._refuse(record)
                continue
            number, value, raw = record
            try:
                made = convert(value)
                if raw:
                    keys = (
                        1 + 2 * len(made["messages"])
                        if made is value and isinstance(made, dict)
                        else count_keys(value)
                    )
                    if again := repeats_key(raw, keys):
                        raise RowError(f"names the key {again!r} twice")
                # A line that is a row already is kept as it is, unless it holds escapes: those are
                # written out, so that checks and search see the characters themselves.
                if made is value and raw and b"\\u" not in raw:
                    self._add(raw + b"\n", value, number)
                    continue
                for row in made if isinstance(made, list) else (made,):
                    self._store(row, number)
            except RowError as error:
                self._refuse(Problem(number, str(error), fix=error.fix))
        if self._lines:
            self.flush()

    def _taken(self, records: Iterable[Record | Problem], split: SplitColumn) -> Iterator[Record | Problem]:
        """The records that this part has by their split column, each of the others counted."""
        for record in records:
            if isinstance(record, Problem):
                taken = split.takes != "held_out"  # told once, with the training rows
            else:
                try:
                    taken = split.is_taken(record.value)
                except RowError as error:
                    yield Problem(record.line, str(error), fix=error.fix)
                    continue
                self.counted.elsewhere += not taken
            if taken:
                yield record
            else:
                self.counted.records += 1

    def _store(self, row: Row | RowError, number: int) -> None:
        """Add a row, or count why it is none."""
        try:
            if isinstance(row, RowError):
                raise row
            noted = row.pop("noted", ())
            line = as_line(row)
        except RowError as error:
            self._refuse(Problem(number, str(error), fix=error.fix))
            return
        self._note(row)
        for text in noted:
            self._hit(text, [self.counted.rows + len(self._lines)])
        self._add(line, row, number)

    def _add(self, line: bytes, row: Row, number: int) -> None:
        self._lines.append(line)
        self._at.append(number)
        self._prompts.append(xxhash.xxh3_64_intdigest(prompt_of(row)))
        self._held += len(line)
        if self._held > BLOCK:
            self.flush()

    def _note(self, row: Row) -> None:
        counted = self.counted
        for name, counter in (("label", counted.labels), ("group", counted.groups)):
            if name in row and (row[name] in counter or len(counter) < MOST_LABELS):
                counter[row[name]] += 1
        counted.columns.update(list(row.get("columns", ())))
        if self.split is not None:
            mark = row.get("columns", {}).get(self.split.name)
            if side_of(mark) == "held_out" and (mark in counted.marks or len(counted.marks) < MOST_LABELS):
                counted.marks[mark] += 1

    def _refuse(self, problem: Problem) -> None:
        self.counted.problem_count += 1
        if len(self.counted.problems) < KEPT_PROBLEMS:
            self.counted.problems.append(problem._replace(file=self.file, row=self.counted.records))

    def flush(self) -> None:
        """Write what is held."""
        self._write(quality.Block(b"".join(self._lines)), self._lines, self._at, self._prompts)
        self._lines, self._at, self._prompts, self._held = [], [], [], 0

    def _write(self, block: quality.Block, lines: list[bytes], at: Sequence[int], prompts: list[int]) -> None:
        """Write rows, look through them once, and add them to the index."""
        counted = self.counted
        for kind, places in quality.scan(block, lines).items():
            self._hit(kind, [counted.rows + row for row in places])
        entries = numpy.empty(len(lines), INDEX)
        sizes = numpy.fromiter(map(len, lines), numpy.uint32, len(lines))
        entries["size"] = sizes
        entries["offset"] = counted.bytes + numpy.cumsum(sizes, dtype=numpy.uint64) - sizes
        entries["row"] = numpy.fromiter(map(xxhash.xxh3_64_intdigest, lines), numpy.uint64, len(lines))
        entries["prompt"] = prompts
        entries["line"] = at
        entries["file"] = self.file
        self.index.append(entries)
        self.out.write(block.data)
        counted.rows += len(lines)
        counted.bytes += len(block.data)

    def _hit(self, kind: str, rows: list[int]) -> None:
        """Count rows that a check found, or of which the import has something to tell."""
        hits = self.counted.hits
        if kind not in hits and len(hits) >= MOST_KINDS:
            kind = MORE
        count, first = hits.get(kind, (0, []))
        hits[kind] = (count + len(rows), first + rows[: max(0, quality.SHOWN - len(first))])

    def indexed(self) -> Any:
        """The index as one array."""
        return numpy.concatenate(self.index) if self.index else numpy.empty(0, INDEX)


def as_line(row: Row) -> bytes:
    """A row as it is stored. :raises RowError: when it holds what no UTF-8 JSON can"""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        # orjson's word for half a character, or a number past 64 bits.
        what = "holds half of a surrogate pair" if "surrogate" in str(error) else f"cannot be stored: {error}"
        raise RowError(what) from None


def main() -> None:
    """Work byte ranges of files of JSON lines until the input ends."""
    gc.disable()  # rows make no cycles, and looking for some costs as much as parsing
    for request in sys.stdin:
        task = json.loads(request)
        out = Path(task["out"])
        with open(out, "wb") as target:
            split = SplitColumn(*task["split"]) if task["split"] else None
            part = Part(Mapping.model_validate(task["mapping"]), target, task["file"], split)
            block = read_range(Path(task["path"]), task["begin"], task["end"])
            lines = lines_in(block) + (not block.endswith((b"\n", b"\r")))
            part.take_lines(block)
        numpy.save(out.with_suffix(".npy"), part.indexed())
        counted = part.counted
        print(json.dumps({**counted.__dict__, "lines": lines}), flush=True)
