"""Datasets, rows and tokens as text: ``plumbline data show`` and ``plumbline data xray``."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from plumbline.cli.parser import json_option, whole
from plumbline.cli.terminal import bars, clipped, entry, say, say_json
from plumbline.config import schema
from plumbline.errors import StudioError
from plumbline.store.records import DatasetRow

if TYPE_CHECKING:
    from plumbline.worker.near_duplicates import CheckResult

PAGE = 50  # rows that a search lists
LISTED = 400  # characters of a turn where several rows are listed
NAMED = 12  # row numbers in one line
PERCENTILES = (50, 90, 99)
BARS = 10  # of the histogram of lengths, at most


def add_verbs(verbs: Any) -> None:
    """Put ``show`` and ``xray`` under the verbs of ``data``."""
    parser = verbs.add_parser("show", help="a dataset's figures, or its rows as text")
    parser.add_argument("name", metavar="NAME", help="a dataset, as `data` lists it")
    _part_option(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--row", type=whole(), metavar="N", help="one row, whole; numbers from 1")
    which.add_argument("--rows", metavar="A-B", help="these rows")
    which.add_argument("--search", metavar="WORDS", help="rows whose texts hold these words")
    _base_option(parser)
    json_option(parser)
    parser.set_defaults(do=show)

    parser = verbs.add_parser("xray", help="a row as tokens: learned, masked, cut")
    parser.add_argument("name", metavar="NAME", help="a dataset, as `data` lists it")
    _part_option(parser)
    parser.add_argument("--row", type=whole(), metavar="N", default=1, help="number from 1 (default 1)")
    _base_option(parser)
    length = schema.TrainingSection().max_length
    parser.add_argument(
        "--max-length", type=whole(), metavar="N", default=length, help=f"where rows are cut ({length})"
    )
    json_option(parser)
    parser.set_defaults(do=xray)


def _part_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("train", "held_out"), default="train", help="which rows")


def _base_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default="starter", help="whose tokenizer and template (default starter)")
    parser.add_argument("--revision", help="of that base")


def show(arguments: argparse.Namespace) -> int:
    from plumbline.data import rows
    from plumbline.store import datasets as store

    dataset = store.by_name(arguments.name)
    part, total = arguments.part, _count(dataset, arguments.part)
    numbers: Sequence[int] | None = None
    if arguments.row is not None:
        numbers = [_number(arguments.row, total)]
    elif arguments.rows is not None:
        first, last = _range(arguments.rows, total)
        numbers = range(first - 1, last)
    elif arguments.search is not None:
        if not arguments.search.strip():
            raise StudioError("--search", "needs words to look for", "Write them in quotes.")
        numbers = rows.search(dataset["id"], part, arguments.search, count=PAGE)
    if arguments.json:
        told = _figures(dataset, arguments) if numbers is None else _rows_as_json(dataset, part, numbers)
        return say_json(as_json(dataset) | told)
    if numbers is None:
        say(dataset["name"])
        described(dataset)
        _statistics(dataset, part, arguments.base, arguments.revision)
        return 0
    _print_rows(dataset, part, numbers, None if arguments.row is not None else LISTED)
    if arguments.search is not None:
        shown = "the first " if len(numbers) == PAGE else ""
        say(f"{shown}{len(numbers)} row{'s hold' if len(numbers) != 1 else ' holds'} it")
    return 0


_FIELDS = ("id", "name", "shape", "rows", "held_out_rows", "source", "sha256", "created_at")


def as_json(dataset: DatasetRow) -> dict[str, Any]:
    """What is known of a dataset without reading its rows."""
    from plumbline.store import datasets as store

    columns = dict(dataset)
    return {name: columns[name] for name in _FIELDS} | {
        "left_out": store.left_out(dataset),
        "verdict": store.verdict(dataset),
        "mapping": json.loads(dataset["mapping"] or "null"),
        "columns": store.columns(dataset),
        "origin": json.loads(dataset["origin"] or "{}"),
        "findings": store.findings(dataset),
    }


def _rows_as_json(dataset: DatasetRow, part: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Rows as they are learned from, with their number from 1 and the line of their file."""
    from plumbline.data import rows

    lines = rows.index(dataset["id"], part)["line"]
    read = zip(numbers, rows.at(dataset["id"], part, numbers), strict=True)
    return {
        "part": part,
        "listed": [{"number": int(at) + 1, "line": int(lines[at]), "row": row} for at, row in read],
    }


