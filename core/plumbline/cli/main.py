"""The command line: the same verbs as the page, over the same queue and store.

`main` is given the function that serves the studio, because core knows no user interface: it takes the
address, the port, the run to open, and where jobs are done. Each family of verbs adds its parsers with
`add_verbs`; a parser's default ``do`` is the function that does the verb.
"""

import argparse
import io
import os
import sqlite3
import sys
from collections.abc import Callable

from plumbline import __version__, error_log
from plumbline.cli import data, doctor, forecast, parser, runs, studio, submit, training
from plumbline.cli.terminal import safe
from plumbline.distributed import process_group
from plumbline.errors import StudioError, message_of, system_sentence
from plumbline.home import home
from plumbline.program import command
from plumbline.store.opening import UnusableDatabase

Serve = Callable[[str, int, int | None, str], None]
WRONG, BROKEN, INTERRUPTED = 2, 3, 130  # exit codes, as `parser.EXIT_CODES` explains them


def main(argv: list[str], serve: Serve) -> int:
    """:returns: the exit code, see `parser.EXIT_CODES`"""
    error_log.attach()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can
    whole = build(command())
    arguments = whole.parse_args(parser.verb_first(argv, whole))
    arguments.serve = serve
    rank, _ = process_group.rank_and_size()
    if rank:
        return _follow() if arguments.trains else 0
    try:
        done = _done(arguments)
        process_group.dismiss()
        return done
    except BrokenPipeError:
        # The reader, such as head, has seen enough; Python must not complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _refused(error)


def _done(arguments: argparse.Namespace) -> int:
    """Do the verb; where the database is in its way, once more when the user has let it be made anew."""
    try:
        return _do(arguments)
    except UnusableDatabase as error:
        if not error.rebuilt or getattr(arguments, "json", False) or not doctor.offered(error):
            raise
        return _do(arguments)


def _do(arguments: argparse.Namespace) -> int:
    if arguments.samples:
        from plumbline.data.selection import datasets

        datasets.ensure_samples()
    return int(arguments.do(arguments))


def _refused(error: Exception) -> int:
    """Say what went wrong. :returns: the exit code"""
    text, code = message_of(error), WRONG
    if isinstance(error, OSError | sqlite3.Error) and system_sentence(error) is not None:
        text += _workspace()
    elif not isinstance(error, StudioError | MemoryError):
        code = BROKEN
    print(f"error: {safe(text)}", file=sys.stderr)
    return code


def _workspace() -> str:
    """A sentence that says where the disk or the database is."""
    try:
        return f" The workspace is {home()}."
    except (OSError, StudioError):
        return ""


def build(program: str) -> argparse.ArgumentParser:
    """The parser of the whole command line. :param program: the words before the verb"""
    whole = parser.Parser(
        prog=program, description="QLoRA fine-tuning that shows its work. Without a verb: the studio."
    )
    whole.add_argument("--version", action="version", version=f"Plumbline {__version__}")
    whole.add_argument(
        "--print-completion",
        action=parser.Completion,
        build=build,
        choices=parser.SHELLS,
        help="print what completes the command `plumbline` in this shell",
    )
    whole.set_defaults(verb="studio", trains=False, samples=False)
    verbs = whole.add_subparsers(dest="verb", metavar="VERB")
    studio.add_verbs(verbs, whole)
    for family in (training, forecast, data, runs, submit, doctor):
        family.add_verbs(verbs)
    test = verbs.add_parser("test", help="run every test (python3 launch.py test, from a checkout)")
    test.set_defaults(do=_test)
    parser.shorten(whole)
    return whole


def _follow() -> int:
    """What a launcher starts beside the first process computes with it, and has no workspace."""
    from plumbline.jobs import process
    from plumbline.worker import follower

    process.live_with_parent()
    return follower.serve()


def _test(arguments: argparse.Namespace) -> int:
    raise StudioError("test", "needs a checkout of the source", "Run python3 launch.py test there.")
