"""kill -9 in the middle of a run, through the command line: it resumes and loses nothing.

A hundred of them, at chosen moments, are in test_kills.py.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plumbline.config import schema
from plumbline.store import runs
from tests import ROOT
from tests.runs import recipe

STEPS = 16


def start(home: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        env={**os.environ, "PLUMBLINE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def done(process: subprocess.Popen) -> str:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def curve(run_id: int) -> list[tuple]:
    return [(p["step"], p["loss"], p["eval_loss"], p["grad_norm"]) for p in runs.metrics(run_id)]


@pytest.fixture(params=[0.0, 0.1], ids=["decoder", "autograd"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    # With dropout the state of the random generator counts; evaluations and saves in between.
    config = recipe(
        training={"max_steps": STEPS, "eval_steps": 4, "save_steps": 3},
        lora={"dropout": request.param, "r": 8},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(schema.dumps(config))
    return path


def test_a_killed_run_is_interrupted_and_resumes_to_the_uninterrupted_curve(
    workspace: Path, file: Path
) -> None:
    done(start(workspace, "train", str(file)))
    killed = start(workspace, "train", str(file))
    deadline = time.monotonic() + 120
    while not any(run["id"] == 2 and (run["step"] or 0) >= 8 for run in runs.listed()):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert runs.get(2)["state"] == "running"  # as the dead process left it

    listed = done(start(workspace, "runs"))
    assert "interrupted" in listed
    assert runs.get(2)["state"] == "interrupted"

    done(start(workspace, "resume", "2"))
    assert runs.get(2)["state"] == "completed"
    assert any("resumed from step" in event["text"] for event in runs.events(2))
    assert curve(2) == curve(1)
    assert [step for step, *_ in curve(2)] == list(range(STEPS + 1))