def _figures(dataset: DatasetRow, arguments: argparse.Namespace) -> dict[str, Any]:
    """Turns, roles, labels and lengths; of a sample where there are many rows.

    ``tokens`` is null where the base's tokenizer cannot be had, and ``tokens_error`` says why.
    """
    from plumbline.data.selection import stats

    seen = stats.profile(dataset, arguments.part)
    told = {
        "part": arguments.part,
        "turns": dict(seen.turns.most_common()),
        "roles": dict(seen.roles.most_common()),
        "labels": dict(seen.labels.most_common()),
        "scripts": dict(seen.scripts),
    }
    try:
        measured = stats.of_dataset(dataset, arguments.part, arguments.base, arguments.revision)
    except StudioError as error:
        return told | {"tokens": None, "tokens_error": error.text}
    import numpy

    named = zip(("p50", "p90", "p99"), numpy.percentile(measured.lengths, PERCENTILES).tolist(), strict=True)
    lengths = dict(named) | {"longest": int(measured.lengths.max()), "rows": len(measured.lengths)}
    return told | {"tokens": lengths | {"base": arguments.base}}


def groups(dataset: DatasetRow) -> list[list[int]]:
    """Rows that nearly repeat each other, as the last check found them; numbers from 1."""
    from plumbline.worker import near_duplicates

    return json.loads(near_duplicates.near_path(dataset["id"]).read_text(encoding="utf-8"))["groups"]


def _count(dataset: DatasetRow, part: str) -> int:
    """:raises StudioError: when there is no such part"""
    count = dataset["held_out_rows" if part == "held_out" else "rows"]
    if not count:
        what = "has no held-out file"
        raise StudioError(
            f"dataset {dataset['name']!r}", what, "A share of its rows is held out in each run."
        )
    return count


def _number(row: int, total: int) -> int:
    """A row's number from 0. :raises StudioError: when there is no such row"""
    if not 1 <= row <= total:
        raise StudioError(f"row {row}", "is not there", f"Rows are numbered from 1 to {total:,}.")
    return row - 1


def _range(text: str, total: int) -> tuple[int, int]:
    first, sign, last = text.partition("-")
    if not (first.strip().isdecimal() and (not sign or last.strip().isdecimal())):
        raise StudioError("--rows", f"{text!r} is no range", "Write two numbers, like 10-20.")
    begin, end = int(first), int(last) if sign else int(first)
    if end < begin:
        raise StudioError("--rows", f"{text!r} ends before it begins", f"Write {end}-{begin}.")
    return _number(begin, total) + 1, min(end, total)


def _print_rows(dataset: DatasetRow, part: str, numbers: Any, limit: int | None = None) -> None:
    from plumbline.data import rows

    lines = rows.index(dataset["id"], part)["line"]
    for number, row in zip(numbers, rows.at(dataset["id"], part, numbers), strict=True):
        title = f"row {number + 1:,}"
        if dataset["mapping"] and lines[number] != number + 1:
            title += f" (line {lines[number]:,} of its file)"
        row_text(title, row, limit)
        say("")


