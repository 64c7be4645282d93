"""Import: files in, a checked and stored dataset out, or a message with every line that is wrong.

Memory stays flat whatever the size: rows go through in blocks, large files through one child
process a core. An import either stores everything or nothing.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy

from plumbline.config.mapping import Mapping
from plumbline.data.errors import SHOWN_PROBLEMS, DataError, Problem
from plumbline.data.formats import held_out_marks
from plumbline.data.formats.detect import Guess, recognise
from plumbline.data.formats.held_out_marks import Side, SplitColumn
from plumbline.data.formats.mapping_parser import refuse_missing_columns, with_system
from plumbline.data.importing import quality
from plumbline.data.importing.chunk import Counted, Part, Writer
from plumbline.data.importing.pool import children, cores
from plumbline.data.readers import arrow, source_files
from plumbline.data.readers.json_lines import Record, line_ranges
from plumbline.data.readers.limits import max_rows
from plumbline.data.readers.registry import line_blocks, records
from plumbline.data.readers.source_files import File, Reading, Source
from plumbline.errors import StudioError
from plumbline.home import folder
from plumbline.store import datasets as store

SAMPLE = 200  # records that the guess is made from
PARALLEL_FROM = 32 * 1024**2  # bytes; below, starting children costs more than they save
RANGE = 8 * 1024**2
Report = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Options:
    """How an import is done. ``mapping`` None means the guess is taken.

    :param system: a system prompt for every row that has none of its own
    :param all_trained: files whose names say that they are held out, and rows that a column says it of, are
        trained on, as was asked for
    """

    name: str = ""
    mapping: Mapping | None = None
    system: str = ""
    reading: Reading = Reading()
    leave_out: bool = False
    all_trained: bool = False


def _no_rows(file: File) -> str:
    lines = file.path.read_bytes().count(b"\n") if file.path.stat().st_size < PARALLEL_FROM else 0
    return f"has no rows in its {lines} lines" if lines > 1 else "has no rows"


def _typed(problem: Problem, file: File) -> Problem:
    """A problem that also says a Parquet or Arrow column's own type, which its writer knows it by."""
    types = arrow.types(file) if file.kind in ("parquet", "arrow") else {}
    column = problem.what.split(" ")[0]
    return problem._replace(what=f"{problem.what} ({types[column]})") if column in types else problem


def guess(file: File, sample: Sequence[Record | Problem], options: Options) -> Guess:
    """The shape of a file. :raises StudioError: when it has no rows, or none of a known shape"""
    good = [record.value for record in sample if isinstance(record, Record)]
    if not sample:
        raise StudioError(file.name, _no_rows(file), "Choose a file with at least one row.")
    if not good:
        bad = [problem for problem in sample if isinstance(problem, Problem)]
        raise DataError([file.name], bad, "Mend the file.")
    mapping = options.mapping
    if mapping is None:
        found = recognise(good, file.name)
        return Guess(found.shape, with_system(found.mapping, options.system, file.name))
    mapping = with_system(mapping, options.system, file.name)
    refuse_missing_columns(
        mapping, list(dict.fromkeys(name for record in good for name in record)), file.name
    )
    if missing := mapping.missing():
        raise StudioError("mapping", f"does not say which column is {' and '.join(missing)}", "Choose one.")
    return Guess(f"mapped {mapping.kind}", mapping)


def add(
    sources: Sequence[Source],
    held_out: Sequence[Source] = (),
    options: Options = Options(),  # noqa: B008 (frozen)
    report: Report = lambda text, share: None,
    origin: dict[str, Any] | None = None,
) -> int:
    """Check files and store them as one dataset. :returns: its id

    :param held_out: files whose rows are held out from training
    :param report: told what is being done, and the share done
    :param origin: where the files came from, when not from the user's disk
    :raises StudioError: with file, line and field of everything wrong; nothing is stored then
    """
    with _staging() as staging:
        values = _checked(sources, held_out, options, staging, report, origin)
        return store.add(values["name"], values, staging)


def seen(sources: Sequence[Source], held_out: Sequence[Source], options: Options) -> dict[str, Any]:
    """What `add` would store of a dataset beside its rows; nothing is stored."""
    with _staging() as staging:
        return _checked(sources, held_out, options, staging, lambda text, share: None, None)


