#!/usr/bin/env python3
"""Start Plumbline: prepare the environment on first use, then the studio or another verb.

Needs only the standard library until the environment exists. In an environment that already
has the requirements (conda, a Space, a container) it uses that one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements.txt"
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
LAST_LINES = 20  # that are shown of a preparation that failed
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 (this file runs before anything is checked)
        print("error: Plumbline needs Python 3.10 or newer.", file=sys.stderr)
        return 2
    arguments = sys.argv[1:]
    try:
        python = prepare()
        if (rest := of_test(arguments)) is not None:
            return test(python, rest)
    except subprocess.CalledProcessError as error:
        print(
            f"error: `{' '.join(map(str, error.cmd[:6]))} ...` failed. See above; "
            "running the same command again goes on from there.",
            file=sys.stderr,
        )
        return 2
    if Path(sys.executable) == python:
        return run(arguments)
    command = [str(python), str(ROOT / "launch.py"), *arguments]
    if os.name == "nt":
        return subprocess.call(command)
    os.execv(command[0], command)


def of_test(arguments: list[str]) -> list[str] | None:
    """What is given to the verb ``test``, before it or after it; None for another verb."""
    options = [word for word in arguments if word.startswith("-")]
    place = next((place for place, word in enumerate(arguments) if word not in options), None)
    if place is None or arguments[place] != "test":
        return None
    return arguments[:place] + arguments[place + 1 :]


def run(arguments: list[str]) -> int:
    """Hand over to the command line, with the source roots in front of whatever is installed."""
    sys.path[:0] = [str(ROOT / "core"), str(ROOT / "studio")]
    from plumbline_studio.main import main as command_line

    return command_line(arguments)


def prepare() -> Path:
    """The interpreter to run with; makes .venv from requirements.txt where that is needed."""
    inside = Path(sys.prefix) == VENV
    if not inside and satisfied():
        return Path(sys.executable)
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("Preparing .venv, once.", flush=True)
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(VENV, ignore_errors=True)
            print(
                "error: this Python cannot create environments. On Debian: apt install python3-venv",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
    install(python, REQUIREMENTS)
    return python


def satisfied() -> bool:
    """Whether this interpreter has every package of pyproject.toml at its floor or newer."""
    for name, floor in floors().items():
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        if _numbers(have) < _numbers(floor):
            return False
    return True


def floors() -> dict[str, str]:
    """The lowest version of every package that the command line and the page need."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = (text.split(f"\n{head} = [", 1)[1].split("\n]", 1)[0] for head in ("dependencies", "studio"))
    return dict(re.findall(r'"([\w.-]+)>=([\d.]+)', "".join(blocks)))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def install(python: Path, requirements: Path) -> None:
    """pip install, unless these very requirements are installed already."""
    stamp = VENV / f"installed-{requirements.parent.name}-{requirements.stem}"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    title = f"Installing {requirements.relative_to(ROOT)}, once and again when it changes"
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(requirements)]
    quietly(title, command)
    if VENV.exists():
        stamp.write_text(wanted, encoding="utf-8")


def quietly(title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command behind one line that says how far it is; what it prints goes to a log file.

    :raises subprocess.CalledProcessError: when it fails, after its last lines and the log's name were printed
    """
    log, began, last = _log_file(), time.monotonic(), [""] * LAST_LINES
    if not sys.stdout.isatty():
        print(f"{title}.", flush=True)
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            last = [*last[1:], line.rstrip()]
            _show(f"{title} ({time.monotonic() - began:.0f} s): {line.strip()}")
    _show("")
    if process.returncode:
        print("\n".join(filter(None, last)), f"All of it is in {log}.", sep="\n", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)


def _log_file() -> Path:
    """Where a preparation's lines are kept: under .venv, or in a file of its own where there is none."""
    if VENV.is_dir() and os.access(VENV, os.W_OK):
        return VENV / "install.log"
    number, name = tempfile.mkstemp(prefix="plumbline-install-", suffix=".log")
    os.close(number)
    return Path(name)


def _show(text: str) -> None:
    """One line of a terminal, written over; nothing in a file or a pipe."""
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 1
        print("\r\x1b[K" + "".join(filter(str.isprintable, text))[:room], end="", flush=True)


def test(python: Path, arguments: list[str]) -> int:
    """Install what the tests need, find or fetch a browser, run pytest on two cores.

    ``--all`` includes the slow tests; other arguments go to pytest, so ``-n 0`` runs them one by one.
    """
    install(python, TEST_REQUIREMENTS)
    environment = {**os.environ, "PLUMBLINE_CHROMIUM": browser(python)}
    proxies()
    marks = "not gpu" if "--all" in arguments else "not gpu and not slow"
    rest = [argument for argument in arguments if argument != "--all"]
    # Tests of a file share a model; two workers with one each take about 6 GiB.
    workers = ["-n", "2", "--dist", "loadfile"] if (os.cpu_count() or 1) > 1 else []
    command = [str(python), "-m", "pytest", "-m", marks, *workers, *rest]
    return subprocess.call(command, cwd=ROOT, env=environment)


def browser(python: Path) -> str:
    """The path of a Chromium; empty when Playwright brings its own."""
    found = os.environ.get("PLUMBLINE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        return found
    if can_apt():
        apt("chromium")  # without what it recommends: printers, sound
        return shutil.which("chromium") or ""
    quietly("Fetching a browser for the tests", [str(python), "-m", "playwright", "install", "chromium"])
    return ""


def proxies() -> None:
    """nginx and Caddy, whose examples in the README the tests run; told when they cannot be had."""
    for name in ("nginx", "caddy"):
        if shutil.which(name):
            continue
        if can_apt():
            apt(name)
        else:
            print(f"{name} is not installed: the README's example for it is not run.", flush=True)


def can_apt() -> bool:
    return bool(shutil.which("apt-get")) and hasattr(os, "geteuid") and os.geteuid() == 0


def apt(package: str) -> None:
    title = f"Installing {package} with apt-get"
    quietly(title, ["apt-get", "update", "-qq"])
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quietly(title, ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], quiet)


if __name__ == "__main__":
    raise SystemExit(main())