def row_text(title: str, row: dict[str, Any], limit: int | None = None) -> None:
    """Print a row as it reads. :param limit: most characters of a turn"""
    marks = [f"{name} {row[name]}" for name in ("label", "group", "desirable") if name in row]
    say(", ".join([title, *(" ".join(mark.split()) for mark in marks)]))
    if "text" in row:
        entry("text", _cut(row["text"], limit))
    for turn in row.get("messages", []):
        _turn(turn, limit)
    for turn in row.get("rejected", []):
        _turn({**turn, "role": "rejected"}, limit)
    if tools := row.get("tools"):
        entry("tools", ", ".join(str(tool.get("function", tool).get("name", "")) for tool in tools))
    if columns := row.get("columns"):
        entry("columns", ", ".join(f"{name} = {' '.join(value.split())}" for name, value in columns.items()))


def _turn(turn: dict[str, Any], limit: int | None) -> None:
    called = [call.get("function", call) for call in turn.get("tool_calls") or []]
    calls = [
        f"calls {call.get('name')}({json.dumps(call.get('arguments'), ensure_ascii=False)})"
        for call in called
    ]
    note = ["(shown, not learned)"] if turn.get("learn") is False else []
    said = _cut(turn.get("content") or "", limit)
    entry(turn["role"], "\n".join([*([said] if said else []), *calls, *note]))


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text):,} characters)"


def described(dataset: DatasetRow) -> None:
    """Print what is known of a dataset without reading its rows."""
    from plumbline.data.formats import held_out_marks
    from plumbline.data.formats.mapping_parser import said
    from plumbline.store import datasets as store

    held_out = dataset["held_out_rows"]
    entry("shape", dataset["shape"])
    entry("mapping", said(dataset["mapping"]))
    entry("rows", f"{dataset['rows']:,} train" + (f" + {held_out:,} held out" if held_out else ""))
    if count := store.left_out(dataset):
        entry("left out", f"{count:,} bad row{'s' if count > 1 else ''}")
    entry("source", dataset["source"] or "")
    origin = json.loads(dataset["origin"] or "{}")
    if by := held_out_marks.held_out_by(origin):
        entry("held out", by)
    origin.pop("held_out_by", None)
    if former := origin.pop("former_names", []):
        entry("formerly", ", ".join(former))
    if origin:
        entry("origin", ", ".join(f"{name} {value}" for name, value in origin.items() if value))
    entry("content", f"SHA-256 {dataset['sha256']}")
    if columns := store.columns(dataset):
        entry("columns", ", ".join(columns))
    findings(dataset)


def findings(dataset: DatasetRow) -> None:
    """Print what its checks found, each with the first rows to look at."""
    from plumbline.store import datasets as store

    for found in store.findings(dataset):
        numbers = _numbers(found["rows"])
        where = " of the held-out rows" if found["part"] == "held_out" else ""
        named = f" (see row{'s' if len(found['rows']) > 1 else ''} {numbers}{where})" if numbers else ""
        entry("warning", found["text"] + named)


def _numbers(numbers: list[int]) -> str:
    more = ", …" if len(numbers) > NAMED else ""
    return ", ".join(f"{number:,}" for number in numbers[:NAMED]) + more


def near_groups(dataset: DatasetRow, result: "CheckResult") -> None:
    """Print a check's groups: how many, and the first row of the largest."""
    from plumbline.data import rows
    from plumbline.worker import near_duplicates

    say("", near_duplicates.said(result) + f", at {result['threshold']:g} or more alike")
    for group in groups(dataset)[:NAMED]:
        row = next(rows.at(dataset["id"], "train", [group[0] - 1]))
        text = row.get("text") or row["messages"][-1]["content"]
        entry(f"{len(group):,} rows", f"{_numbers(group)}\n{clipped(text, 80)}")


