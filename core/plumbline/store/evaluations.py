"""Finished evaluations: one result and the answers behind it, row by row."""

import json
import time
from typing import Any

from plumbline.store import sidecars
from plumbline.store.database import database, insert, writing


def add(run_id: int, dataset_id: int, job_id: int, result: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    with writing() as db:
        known = db.execute("select coalesce(max(id), 0) from evaluations").fetchone()[0]
        numbers_of_sidecars = (int(path.stem) for path in sidecars.evaluation_places(run_id))
        evaluation_id = insert(
            "evaluations",
            {
                "id": 1 + max(known, *numbers_of_sidecars, 0),
                "run_id": run_id,
                "dataset_id": dataset_id,
                "job_id": job_id,
                "rows": result["rows"],
                "result": json.dumps(result),
                "created_at": time.time(),
            },
        )
        db.table("evaluation_rows").insert_all(
            {"evaluation_id": evaluation_id, "row": number, **row} for number, row in enumerate(rows)
        )
        sidecars.note("evaluation", evaluation_id)
    return evaluation_id


def latest(run_id: int) -> dict[str, Any] | None:
    """The newest evaluation of a run with ``result`` decoded, or None."""
    newest = database().table("evaluations").rows_where("run_id = ?", [run_id], order_by="id desc", limit=1)
    for row in newest:
        return {**row, "result": json.loads(row["result"])}
    return None


def answers(evaluation_id: int) -> list[dict[str, Any]]:
    """The rows behind an evaluation; those whose score changed most stand first."""
    return list(
        database()
        .table("evaluation_rows")
        .rows_where(
            "evaluation_id = ?", [evaluation_id], order_by="abs(adapter_score - base_score) desc, row"
        )
    )
