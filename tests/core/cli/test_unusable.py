"""A workspace that cannot be used: every verb says so in a sentence and ends with 2; nothing is lost."""

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plumbline.cli import doctor, main
from plumbline.store import database as store
from plumbline.store.database import database
from plumbline_studio.serve import serve
from tests import ROOT, old_workspace
from tests.verbs import verbs

pytestmark = pytest.mark.skipif("sys.platform == 'win32'", reason="needs the rights of POSIX")
FILE = ROOT / "assets" / "samples" / "ticket-triage" / "train.jsonl"
COMMANDS = {
    "studio": ["studio", "--port", "0", "--worker", "thread"],
    "quickstart": ["quickstart", "--headless"],
    "train": ["train", "starter"],
    "forecast": ["forecast", "starter"],
    "data": ["data"],
    "data add": ["data", "add", str(FILE)],
    "data add --preview": ["data", "add", str(FILE), "--preview"],
    "data show": ["data", "show", "squares"],
    "data xray": ["data", "xray", "squares", "--row", "1"],
    "data check": ["data", "check", "squares", "--near"],
    "data mix": ["data", "mix", "squares:2,cubes"],
    "data rename": ["data", "rename", "squares", "roots"],
    "data remove": ["data", "remove", "squares", "--yes"],
    "resume": ["resume", "2"],
    "branch": ["branch", "1", "--step", "2"],
    "reproduce": ["reproduce", "1"],
    "check": ["check", "1"],
    "submit": ["submit", "1", "--slurm", "--machines.gpus", "1"],
    "evaluate": ["evaluate", "1"],
    "merge": ["merge", "1"],
    "export": ["export", "1"],
    "show": ["show", "1"],
    "runs": ["runs"],
    "delete": ["delete", "2", "--yes"],
    "doctor": ["doctor"],
    "doctor --rebuild": ["doctor", "--rebuild"],
}
# What only looks may have its answer where nothing can be written.
LOOKING = ("data", "data show", "data mix", "data xray", "data check", "runs", "show", "forecast", "doctor")


def test_every_verb_is_walked() -> None:
    assert {words[0] for words in COMMANDS.values()} == verbs() - {"test"}
    assert {words[1] for words in COMMANDS.values() if words[0] == "data" and words[1:]} == verbs("data")


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Another user may not read the libraries of this one."""
    doctor.report()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user of the machine may enter, as those of pytest are not."""
    made = Path(tempfile.mkdtemp(prefix="unusable-"))
    made.chmod(0o755)
    yield made
    for path in [made, *made.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(made)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def no_room() -> Iterator[None]:
    """No file can grow: every write fails, as on a disk that is full or broken."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def refused(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """:returns: the sentence"""
    code = main.main(words, serve)
    told = capsys.readouterr().err.strip()
    assert code == 2 and "Traceback" not in told and "Internal error" not in told, told
    assert told.splitlines()[-1].startswith("error: ") and told.endswith((".", "`.")), told
    return told


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["a file", "a dangling link", "a path that is too long", "no permission"])
def test_a_workspace_that_cannot_be_made(
    place: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    home = place / "home"
    if kind == "a file":
        home.write_text("not a workspace")
    elif kind == "a dangling link":
        home.symlink_to(place / "missing" / "disk")
    elif kind == "a path that is too long":
        home = place.joinpath(*["x" * 200] * 30)
    else:
        place.chmod(0o555)
    monkeypatch.setenv("PLUMBLINE_HOME", str(home))
    with unprivileged():
        told = refused(COMMANDS[name], capsys)
    assert f"workspace {str(home)[:60]}" in told and "PLUMBLINE_HOME" in told
    assert kind != "a file" or home.read_text() == "not a workspace"
    assert kind != "a dangling link" or not (place / "missing").exists()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["may only be read", "has no room"])
def test_a_workspace_that_cannot_be_written(
    place: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    home = place / "home"
    old_workspace.make(home)
    monkeypatch.setenv("PLUMBLINE_HOME", str(home))
    assert main.main(["runs"], serve) == main.main(["data"], serve) == 0  # it is one of this version now
    for connection in connections():
        connection.close()
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    if kind == "may only be read":
        for path in [home, *home.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    capsys.readouterr()
    with unprivileged() if kind == "may only be read" else no_room():
        code = main.main(COMMANDS[name], serve)
    told = capsys.readouterr().err
    assert "Traceback" not in told and "Internal error" not in told, told
    assert (
        code == 2 and told.strip().splitlines()[-1].startswith("error: ") or (code == 0 and name in LOOKING)
    ), (code, told)
    assert {path: path.read_bytes() for path in before} == before


def connections() -> Iterator[Any]:
    """This thread's connection, which is forgotten: the next command opens its own, as a new process does."""
    yield database().conn
    del store._local.path