@contextmanager
def _staging() -> Iterator[Path]:
    staging = Path(tempfile.mkdtemp(prefix="import-", dir=folder("staging")))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _checked(
    sources: Sequence[Source],
    held_out: Sequence[Source],
    options: Options,
    staging: Path,
    report: Report,
    origin: dict[str, Any] | None,
) -> dict[str, Any]:
    """Check files, write their rows to ``staging`` and say what they are."""
    if not sources:
        raise StudioError("import", "has no file", "Choose at least one.")
    store.refuse_long_name("dataset", options.name)
    names = held_out_marks.named_held_out([source.name for source in sources])
    if names and not held_out and not options.all_trained:
        what = "is named like rows to hold out, and stands among the files to train on"
        raise StudioError(names[0], what, "Give it as a held-out file, or say that all files are trained on.")
    told, by_column = [], {}
    if held_out or options.all_trained:
        train = _part(sources, "train", options, staging, report)
        held = _part(held_out, "held_out", options, staging, report) if held_out else None
        told = _although_marked(train, "a held-out file was given" if held_out else "as was asked for")
    else:
        train, held = _parted(sources, options, staging, report)
        if held:
            by_column = {"held_out_by": {"column": held.split, "values": dict(held.counted.marks)}}
        else:
            told = _although_marked(train, "no row is marked for training")
    if held and held.guess.mapping != train.guess.mapping:
        raise StudioError(
            held_out[0].name,
            f"has the shape {held.guess.shape}, {sources[0].name} has {train.guess.shape}",
            "Use one shape, or a mapping for both.",
        )
    found = told + quality.findings("train", train.index, train.counted)
    if held:
        found += quality.findings("held_out", held.index, held.counted)
        found += quality.leaks(train.index, held.index)
    return {
        "name": options.name or _stem(sources[0].name),
        "shape": train.guess.shape,
        "rows": train.counted.rows,
        "held_out_rows": held.counted.rows if held else 0,
        "sha256": hashlib.sha256((train.sha256 + (held.sha256 if held else "")).encode()).hexdigest(),
        "source": ", ".join(source.name for source in (*sources, *held_out))[:1000],
        "left_out": str(train.counted.problem_count + (held.counted.problem_count if held else 0)),
        "bytes": train.counted.bytes + (held.counted.bytes if held else 0),
        "mapping": train.guess.mapping.model_dump_json(exclude_defaults=True),
        "findings": json.dumps([asdict(finding) for finding in found]),
        "columns": json.dumps(_columns(train.counted)),
        "origin": json.dumps((origin or {}) | by_column),
    }


def _stem(name: str) -> str:
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return Path(name.removesuffix(".gz")).stem


def _columns(counted: Counted) -> list[str]:
    """Columns that splits, order and scores can use."""
    found = [name for name, counter in (("label", counted.labels), ("group", counted.groups)) if counter]
    return found + sorted(counted.columns)


@dataclass
class _Imported:
    guess: Guess
    counted: Counted
    index: Any
    sha256: str
    split: str  # the column that marks its rows
    not_followed: str  # a warning of one that marks some of them


def _although_marked(train: _Imported, why: str) -> list[quality.Finding]:
    """What is told of training rows that a column marks as held out."""
    text, marks = train.not_followed, train.counted.marks
    if marks:
        text = held_out_marks.trained_on(train.split, marks, train.counted.rows, why)
    return [quality.Finding("split", text)] if text else []


def _parted(
    sources: Sequence[Source], options: Options, staging: Path, report: Report
) -> tuple[_Imported, _Imported | None]:
    """The rows to train on, and those that a column of theirs holds out: read twice where there are some."""
    train = _part(sources, "train", options, staging, report, "train")
    if not train.counted.elsewhere:
        return train, None
    if not train.counted.rows and not train.counted.problem_count:
        return _part(sources, "train", options, staging, report), None
    return train, _part(sources, "held_out", options, staging, report, "held_out", train.counted)


