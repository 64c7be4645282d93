"""A run of several processes, over gloo on a CPU: what becomes of it when one of them goes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from plumbline import python_process
from plumbline.config import schema
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.training.ranks import launcher
from tests import ROOT
from tests.faults.test_world import _free_port
from tests.faults.waiting import ended, until, working
from tests.runs import add, recipe

TWO = {"gpus": 2}
STEPS = 12


def two(**sections: Any) -> schema.RunConfig:
    training = {"max_steps": STEPS, "effective_batch": 6, "micro_batch_tokens": 256}
    training |= {"eval_steps": 4, "save_steps": 3} | sections.pop("training", {})
    return recipe(training=training, machines=TWO, **sections)


def processes(module: str) -> list[psutil.Process]:
    """Those of this test that run a module."""
    alive = [one for one in psutil.Process().children(recursive=True) if one.status() != "zombie"]
    return [one for one in alive if any(f"from {module} import" in part for part in one.cmdline())]


def curve(run_id: int) -> list[tuple[Any, ...]]:
    return [(p["step"], p["loss"], p["eval_loss"], p["grad_norm"]) for p in runs.metrics(run_id)]


def at_step(run_id: int, step: int) -> None:
    until(lambda: (runs.get(run_id)["step"] or 0) >= step)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_f08_f09_f10_a_run_of_two_processes_goes_on_after_each_of_them_was_killed(
    samples: Path, one_thread: None
) -> None:
    whole, broken = add(two()), add(two())
    with working():
        assert ended(queue.enqueue("train", whole))["error"] is None

        job_id = queue.enqueue("train", broken)
        at_step(broken, 3)
        (follower,) = processes("plumbline.worker.follower")
        follower.send_signal(signal.SIGKILL)
        job = ended(job_id)
        assert job["state"] == "failed" and "process 2 of 2: was killed" in job["error"], job
        until(lambda: not processes("plumbline.worker.follower"))

        job_id = queue.resume_run(broken)
        at_step(broken, 6)
        (follower,) = processes("plumbline.worker.follower")
        first = psutil.Process(follower.pid).parent()
        assert first is not None
        first.send_signal(signal.SIGKILL)
        job = ended(job_id)
        assert job["state"] == "failed" and "SIGKILL" in job["error"], job
        until(lambda: not processes("plumbline.worker.follower"))

        job_id = queue.resume_run(broken)
        at_step(broken, 8)
        queue.stop(job_id)
        assert ended(job_id)["state"] == "stopped"
        until(lambda: not processes("plumbline.worker.follower"))

        assert ended(queue.resume_run(broken))["error"] is None
    assert curve(broken) == curve(whole) and len(curve(whole)) == STEPS + 1
    made = [run_folder(run_id) / "artifact" / "adapter_model.safetensors" for run_id in (whole, broken)]
    assert made[0].read_bytes() == made[1].read_bytes()
    decisions = json.loads(runs.get(whole)["decisions"])
    assert (decisions.get("GPUs") or decisions["processes"]) == {"value": "2", "why": "set in the recipe"}


def test_f18_memory_that_runs_out_in_another_process_is_explained(
    samples: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (
        "from plumbline.training.loop import trainer\n"
        "def fail(*_, **__):\n"
        "    raise MemoryError('out of memory')\n"
        "trainer.Trainer.training_step = fail\n"
        "main()"
    )
    follower = python_process.START.replace("main()", f"\n{short}")
    # The process that does the job starts the other one.
    hidden = follower.replace("MODULE", "ELUDOM")
    patched = (
        "from plumbline import python_process\n"
        f"python_process.START = {hidden!r}.replace('ELUDOM', 'MO' 'DULE')\nmain()"
    )
    monkeypatch.setattr(python_process, "START", python_process.START.replace("main()", f"\n{patched}"))
    run_id = add(two())
    with working():
        job = ended(queue.enqueue("train", run_id))
    assert job["state"] == "failed" and "process 2 of 2: ran out of memory" in job["error"], job["error"]
    assert job["result"]["suggestion"], job
    assert "Start again with" in job["error"]
    assert "MemoryError" in (run_folder(run_id) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (launcher.FAILED, "process 2 of 2: failed: model.base: is not there. Copy it. What was saved"),
        (launcher.OUT_OF_MEMORY, "process 2 of 2: ran out of memory. Lower training"),
        (-signal.SIGSEGV, "process 2 of 2: crashed (SIGSEGV). What was saved"),
    ],
)
def test_what_became_of_a_process_is_told(code: int, said: str) -> None:
    kept: list[str] = []
    gone = SimpleNamespace(poll=lambda: code, returncode=code)
    printed = "Traceback\nmodel.base: is not there. Copy it.\n"
    made = launcher.RankLauncher(SimpleNamespace(log=kept.append), 2)  # type: ignore[arg-type]
    made.others = [SimpleNamespace(process=gone, printed=lambda: printed)]  # type: ignore[list-item]
    assert made.explained().text.startswith(said) and "Traceback" in kept[0]


def test_two_launchers_stand_for_two_machines(samples: Path, one_thread: None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(schema.dumps(two(training={"max_steps": 4, "eval_steps": 2, "save_steps": 2})))
    port = str(_free_port())
    launched = []
    for rank in (1, 0):
        # The second has a workspace of its own, and leaves nothing in it.
        told = {"PLUMBLINE_HOME": os.environ["PLUMBLINE_HOME"] if rank == 0 else str(tmp_path / "other")}
        launched.append(
            subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=2"]
                + [f"--machine_rank={rank}", "--num_processes=2", "--main_process_ip=127.0.0.1"]
                + [f"--main_process_port={port}", "--mixed_precision=no", "--dynamo_backend=no"]
                + ["launch.py", "train", str(path)],
                cwd=ROOT,
                env=os.environ | told | {"GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [one.communicate(timeout=240)[0] for one in launched]
    finally:
        for one in launched:
            one.kill()
    assert [one.returncode for one in launched] == [0, 0], printed
    assert not (tmp_path / "other").exists()
    (run,) = runs.listed()
    assert run["state"] == "completed" and "as many as were launched" in run["decisions"]
    _as_one_process(run["id"])


def _as_one_process(run_id: int) -> None:
    alone = add(recipe(training=two().training.model_dump() | {"max_steps": 4, "eval_steps": 2}))
    with working():
        assert ended(queue.enqueue("train", alone))["error"] is None
    for place in (1, 2):
        one, other = ([point[place] for point in curve(which) if point[place]] for which in (run_id, alone))
        assert one == pytest.approx(other, rel=5e-3) and len(one) >= 3


@pytest.mark.slow
def test_start_in_a_studio_is_the_first_of_two_machines(samples: Path, one_thread: None) -> None:
    machines = {"num_machines": 2, "gpus": 1, "main_process_ip": "127.0.0.1", "port": _free_port()}
    short = two(training={"max_steps": 4, "eval_steps": 2, "save_steps": 2})
    config = short.model_copy(update={"machines": schema.MachinesSection(**machines)})
    run_id = add(config)
    told = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    with working():
        job_id = queue.enqueue("train", run_id)
        until(lambda: any("on machine 2 run:" in event["text"] for event in runs.events(run_id)))
        said = next(event["text"] for event in runs.events(run_id) if "on machine 2" in event["text"])
        command = said.partition("run: ")[2].replace("--no_python plumbline", "launch.py").split()
        second = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *command[2:]],
            cwd=ROOT,
            env=told,
            timeout=240,
        )
        job = ended(job_id)
    assert job["error"] is None and second.returncode == 0
    _as_one_process(run_id)
