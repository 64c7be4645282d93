"""What a run has measured, as its metrics_history.jsonl has it: nothing else is needed to draw its curves."""

import json

from plumbline.home import run_folder
from plumbline.store import runs
from plumbline.store.records import Values

Point = tuple[int, Values]


def points(run_id: int) -> list[Point]:
    """Steps and values by name, in the order of their writing; a torn line is left out."""
    path = run_folder(run_id, create=False) / "metrics_history.jsonl"
    if not path.is_file():
        return []
    history = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            history.append((int(values.pop("step")), values))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return history


def catch_up(run_id: int) -> None:
    """Give the database what it missed while another program held it; what it has stays as it is."""
    runs.record(run_id, points(run_id))
