"""The command `plumbline`: the command line, with the studio among its verbs."""

import sys

from plumbline import environment, program
from plumbline.cli.main import main as command_line
from plumbline.errors import StudioError

PAGE = ("gradio", "plotly", "fastapi", "uvicorn")  # the packages of the extra [studio]


def main(arguments: list[str] | None = None) -> int:
    """:param arguments: without the program's name; None takes those of this process"""
    environment.set_defaults()
    environment.quiet_libraries()
    program.started_as(sys.argv[0])
    return command_line(sys.argv[1:] if arguments is None else arguments, _serve)


def _serve(host: str, port: int, run_id: int | None, worker: str) -> None:
    """:raises StudioError: when the packages of the page are not installed"""
    import gc

    gc.disable()  # nothing made while importing is garbage; serve_studio enables it again
    try:
        from plumbline_studio import gradio_import  # noqa: F401
        from plumbline_studio.serve import serve as serve_studio
    except ModuleNotFoundError as error:
        if error.name not in PAGE:
            raise
        raise StudioError(
            "studio",
            f"needs the packages of the page, and {error.name} is not installed",
            'Install them: pip install "plumbline-studio[studio]".',
        ) from None
    serve_studio(host, port, run_id, worker)
