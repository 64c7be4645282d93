"""Helpers that import made-up files, and check that a refusal leaves everything as it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plumbline.data import rows
from plumbline.data.importing.importer import Options, add
from plumbline.data.readers.source_files import Source
from plumbline.errors import StudioError
from plumbline.home import home
from plumbline.store import datasets as store

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
ROOT = Path(__file__).resolve().parents[1]
MOST_CHARACTERS = 400  # of a message, or of one line of it where it lists several


def lines(*values: object) -> bytes:
    """JSON lines; bytes stand as they are."""
    return b"".join(
        (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n" for value in values
    )


def talk(*turns: str) -> dict[str, Any]:
    """A conversation of alternating turns, the user's first."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]}


def source(folder: Path, name: str, content: bytes) -> Source:
    path = folder / f"upload-{len(list(folder.glob('upload-*')))}"
    path.write_bytes(content)
    return Source(path, name)


def stored(
    folder: Path, name: str, content: bytes, held_out: bytes | None = None, **options: Any
) -> dict[str, Any]:
    """Import one file (and a held-out one of the same name). :returns: the dataset"""
    held = [] if held_out is None else [source(folder, name, held_out)]
    return store.get(add([source(folder, name, content)], held, Options(**options)))


def refusal(folder: Path, name: str, content: bytes | Source, **options: Any) -> str:
    """Import a file that must be refused, with nothing stored or left behind. :returns: the message"""
    given = content if isinstance(content, Source) else source(folder, name, content)
    before = _everything()
    with pytest.raises(StudioError) as caught:
        add([given], [], Options(**options))
    assert _everything() == before
    text = caught.value.text
    assert all(len(line) <= MOST_CHARACTERS for line in text.splitlines()), text
    assert "Traceback" not in text and "\\n" not in text
    assert text.endswith((".", "!")), text
    return text


def _everything() -> Any:
    """What the workspace holds: its datasets, and every file but those of the database."""
    listed = store.listed()  # which opens the database, and so makes its files
    found = {
        path.relative_to(home()): path.read_bytes()
        for path in home().rglob("*")
        if path.is_file() and ".db" not in path.name
    }
    return listed, found


def first(dataset: dict[str, Any], part: str = "train") -> dict[str, Any]:
    return rows.page(dataset["id"], part, 0, 1)[0]


def every(dataset: dict[str, Any], part: str = "train") -> list[dict[str, Any]]:
    return rows.page(dataset["id"], part)


def finding(dataset: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return next((found for found in store.findings(dataset) if found["kind"] == kind), None)


def answered(*values: Any) -> bytes:
    """Rows of prompt and completion."""
    return lines(*({"prompt": "x", "completion": value} for value in values))


def growth(path: Path, name: str) -> tuple[str, int, float]:
    """Import a file in a process of its own. :returns: the message, bytes its memory grew by, seconds"""
    code = """
import json, resource, sys, time
from pathlib import Path
from plumbline.data.readers.source_files import Source
from plumbline.data.importing.importer import add
from plumbline.errors import StudioError
import numpy, orjson, pyarrow.parquet, yaml
def held(name):
    # Not ru_maxrss, which a new process takes over from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
before, began, text = held("VmRSS:"), time.monotonic(), "stored"
try:
    add([Source(Path(sys.argv[1]), sys.argv[2])])
except StudioError as error:
    text = error.text
own = held("VmHWM:")
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([text, 1024 * (max(own, children) - before), time.monotonic() - began]))
"""
    command = [sys.executable, "-c", code, str(path), name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    text, grown, seconds = json.loads(done.stdout)
    return text, grown, seconds
