"""The rows of the database's tables, by column (`plumbline.store.database` makes them)."""

from typing import Any, Literal, TypedDict

Relation = Literal["branch", "rank", "reproduction"]

# What was measured at a step, by name: numbers, NaN and None among them.
Values = dict[str, Any]


class DatasetRow(TypedDict):
    """:ivar left_out: how many records could not be rows, as text
    :ivar mapping: JSON, as are ``findings``, ``columns`` and ``origin``; None in rows of early versions
    """

    id: int
    name: str
    shape: str
    rows: int
    held_out_rows: int
    sha256: str
    source: str
    left_out: str | None
    created_at: float
    bytes: int | None
    mapping: str | None
    findings: str | None
    columns: str | None
    origin: str | None


class Finding(TypedDict):
    """What a check of a dataset found. :ivar rows: numbers of the first such rows, from 1"""

    kind: str
    text: str
    part: str
    rows: list[int]


class RunRow(TypedDict):
    """:ivar recipe: YAML
    :ivar decisions: JSON, as are ``summary``, ``forecast`` and ``outcome``
    :ivar created_at: seconds since 1970, as are the other times
    """

    id: int
    name: str
    state: str
    phase: str | None
    base: str
    dataset_id: int
    recipe: str
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    base_eval_loss: float | None
    best_eval_loss: float | None
    best_step: int | None
    seconds_left: float | None
    memory_gb: float | None
    device: str | None
    decisions: str | None
    summary: str | None
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    forecast: str | None
    outcome: str | None
    parent: int | None
    parent_step: int | None
    relation: Relation | None


class JobRow(TypedDict):
    """A job as the queue gives it: ``payload`` and ``result`` are decoded."""

    id: int
    kind: str
    run_id: int | None
    state: str
    control: str | None
    phase: str | None
    progress: float
    payload: Any
    result: Any
    error: str | None
    token: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    dataset_id: int | None


class EventRow(TypedDict):
    id: int
    run_id: int | None
    job_id: int | None
    level: str
    text: str
    created_at: float
