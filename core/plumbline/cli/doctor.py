"""``plumbline doctor``: what there is to compute with, how the workspace stands, a database made anew."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from plumbline.cli.parser import json_option
from plumbline.cli.terminal import entry, safe, say, say_json
from plumbline.config.schema import RunConfig
from plumbline.errors import StudioError
from plumbline.home import home
from plumbline.models.hardware import GIB, compute_dtype, device, versions
from plumbline.store import opening

GUTTER = 16


def add_verbs(verbs: Any) -> None:
    parser = verbs.add_parser("doctor", help="versions, device, compute type and why, free memory and disk")
    json_option(parser)
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="make the database anew from the folders of runs and datasets; the old file is kept",
    )
    parser.set_defaults(do=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    """:returns: 2 when something is in the way of working here"""
    if arguments.rebuild:
        _rebuild()
        return 0
    rows, trouble = report(), ""
    try:
        for row in _workspace():
            rows.append(row)
    except StudioError as error:
        trouble = error.text
    if arguments.json:
        notes = [text for name, text in rows if name == "note"]
        say_json({name: text for name, text in rows if name != "note"} | {"notes": notes, "error": trouble})
    else:
        for name, text in rows:
            entry(name, text, GUTTER)
    if trouble:
        print(f"error: {safe(trouble)}", file=sys.stderr)
    return 2 if trouble else 0


def _workspace() -> Iterator[tuple[str, str]]:
    """How the workspace stands. :raises StudioError: with what is in the way of working in it"""
    from plumbline.store import startup
    from plumbline.store.database import database

    yield "workspace", str(home())
    disk = shutil.disk_usage(home())
    yield "disk", f"{disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free in the workspace"
    database()
    if found := opening.damage(opening.database_path()):
        raise opening.UnusableDatabase(f"is damaged ({found})")
    yield "database", "sound"
    for text in (startup.unlisted(), startup.open_to_others()):
        if text:
            yield "note", text


def offered(error: opening.UnusableDatabase) -> bool:
    """Ask at the terminal whether the database is to be made anew, and do it. :returns: whether it was"""
    if not sys.stdin.isatty():
        return False
    say(f"{error.where}: {error.what}.")
    kept = " The old file is kept." if opening.database_path().exists() else ""
    if input(f"Make it anew from the folders of runs and datasets now?{kept} [y/N] ").strip().lower() not in (
        "y",
        "yes",
    ):
        return False
    _rebuild()
    return True


def _rebuild() -> None:
    from plumbline.jobs import workspace_lock
    from plumbline.recovery.database import rebuild

    with workspace_lock.nobody():
        done = rebuild()
    counted = ((done.runs, "run"), (done.datasets, "dataset"), (done.evaluations, "evaluation"))
    runs, datasets, evaluations = (f"{count} {name}{'s'[: count != 1]}" for count, name in counted)
    say(f"The database lists {runs}, {datasets} and {evaluations}.")
    if done.old_file is not None:
        say(f"The old file is kept as {done.old_file}.")
    for remark in done.remarks:
        entry("note", remark, GUTTER)


def report() -> list[tuple[str, str]]:
    """What `plumbline doctor` prints: versions, device, dtype and why, free memory and disk."""
    import psutil

    from plumbline.jobs import mode

    worker = mode.choose(mode.wanted())
    chosen, dtype = device(), compute_dtype(RunConfig())
    rows = versions()
    rows.append(("device", f"{chosen.value}: {chosen.why}"))
    rows.append(("compute type", f"{dtype.value}: {dtype.why}"))
    if chosen.value == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        rows.append(("GPU memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"))
    memory = psutil.virtual_memory()
    rows.append(("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"))
    rows.append(("CPU cores", str(os.cpu_count())))
    rows.append(("worker", f"{worker.value}: {worker.why}"))
    return rows
