"""What the folder of a run, a dataset or an export tells of it where no record stands in it.

Earlier versions wrote none. What a folder cannot tell (a dataset's name when no run names it, a run's
parent) is not guessed.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from plumbline.config.schema import RunConfig, dumps, loads
from plumbline.errors import StudioError
from plumbline.files import sha256_of
from plumbline.home import home
from plumbline.store import history

_EXPORT = re.compile(r"run-(\d+)-(adapter|merged)\.zip")


def dataset(number: int, names: dict[str, str], samples: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The row of a dataset; None for a folder without rows.

    :param names: what datasets are called, by checksum
    :param samples: the rows of the samples, by checksum
    """
    folder = home() / "datasets" / str(number)
    train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
    if not train.is_file():
        return None
    sha256 = _content(train, held_out)
    made = train.stat().st_mtime
    if sha256 in samples:
        return {**samples[sha256], "id": number, "created_at": made}
    rows, kinds, columns = _looked_through(train)
    return {
        "id": number,
        "name": names.get(sha256) or f"dataset-{number}",
        "shape": "text" if "text" in kinds else "preference" if "rejected" in kinds else "messages",
        "rows": rows,
        "held_out_rows": _looked_through(held_out)[0] if held_out.is_file() else 0,
        "sha256": sha256,
        "source": f"found in datasets/{number}",
        "left_out": "0",
        "bytes": sum(path.stat().st_size for path in (train, held_out) if path.is_file()),
        "mapping": "",
        "findings": "[]",
        "columns": json.dumps([name for name in ("label", "group") if name in kinds] + columns),
        "origin": "{}",
        "created_at": made,
    }


def _content(train: Path, held_out: Path) -> str:
    """The checksum of a dataset's rows, as its import took it."""
    parts = sha256_of(train) + (sha256_of(held_out) if held_out.is_file() else "")
    return hashlib.sha256(parts.encode()).hexdigest()


def _looked_through(path: Path) -> tuple[int, set[str], list[str]]:
    """How many rows there are, what they have, and the columns that were kept beside them."""
    rows, kinds, columns = 0, set[str](), set[str]()
    with open(path, "rb") as file:
        for line in file:
            rows += 1
            try:
                row = orjson.loads(line)
                kinds |= row.keys()
                columns |= row.get("columns", {}).keys()
            except (ValueError, AttributeError):
                continue  # whoever reads the row says what is wrong with it
    return rows, kinds, sorted(columns)


def names_of_datasets(run_ids: set[int]) -> dict[str, str]:
    """What the datasets that runs have learned from are called, by checksum."""
    names = {}
    for run_id in sorted(run_ids):
        parts = _json(home() / "runs" / str(run_id) / "data.json")
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and isinstance(part.get("dataset"), str):
                names[str(part.get("sha256"))] = part["dataset"]
    return names


def run(number: int) -> dict[str, Any] | None:
    """The row of a run without its dataset's id; None for a folder that nothing was trained in."""
    folder = home() / "runs" / str(number)
    config = _recipe(folder)
    if config is None:
        return None
    metadata = _json(folder / "artifact" / "metadata.json") or {}
    summary = _json(folder / "training_summary.json") or {}
    ended = bool(summary) and summary.get("steps") == summary.get("total_steps")
    device = (metadata.get("environment") or {}).get("device")
    recipe = next(path for path in _recipes(folder) if path.is_file())
    state = ("completed" if ended else "stopped") if summary else "interrupted"
    return {
        "id": number,
        "name": str(metadata.get("name") or config.display_name),
        "state": state,
        "base": config.model.base,
        "recipe": dumps(config),
        "total_steps": summary.get("total_steps") or _planned_steps(folder),
        "device": device and ("cpu" if device == "cpu" else "cuda"),
        "decisions": json.dumps(metadata["decisions"]) if "decisions" in metadata else None,
        "summary": json.dumps(summary) if summary else None,
        "error": None if summary else "The process that worked on it ended.",
        "created_at": recipe.stat().st_mtime,
        "finished_at": (folder / "training_summary.json").stat().st_mtime if summary else None,
    } | figures(history.points(number))


def dataset_of(number: int) -> tuple[str | None, str]:
    """The checksum, where it is known, and the name of the first dataset that a run learns from."""
    folder = home() / "runs" / str(number)
    parts = _json(folder / "data.json")
    if isinstance(parts, list) and parts and isinstance(parts[0], dict):
        return str(parts[0].get("sha256")), str(parts[0].get("dataset"))
    config = _recipe(folder)
    return None, config.data.parts[0].dataset if config else ""


def _recipes(folder: Path) -> list[Path]:
    return [folder / "recipe.yaml", folder / "artifact" / "training_config.yaml"]


def _recipe(folder: Path) -> RunConfig | None:
    for path in _recipes(folder):
        try:
            return loads(path.read_text(encoding="utf-8"), str(path))
        except (OSError, ValueError, StudioError):
            continue
    return None


def _planned_steps(folder: Path) -> int | None:
    states = sorted(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))
    trainer_states = (_json(path) or {} for path in states)
    return max((int(state.get("max_steps") or 0) for state in trainer_states), default=0) or None


def figures(measured: list[history.Point]) -> dict[str, Any]:
    """What a run's row says of its points."""
    columns: dict[str, Any] = {"step": max((step for step, _ in measured), default=0)}
    for step, values in sorted(measured, key=lambda point: point[0]):
        for name in ("loss", "memory_gb", "eval_loss"):
            if (value := values.get(name)) is not None and abs(value) < float("inf"):
                columns[name] = value
                if name == "eval_loss" and step == 0:
                    columns["base_eval_loss"] = value
                elif name == "eval_loss" and value < columns.get("best_eval_loss", float("inf")):
                    columns |= {"best_eval_loss": value, "best_step": step}
    return columns


def exports(numbers: set[int]) -> Iterator[dict[str, Any]]:
    """The jobs that made the exports which are there, as far as their files tell."""
    for number in sorted(numbers):
        for path in sorted((home() / "exports" / str(number)).glob("run-*.zip")):
            if match := _EXPORT.fullmatch(path.name):
                result = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
                if match[2] == "merged":
                    result["folder"] = path.stem
                made = path.stat().st_mtime
                yield {
                    "id": number,
                    "kind": "adapter" if match[2] == "adapter" else "merge",
                    "run_id": int(match[1]),
                    "state": "completed",
                    "progress": 1.0,
                    "payload": "{}",
                    "result": json.dumps(result),
                    "created_at": made,
                    "finished_at": made,
                }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