def _statistics(dataset: DatasetRow, part: str, base: str, revision: str | None) -> None:
    from plumbline.data.selection import stats

    seen = stats.profile(dataset, part)
    turns = seen.turns.most_common(4)
    entry("turns", ", ".join(f"{count} in {many / seen.rows:.0%}" for count, many in turns))
    entry(
        "roles",
        ", ".join(f"{role} in {many / seen.rows:.0%}" for role, many in seen.roles.most_common())
        + " of the rows",
    )
    if seen.labels:
        listed = ", ".join(f"{label} {many:,}" for label, many in seen.labels.most_common())
        entry("labels", f"{len(seen.labels):,}: {listed}")
    entry("letters", ", ".join(f"{script} {share:.1%}" for script, share in seen.scripts) or "none")
    try:
        measured = stats.of_dataset(dataset, part, base, revision)
    except StudioError as error:
        entry("tokens", f"cannot be counted: {error.text}")
        return
    _lengths(measured, base)


def _lengths(measured: Any, base: str) -> None:
    import numpy

    lengths = measured.lengths
    half, most, nearly = numpy.percentile(lengths, PERCENTILES)
    of = "" if measured.exact else f" (of {len(lengths):,} rows drawn from {measured.total:,})"
    entry(
        "tokens",
        f"p50 {half:,.0f}, p90 {most:,.0f}, p99 {nearly:,.0f}, longest {lengths.max():,} by {base}{of}",
    )
    shortest, longest = int(lengths.min()), int(lengths.max())
    step = -(-(longest - shortest + 1) // BARS)
    counts = numpy.bincount((lengths - shortest) // step)
    firsts = [shortest + step * place for place in range(len(counts))]
    said = [f"{first:,} to {first + step - 1:,}" if step > 1 else f"{first:,}" for first in firsts]
    say("")
    bars(list(zip(said, counts.tolist(), strict=True)))


def xray(arguments: argparse.Namespace) -> int:
    from plumbline.cli.xray import draw
    from plumbline.data import rows
    from plumbline.data.selection import dropped_content, stats
    from plumbline.data.tokens import encode as rays
    from plumbline.models import load
    from plumbline.planner import overview
    from plumbline.store import datasets as store

    dataset = store.by_name(arguments.name)
    number = _number(arguments.row, _count(dataset, arguments.part))
    length, base, revision = arguments.max_length, arguments.base, arguments.revision
    schema.validated({"training": {"max_length": length}}, "--max-length")
    tokenizer = load.tokenizer(base, revision)
    row = next(rows.at(dataset["id"], arguments.part, [number]))
    try:
        encoded = rays.encode(row, tokenizer, length)
    except rays.EncodeError as error:
        raise stats.in_row(error, dataset["id"], arguments.part, number) from error
    if arguments.json:
        seen = overview.live(dataset, arguments.part, base, revision, length)
        return say_json(
            {
                "dataset": dataset["name"],
                "part": arguments.part,
                "row": number + 1,
                "base": base,
                "max_length": length,
                "tokens": [asdict(token) for token in rays.tokens(encoded, tokenizer)],
                "in_the_loss": encoded.supervised,
                "cut_off": encoded.cut_supervised,
                "all_rows": asdict(seen),
            }
        )
    draw(rays.tokens(encoded, tokenizer))
    lost = f", {encoded.cut_supervised:,} more are cut off" if encoded.cut_supervised else ""
    say("", f"row {number + 1:,} of {dataset['name']}, rendered by the template of {base}")
    entry("this row", f"{encoded.supervised:,} of {len(encoded.input_ids):,} tokens are in the loss{lost}")
    seen = overview.live(dataset, arguments.part, base, revision, length)
    share = seen.supervised / max(1, seen.tokens)
    entry(
        "all rows",
        f"{share:.0%} of {seen.tokens:,} tokens are in the loss at {length:,} (of {seen.rows:,} rows)",
    )
    entry("", f"{seen.cut_rows:,} rows cut, {seen.empty_rows:,} with nothing left to learn")
    entry("", f"the end of a turn is learned in {seen.end_learned_rows / max(1, seen.rows):.0%}")
    for text in dropped_content.sentences(seen.left_out, base, revision):
        entry("warning", text)
    return 0
