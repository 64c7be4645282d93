"""How a Python program of Plumbline's own is started beside this one."""

import sys

# It finds modules where this process does, and only there: left to itself, Python looks into the caller's
# folder first, where a file may have the name of a module.
START = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from MODULE import main; main()"


def python_command(module: str, *options: str) -> list[str]:
    """The command that runs a module's ``main``.

    :param options: what it finds in ``sys.argv`` from 1 on
    """
    return [sys.executable, "-c", START.replace("MODULE", module), search_path("\n"), *options]


def search_path(separator: str) -> str:
    """Where this process finds modules, without the folder that it was started in."""
    return separator.join(filter(None, sys.path))
