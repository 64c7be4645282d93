"""F01: a hundred runs killed at seeded moments; each resumes to the curve of the run nothing happened to."""

import json
import random
from dataclasses import replace

import pytest

from plumbline.jobs import queue
from plumbline.store import runs
from tests.faults.conftest import COUNTED, PATHS, Workspace
from tests.faults.forked import Fault, curve, healthy

STEPS, SAVE_STEPS = 12, 3
CALLS = {"save": "/checkpoints", "database": "plumbline.db"}
PLACES = ["before", "after"]
SEEDS = {"step": 40, "save": 40, "database": 20}
ALWAYS = {("step", 0), ("step", 1), ("save", 0), ("save", 1), ("database", 0)}


def cases() -> list:
    return [
        pytest.param(
            where,
            seed,
            id=f"F01-{where}-{seed}",
            marks=[] if (where, seed) in ALWAYS else [pytest.mark.slow],
        )
        for where, count in SEEDS.items()
        for seed in range(count)
    ]


def moment(where: str, seed: int, tiny: Workspace) -> tuple[str, Fault]:
    """The training path, and when its process is killed."""
    draw = random.Random(f"{where} {seed}")
    if where == "step":
        return list(PATHS)[seed % 2], Fault(number=draw.randint(1, STEPS), place=draw.choice(PLACES))
    return COUNTED[CALLS[where]], Fault(CALLS[where], draw.randint(1, tiny.whole.calls[CALLS[where]]))


@pytest.mark.parametrize(("where", "seed"), cases())
def test_a_killed_run_resumes_to_the_curve_of_an_uninterrupted_one(
    tiny: Workspace, where: str, seed: int
) -> None:
    path, fault = moment(where, seed, tiny)
    while True:
        run_id, job_id = tiny.add(path)
        code, made = tiny.run(job_id, fault)
        if code == -9 and runs.get(run_id)["state"] != "completed":
            break
        # What is written at most once a second is written less often in a faster run: it had ended.
        fault = replace(fault, number=fault.number * 3 // 4)
    queue.mark_orphans()
    state = runs.get(run_id)["state"]
    assert state in ("interrupted", "queued") and healthy()
    # A kill before the job was taken up leaves it in the queue, where it still is.
    code, _ = tiny.run(job_id if state == "queued" else queue.resume_run(run_id))
    assert code == 0
    run = runs.get(run_id)
    assert (run["state"], run["error"]) == ("completed", None)
    assert curve(run_id) == tiny.whole.curves[path]
    assert losses_of_history(tiny, run_id) == [point[:2] for point in curve(run_id) if point[1] is not None]
    assert healthy()
    resumed = [event["text"] for event in runs.events(run_id) if event["text"].startswith("resumed from")]
    from_step = int(resumed[0].split()[3].rstrip(";")) if resumed else 0
    # The step that was being computed counts too.
    assert made - from_step <= SAVE_STEPS


def losses_of_history(tiny: Workspace, run_id: int) -> list[tuple[int, float]]:
    path = tiny.checkpoints(run_id).with_name("metrics_history.jsonl")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
