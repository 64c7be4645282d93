"""``plumbline studio``, and the options of every verb that may open the studio."""

import argparse
import os
from typing import Any

from plumbline.cli.parser import whole
from plumbline.errors import StudioError
from plumbline.jobs import mode

PORT = 7860
MOST_PORT = 65_535


def add_verbs(verbs: Any, parser: argparse.ArgumentParser) -> None:
    """:param parser: the whole command's, which opens the studio when no verb is given"""
    for target in (parser, verbs.add_parser("studio", help="open the studio in a browser (the default)")):
        serving_options(target)
        target.set_defaults(do=studio)


def serving_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        nargs="?",
        const="0.0.0.0",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="answer other machines too; needs PLUMBLINE_AUTH=user:password",
    )
    parser.add_argument(
        "--port",
        type=whole(0, MOST_PORT),
        metavar="N",
        help=f"to listen on (GRADIO_SERVER_PORT, or {PORT}); 0 takes a free one",
    )
    parser.add_argument(
        "--worker",
        choices=mode.MODES,
        default=mode.wanted(),
        help="do jobs in processes of their own or in a thread of the studio's (PLUMBLINE_WORKER, or auto)",
    )


def studio(arguments: argparse.Namespace) -> int:
    return serve(arguments, None)


def serve(arguments: argparse.Namespace, run_id: int | None) -> int:
    """:param run_id: the run that the printed address opens"""
    port = _usual_port() if arguments.port is None else arguments.port
    arguments.serve(arguments.listen, port, run_id, arguments.worker)
    return 0


def _usual_port() -> int:
    text = os.environ.get("GRADIO_SERVER_PORT") or str(PORT)
    if not (text.isascii() and text.isdecimal() and int(text) <= MOST_PORT):
        what = f"takes a whole number from 0 to {MOST_PORT}, got {text!r}"
        raise StudioError("GRADIO_SERVER_PORT", what, "Change it, or give --port.")
    return int(text)
