"""Text in a terminal: what files hold is made harmless, folded to the width, and drawn without a picture.

Everything is printed by `say`. Only what has gone through `safe` may be coloured and written by itself.
"""

import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from plumbline.errors import StudioError
from plumbline.program import command
from plumbline.store.records import JobRow

WIDEST = 100
_GUTTER = 13
# Commands to a terminal (ECMA-48): strings such as a window's title, sequences such as a colour, the rest.
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f\n]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]?"
)
# Control characters, and those that write what follows in another order than it is read.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    """Text without anything that a terminal would obey; line ends stay, tabs become spaces."""
    text = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", _ESCAPES.sub("", text.replace("\t", "    ")))


def say(*lines: str) -> None:
    for line in lines:
        print(safe(line))


def say_json(value: Any) -> int:
    """Print what a verb found as JSON; numbers that JSON has not, such as NaN, become null.

    :returns: the exit code of a verb that has done what it is for
    """
    print(json.dumps(_plain(value), indent=2, allow_nan=False))
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def width() -> int:
    """Columns to fill: the terminal's, and no more than are read with ease."""
    return max(40, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def columns(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def fold(text: str, room: int) -> Iterator[str]:
    """A text in lines of at most ``room`` columns, between words where it has any."""
    for line in safe(text).split("\n"):
        start = 0
        while (end := fitting(line, start, room)) < len(line):
            space = line.rfind(" ", start + 1, end + 1)
            end = space if space > start else end
            yield line[start:end]
            start = end + (line[end] == " ")
        yield line[start:]


def fitting(line: str, start: int, room: int) -> int:
    """Where the part of a line that begins at ``start`` and fits has its end."""
    taken = 0
    for end in range(start, len(line)):
        taken += 1 if line[end].isascii() else _columns(line[end])
        if taken > room:
            return max(end, start + 1)
    return len(line)


def clipped(text: str, room: int) -> str:
    """A text as one line of at most ``room`` columns."""
    line = " ".join(safe(text[: 4 * room + 400]).split())
    end = fitting(line, 0, room)
    return line if end == len(line) and len(text) <= 4 * room + 400 else line[: max(0, end - 1)] + "…"


def padded(text: str, room: int, right: bool = False) -> str:
    space = " " * max(0, room - columns(text))
    return space + text if right else text + space


def entry(name: str, text: str, gutter: int = _GUTTER) -> None:
    """Print a text beside its name, folded."""
    beside = padded(clipped(name, gutter - 3), gutter - 2)
    for line in fold(text, width() - gutter):
        say(f"  {beside}{line}".rstrip())
        beside = " " * (gutter - 2)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """Print rows under headers. The first column gives way where they are too wide.

    :param numbers: columns that are set to the right
    """
    cells = [list(headers), *([safe(cell) for cell in row] for row in rows)]
    rooms = [max(columns(row[place]) for row in cells) for place in range(len(headers))]
    rooms[0] = max(8, min(rooms[0], width() - sum(rooms[1:]) - 2 * (len(rooms) - 1)))
    for row in cells:
        row[0] = clipped(row[0], rooms[0])
        said = [padded(cell, room, place in numbers) for place, (cell, room) in enumerate(zip(row, rooms))]  # noqa: B905
        say("  ".join(said).rstrip())


def bars(parts: Sequence[tuple[str, int]]) -> None:
    """Print counts as bars under one another."""
    most = max((count for _, count in parts), default=0) or 1
    mark = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    for name, count in parts:
        say(f"  {name:>15}  {mark * -(-40 * count // most):<40} {count:>10,}")


def colours() -> bool:
    """Whether colours are wanted here (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows what is being done on one line; in a file or a pipe it shows nothing."""
    shown = sys.stderr.isatty()

    def tell(text: str) -> None:
        if shown:
            print(f"\r\x1b[K{clipped(text, width() - 1)}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def agreed(verb: str, question: str) -> bool:
    """Whether somebody says yes. :raises StudioError: when nobody is there to be asked"""
    if not sys.stdin.isatty():
        raise StudioError(verb, "asks first, and nobody can answer here", "Add --yes.")
    return input(question).strip().lower() in ("y", "yes")


def watch(job_id: int) -> JobRow:
    """Wait for a job with a progress bar; of one that was ended, tell what goes on with it.

    :returns: the job as it ended
    """
    from tqdm import tqdm

    from plumbline.jobs import queue
    from plumbline.worker.wait import until_ended

    with tqdm(total=100, bar_format="{desc:<44.44}{bar:24} {percentage:3.0f} % {elapsed}") as bar:

        def look(job: JobRow) -> None:
            bar.set_description_str(safe(job["phase"] or job["state"]), refresh=False)
            bar.n = round(100 * (job["progress"] or 0))
            bar.refresh()

        try:
            job = until_ended(job_id, look)
        except KeyboardInterrupt:
            bar.close()
            _tell_how_to_go_on(queue.get(job_id))
            raise
    if job["state"] != "completed":
        print(safe(f"{job['kind']} {job['state']}. {job['error'] or ''}".strip()), file=sys.stderr)
    if job["state"] in ("stopped", "interrupted", "queued"):
        _tell_how_to_go_on(job)
    return job


def _tell_how_to_go_on(job: JobRow) -> None:
    verb = {"train": "resume", "adapter": "export"}.get(job["kind"], job["kind"])
    if job["run_id"] is not None:
        print(f"To go on: {command(verb, str(job['run_id']))}", file=sys.stderr)
