"""The command `plumbline`: the command line, with the studio among its verbs."""

import sys

from plumbline import environment
from plumbline.cli.main import main as command_line


def main(arguments: list[str] | None = None) -> int:
    """:param arguments: without the program's name; None takes those of this process"""
    environment.set_defaults()
    return command_line(sys.argv[1:] if arguments is None else arguments, _serve)


def _serve(host: str, port: int, run_id: int | None, worker: str) -> None:
    import gc

    gc.disable()  # nothing made while importing is garbage; serve_studio enables it again
    from plumbline_studio.serve import serve as serve_studio

    serve_studio(host, port, run_id, worker)