def _part(
    sources: Sequence[Source],
    part: Side,
    options: Options,
    staging: Path,
    report: Report,
    takes: Side | Literal[""] = "",
    before: Counted | None = None,
) -> _Imported:
    """Read, convert, check and write one part.

    :param takes: which rows are taken, where a column marks them
    :param before: what the other part of the same files came to; what is bad there is told with this
    :raises StudioError: unless all is well; of training rows only when no other part is to come
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(source_files.opened(source, options.reading)) for source in sources]
        samples = [list(islice(records(file), SAMPLE)) for file in opened]
        guesses = [guess(file, sample, options) for file, sample in zip(opened, samples, strict=True)]
        marks = [
            ([record.value for record in sample if isinstance(record, Record)], seen.mapping.columns())
            for sample, seen in zip(samples, guesses, strict=True)
        ]
        columns = [held_out_marks.split_column(*one) for one in marks]
        not_followed = next(filter(None, (held_out_marks.not_followed(*one) for one in marks)), "")
        for file, seen in zip(opened, guesses, strict=True):
            if seen.mapping != guesses[0].mapping:
                what = f"has the shape {seen.shape}, {opened[0].name} has {guesses[0].shape}"
                raise StudioError(file.name, what, "Import them one by one.")
        writer = Writer(staging / f"{part}.jsonl")
        with writer:
            for number, file in enumerate(opened):
                split = SplitColumn(columns[number], takes) if columns[number] else None
                size = file.path.stat().st_size
                if file.lines and size >= PARALLEL_FROM and cores() > 1:
                    _parallel(file, number, guesses[0].mapping, split, writer, staging, report)
                else:
                    _serial(file, number, guesses[0].mapping, split, writer, report)
    counted = writer.counted
    if takes != "train" or not counted.elsewhere:
        _refuse_bad(opened, [counted] if before is None else [before, counted], options)
    index = writer.indexed()
    numpy.save(staging / f"{part}.npy", index)
    split_by = next(filter(None, columns), "")
    return _Imported(guesses[0], counted, index, writer.sha256, split_by, not_followed)


def _refuse_bad(opened: Sequence[File], parts: Sequence[Counted], options: Options) -> None:
    """:param parts: what was read of the same files

    :raises StudioError: for bad rows, or when there are none
    """
    bad = sorted((one for part in parts for one in part.problems), key=lambda one: (one.file, one.row))
    good = all(part.rows for part in parts)
    if bad and (not options.leave_out or not good):
        fixes = {problem.fix for problem in bad}
        helps = fixes.pop() if len(fixes) == 1 else ""
        fix = (helps or "Mend the file") + (", or choose to leave bad rows out." if good else ".")
        problems = [_typed(problem, opened[problem.file]) for problem in bad[:SHOWN_PROBLEMS]]
        problems += bad[SHOWN_PROBLEMS:]
        count = sum(part.problem_count for part in parts)
        raise DataError([file.name for file in opened], problems, fix, count)
    if not good:
        raise StudioError(opened[0].name, "has no rows", "Choose a file with at least one row.")


def _serial(
    file: File, number: int, mapping: Mapping, split: SplitColumn | None, writer: Writer, report: Report
) -> None:
    part = Part(mapping, writer, number, split)  # type: ignore[arg-type]

    def note(count: int) -> None:
        _refuse_too_many(file.name, writer.counted.records + count)
        report(f"{file.name}: {count:,} rows", 0.0)

    def watched() -> Iterator[Record | Problem]:
        for count, record in enumerate(records(file), start=1):
            if count % 5000 == 0:
                note(count)
            yield record

    if file.lines:
        for first, block in line_blocks(file):
            part.take_lines(block, first)
            note(part.counted.records)
    else:
        part.take(watched())
    writer.add(part.counted, part.indexed())
    _refuse_too_many(file.name, writer.counted.records)


def _refuse_too_many(name: str, count: int) -> None:
    if count > max_rows():
        raise StudioError(name, f"has more than {max_rows():,} rows", "Split it, or raise the limit.")


def _parallel(
    file: File,
    number: int,
    mapping: Mapping,
    split: SplitColumn | None,
    writer: Writer,
    staging: Path,
    report: Report,
) -> None:
    """Byte ranges through child processes; their parts are joined in the file's order."""
    tasks = [
        {
            "path": str(file.path),
            "begin": begin,
            "end": end,
            "out": str(staging / f"part-{position}.jsonl"),
            "mapping": mapping.model_dump(mode="json"),
            "file": number,
            "split": [split.name, split.takes] if split else [],
        }
        for position, (begin, end) in enumerate(line_ranges(file.path, file.name, RANGE))
    ]
    lines = taken = 0
    with children() as work, ThreadPoolExecutor(cores()) as threads:
        waiting = [threads.submit(work, task) for task in tasks]
        try:
            for position, (task, answer) in enumerate(zip(tasks, waiting, strict=True), start=1):
                result = answer.result()
                out = Path(str(task["out"]))
                with open(out, "rb") as rows:
                    while block := rows.read(1024**2):
                        writer.write(block)
                index = numpy.load(out.with_suffix(".npy"))
                out.unlink()
                out.with_suffix(".npy").unlink()
                count = result.pop("lines")
                problems = [Problem(*problem) for problem in result.pop("problems")]
                hits = {kind: (found[0], found[1]) for kind, found in result.pop("hits").items()}
                part = Counted(problems=problems, hits=hits, **result)
                writer.add(part, index, lines, taken)
                _refuse_too_many(file.name, writer.counted.records)
                lines, taken = lines + count, taken + part.records
                report(f"{file.name}: {writer.counted.rows:,} rows", position / len(tasks))
        finally:
            for future in waiting:
                future.cancel()
