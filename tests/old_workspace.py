"""A workspace as commit 98131f9 left it, written file by file: no record stands beside its database."""

import hashlib
import json
import shutil
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from plumbline.config import schema
from plumbline.store.database import migrations

EPOCH = 1_760_000_000.0
STATES = {1: "completed", 2: "stopped", 3: "failed"}
NAMES = {1: "squares", 2: "cubes"}
RECORDS = ("run.json", "dataset.json")


def make(home: Path) -> Path:
    """Write the workspace. :returns: an older copy of its database, which has one run and one dataset"""
    home.mkdir(parents=True)
    older = home.parent / "older.db"
    db = Database(sqlite3.connect(home / "plumbline.db"))
    db.enable_wal()
    migrations.apply(db, stop_before="m010_workspace")
    for number in NAMES:
        db.table("datasets").insert(_dataset(home, number))
        _run(db, home, number)
        if number == 1:
            db.conn.execute("pragma wal_checkpoint(truncate)")
            shutil.copy(home / "plumbline.db", older)
    _run(db, home, 3)
    _evaluation(db)
    (home / "exports" / "4").mkdir(parents=True)
    with zipfile.ZipFile(home / "exports" / "4" / "run-1-adapter.zip", "w") as bundle:
        bundle.writestr("run-1-adapter/adapter_model.safetensors", "weights of run 1")
    result = json.dumps({"file": "run-1-adapter.zip", "bytes": 1, "sha256": "0" * 64})
    db.table("jobs").insert(_job(4, "adapter", 1, "completed") | {"result": result})
    db.conn.execute("pragma wal_checkpoint(truncate)")
    db.conn.close()
    return older


def _dataset(home: Path, number: int) -> dict[str, Any]:
    place = home / "datasets" / str(number)
    place.mkdir(parents=True)
    power = number + 1
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"{n} to the power of {power}?"},
                    {"role": "assistant", "content": f"{n**power}."},
                ]
            },
            separators=(",", ":"),
        )
        for n in range(24)
    ]
    (place / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    digest = hashlib.sha256((place / "train.jsonl").read_bytes()).hexdigest()
    return {
        "id": number,
        "name": NAMES[number],
        "shape": "mapped exchange",
        "rows": 24,
        "held_out_rows": 0,
        "sha256": hashlib.sha256(digest.encode()).hexdigest(),
        "source": "x.csv",
        "left_out": "0",
        "findings": "[]",
        "columns": "[]",
        "origin": "{}",
        "created_at": EPOCH,
    }


def recipe(dataset: str) -> schema.RunConfig:
    return schema.validated({"data": {"dataset": dataset}, "training": {"max_steps": 4}})


def _run(db: Database, home: Path, number: int) -> None:
    dataset_id = min(number, 2)
    dataset = db.table("datasets").get(dataset_id)
    config, state = recipe(dataset["name"]), STATES[number]
    place = home / "runs" / str(number)
    (place / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (place / "checkpoints" / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({"max_steps": 4}))
    (place / "recipe.yaml").write_text(schema.dumps(config), encoding="utf-8")
    named = {"dataset": dataset["name"], "sha256": dataset["sha256"]}
    (place / "data.json").write_text(json.dumps([named]))
    steps = {"completed": 4, "stopped": 2, "failed": 3}[state]
    points = [{"step": 0, "eval_loss": 3.0}]
    points += [{"step": step, "loss": 3.0 - step / 4, "grad_norm": 1.0} for step in range(1, steps + 1)]
    points.append({"step": 2, "eval_loss": 2.25})
    history = "".join(json.dumps(point) + "\n" for point in points)
    (place / "metrics_history.jsonl").write_text(history + ('{"step": 4, "lo' if state == "failed" else ""))
    summary = None
    if state != "failed":
        summary = {"steps": steps, "total_steps": 4, "base_eval_loss": 3.0, "eval_loss": 2.25}
        (place / "training_summary.json").write_text(json.dumps(summary))
        (place / "artifact").mkdir()
        (place / "artifact" / "adapter_model.safetensors").write_text(f"weights of run {number}")
        (place / "artifact" / "training_config.yaml").write_text(schema.dumps(config), encoding="utf-8")
        about = {"name": config.display_name, "run": number, "environment": {"device": "cpu"}}
        decisions = {"device": {"value": "cpu", "why": "no GPU"}}
        (place / "artifact" / "metadata.json").write_text(json.dumps({**about, "decisions": decisions}))
    row = {"id": number, "name": config.display_name, "state": state, "base": config.model.base}
    row |= {"dataset_id": dataset_id, "recipe": schema.dumps(config), "step": steps, "total_steps": 4}
    row |= {"loss": 3.0 - steps / 4, "eval_loss": 2.25, "base_eval_loss": 3.0, "created_at": EPOCH}
    row |= {"best_eval_loss": 2.25, "best_step": 2, "summary": summary and json.dumps(summary)}
    if number == 2:
        row |= {"parent": 1, "parent_step": 2, "relation": "branch"}
    db.table("runs").insert(row)
    db.table("jobs").insert(_job(number, "train", number, state))
    merged: dict[int, dict[str, Any]] = {}
    for point in points:
        merged.setdefault(int(point["step"]), {"run_id": number, "created_at": EPOCH}).update(point)
    db.table("metrics").insert_all(merged.values())
    said = {"run_id": number, "job_id": number, "level": "info", "text": f"train {state}"}
    db.table("events").insert(said | {"created_at": EPOCH})


def _job(number: int, kind: str, run_id: int, state: str) -> dict[str, Any]:
    job = {"id": number, "kind": kind, "run_id": run_id, "state": state, "payload": "{}"}
    return job | {"progress": 1.0, "token": f"click {number}", "created_at": EPOCH}


def _evaluation(db: Database) -> None:
    result = {"rows": 1, "base": {"loss": 3.0}, "adapter": {"loss": 2.0}}
    about = {"id": 1, "run_id": 1, "dataset_id": 1, "job_id": 1, "rows": 1, "created_at": EPOCH}
    db.table("evaluations").insert(about | {"result": json.dumps(result)})
    answer = {"evaluation_id": 1, "row": 0, "prompt": "2 to the power of 2?", "reference": "4."}
    answer |= {"base_answer": "5.", "adapter_answer": "4.", "base_score": 0.0, "adapter_score": 1.0}
    db.table("evaluation_rows").insert(answer)


def harm(home: Path, kind: str, older: Path) -> bytes:
    """Do something to the database. :returns: what the file holds then"""
    path = home / "plumbline.db"
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    whole = path.read_bytes()
    if kind == "deleted":
        path.unlink()
        return b""
    if kind == "older":
        shutil.copy(older, path)
    else:
        made = {"emptied": b"", "truncated": whole[: len(whole) // 2 - 100]}
        made["garbled"] = bytes(range(256)) * 99
        path.write_bytes(made[kind])
    return path.read_bytes()


def digests(home: Path) -> dict[str, str]:
    """Every file of runs, datasets and exports by its content, but the records that this version adds."""
    found = (path for name in ("runs", "datasets", "exports") for path in (home / name).rglob("*"))
    files = (path for path in found if path.is_file() and path.name not in RECORDS)
    return {
        path.relative_to(home).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.parent.name != "evaluations" and path.suffix != ".npy"  # indexes are made when rows are read
    }
