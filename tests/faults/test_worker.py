"""A job in a process of its own: whatever it does, the studio's process and the queue go on."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from plumbline import python_process
from plumbline.chat import session
from plumbline.config.schema import preset
from plumbline.home import run_folder
from plumbline.jobs import heartbeat, process, queue
from plumbline.jobs.job import Job
from plumbline.store import runs
from plumbline.worker import free_gpu, supervisor, worker
from tests import tiny
from tests.faults.waiting import ended, until, working
from tests.runs import add, recipe

MIB = 1024**2


@pytest.fixture
def run_id(samples: Path) -> int:
    return runs.add(preset("starter"), 1)


@pytest.fixture
def child_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make every child do this code, with ``job``, in place of the handlers, and import no torch."""

    def patch(code: str) -> None:
        body = "\n".join(f"    {line}" for line in code.splitlines())
        harness = (
            "import sys; sys.path[:] = sys.argv.pop(1).split('\\n')\n"
            "import ctypes, os, signal, threading\n"
            "from plumbline.worker import child, worker\n"
            f"def do(job):\n{body}\n"
            "worker._handler = lambda kind: do\n"
            "worker.stack.ready = lambda: None\n"
            "child.main()\n"
        )
        monkeypatch.setattr(python_process, "START", harness)

    return patch


def children(*flags: str) -> list[psutil.Process]:
    """The processes of this one that do jobs; ``--ready`` for those that wait for one in advance."""
    mine = psutil.Process().children(recursive=True)
    alive = [one for one in mine if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in alive if {*(flags or ("--now",))} & set(one.cmdline())]


DEATHS = {
    "F09-segfault": ("ctypes.string_at(0)", "crashed (SIGSEGV)"),
    "F09-abort": ("os.abort()", "crashed (SIGABRT)"),
    "F09-killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        "was killed (SIGKILL, probably out of memory)",
    ),
    "F09-exit": ("os._exit(1)", "ended by itself (exit code 1)"),
    "F09-system-exit": ("sys.exit(3)", "ended by itself (exit code 3)"),
}


@pytest.mark.parametrize("deed, said", DEATHS.values(), ids=DEATHS)
def test_a_worker_that_dies_fails_its_run_and_the_queue_goes_on(
    run_id: int, child_does: Callable[[str], None], deed: str, said: str
) -> None:
    deed = f"print('last words', file=sys.stderr, flush=True)\njob.running()\n{deed}"
    child_does(f"if job.kind == 'merge':\n    return {{'done': True}}\n{deed}")
    first, second = queue.enqueue("train", run_id), queue.enqueue("merge", run_id)
    with working():
        assert ended(second)["state"] == "completed" and queue.get(second)["result"] == {"done": True}
    run = runs.get(run_id)
    assert run["state"] == queue.get(first)["state"] == "failed"
    assert f"worker: {said}" in run["error"] == queue.get(first)["error"]
    log = (run_folder(run_id) / "log.txt").read_text()
    assert "last words" in log and f"worker {said}" in log
    assert ("Fatal Python error: Segmentation fault" in log) == ("string_at" in deed)
    assert queue.resume_run(run_id) > second


def test_f09_a_worker_that_does_not_even_start_fails_its_job(
    run_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_process, "START", "raise SystemExit('no such module')")
    job_id = queue.enqueue("train", run_id)
    with working():
        assert "exit code 1" in ended(job_id)["error"]
    assert "no such module" in (run_folder(run_id) / "log.txt").read_text()


def test_f09_a_system_that_starts_no_process_fails_the_job(
    run_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(ready: bool = False) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "new_child", refused)
    job_id = queue.enqueue("train", run_id)
    with working():
        assert "Resource temporarily unavailable" in ended(job_id)["error"]


def test_f09_the_kernel_takes_the_job_and_not_the_studio_when_memory_runs_out(
    run_id: int, child_does: Callable[[str], None]
) -> None:
    child_does("return int(open('/proc/self/oom_score_adj').read())")
    job_id = queue.enqueue("merge", run_id)
    with working():
        assert ended(job_id)["result"] >= 500


def test_an_error_of_a_job_is_told_as_in_a_thread(run_id: int, child_does: Callable[[str], None]) -> None:
    child_does("from plumbline.errors import StudioError\nraise StudioError('recipe', 'is odd', 'Mend it.')")
    job_id = queue.enqueue("train", run_id)
    with working():
        assert ended(job_id)["error"] == "recipe: is odd. Mend it."


def test_a_worker_inherits_no_password_and_has_none_on_its_command_line(
    run_id: int, child_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_AUTH", "user:canary-of-a-password")
    child_does("return 'canary' in str([*os.environ.values(), *sys.argv])")
    job_id = queue.enqueue("merge", run_id)
    with working():
        assert ended(job_id)["result"] is False


HANG = "job.running()\nthreading.Event().wait()"


def test_f17_a_job_that_hangs_is_force_stopped_and_its_run_resumes(
    run_id: int, child_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.5)
    child_does(HANG)
    job_id = queue.enqueue("train", run_id)
    with working():
        until(lambda: queue.get(job_id)["state"] == "running")
        assert len(children()) == 1
        queue.stop_run(run_id)
        assert ended(job_id)["state"] == runs.get(run_id)["state"] == "stopped"
        until(lambda: not children())
    assert "force-stopped" in runs.events(run_id)[-1]["text"]
    assert queue.resume_run(run_id) > job_id


def test_f17_a_job_that_shows_signs_of_life_is_waited_for(
    run_id: int, child_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 3.0)
    file = worker.home() / "saved"
    child_does(
        "job.running()\n"
        "while not job.stop_requested():\n    threading.Event().wait(0.05)\n"
        # Longer than a silent job has, with a sign now and then.
        "for part in range(10):\n    threading.Event().wait(0.5)\n    job.report(f'saving {part}')\n"
        f"open({str(file)!r}, 'w').close()\n"
        "job.check_stop()"
    )
    job_id = queue.enqueue("train", run_id)
    with working():
        until(lambda: queue.get(job_id)["state"] == "running")
        queue.stop_run(run_id)
        assert ended(job_id)["state"] == "stopped" and file.exists()
    assert runs.events(run_id)[-1]["text"] == "train stopped"


def test_f17_a_thread_that_hangs_says_that_a_restart_is_needed(
    run_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.5)
    release = threading.Event()

    def hang(job: Job) -> None:
        job.running()
        release.wait()
        job.check_stop()

    monkeypatch.setattr(worker, "_handler", lambda kind: hang)
    job_id = queue.enqueue("train", run_id)
    with working("thread"):
        until(lambda: queue.get(job_id)["state"] == "running")
        queue.stop_run(run_id)
        try:
            until(lambda: "restart Plumbline" in (queue.get(job_id)["phase"] or ""))
            assert "restart Plumbline" in runs.events(run_id)[-1]["text"]
        finally:
            release.set()
        assert ended(job_id)["state"] == "stopped"


def test_f10_ending_the_worker_interrupts_its_job_and_leaves_the_next_one_queued(
    run_id: int, child_does: Callable[[str], None]
) -> None:
    child_does(
        "job.running()\nwhile not job.stop_requested():\n    threading.Event().wait(0.05)\njob.check_stop()"
    )
    first, second = queue.enqueue("train", run_id), queue.enqueue("merge", run_id)
    with working() as made:
        until(lambda: queue.get(first)["state"] == "running")
        made.end()
        assert not made.is_alive() and not children()
    assert queue.get(first)["state"] == runs.get(run_id)["state"] == "interrupted"
    assert runs.get(run_id)["error"] == "Plumbline was ended while it ran."  # and was not killed
    assert queue.get(second)["state"] == "queued"


@pytest.mark.parametrize("stopped_before", [False, True])
def test_f10_a_job_that_does_not_end_in_time_is_killed_and_interrupted(
    run_id: int, child_does: Callable[[str], None], stopped_before: bool
) -> None:
    child_does(HANG)
    job_id = queue.enqueue("train", run_id)
    with working() as made:
        until(lambda: queue.get(job_id)["state"] == "running")
        if stopped_before:
            queue.stop_run(run_id)
        made.end(0.3)
        assert not made.is_alive() and not children()
    assert queue.get(job_id)["state"] == "interrupted"


def test_f10_signals_to_the_whole_service_do_not_end_a_worker(
    run_id: int, child_does: Callable[[str], None]
) -> None:
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    child_does("".join(f"os.kill(os.getpid(), signal.{name})\n" for name in names) + "return os.getpid()")
    job_id = queue.enqueue("merge", run_id)
    with working():
        job = ended(job_id)
    assert job["state"] == "completed" and job["result"] != os.getpid()


def test_f08_a_worker_ends_when_nobody_listens_to_it_any_more(
    run_id: int, child_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    child_does(HANG)
    # As on a system whose kernel does not end children.
    patched = "process.live_with_parent = lambda: None\nchild.main()"
    monkeypatch.setattr(
        python_process,
        "START",
        python_process.START.replace("child.main()", f"from plumbline.jobs import process\n{patched}"),
    )
    job_id = queue.enqueue("train", run_id)
    queue.claim(job_id)
    lone = supervisor.new_child()
    try:
        lone.hand(job_id)
        until(lambda: queue.get(job_id)["state"] == "running")
        assert lone.process.stdin is not None
        lone.process.stdin.close()
        assert lone.process.wait(30) == process.ORPHANED
    finally:
        lone.close()


def test_a_next_worker_is_ready_before_its_job_where_memory_allows(
    run_id: int, child_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.0)
    child_does("return os.getpid()")
    monkeypatch.setattr(supervisor, "SPARE_GIB", 1e6)
    with working() as made:
        job = ended(queue.enqueue("merge", run_id))
        assert job["state"] == "completed" and made._supervisor and made._supervisor._spare is None
        monkeypatch.setattr(supervisor, "SPARE_GIB", 0.0)
        until(lambda: made._supervisor and made._supervisor._spare)
        spare = made._supervisor._spare
        assert spare and ended(queue.enqueue("merge", run_id))["result"] == spare.process.pid
        # One that was killed while it waited costs its successor's start and no job.
        until(lambda: made._supervisor and made._supervisor._spare not in (None, spare))
        second = made._supervisor._spare
        assert second
        second.kill()
        second.process.wait(60)
        assert ended(queue.enqueue("merge", run_id))["state"] == "completed"
    until(lambda: not children("--now", "--ready"))


def test_a_system_that_starts_no_process_in_advance_leaves_the_running_job_alone(
    run_id: int, child_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(ready: bool = False) -> process.Process:
        if ready:
            refused.set()
            raise OSError(11, "Resource temporarily unavailable")
        return started()

    refused, started = threading.Event(), supervisor.new_child
    monkeypatch.setattr(supervisor, "SPARE_GIB", 0.0)
    monkeypatch.setattr(supervisor, "new_child", refusing)
    file = worker.home() / "go on"
    child_does(f"job.running()\nwhile not os.path.exists({str(file)!r}):\n    threading.Event().wait(0.05)")
    first, second = queue.enqueue("train", run_id), queue.enqueue("merge", run_id)
    with working():
        assert refused.wait(60)
        file.touch()
        assert ended(first)["state"] == ended(second)["state"] == "completed"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> session.Loaded:
    """A chat model that stands on a GPU, as far as one can tell."""
    model = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    loaded = session.Loaded(1, 0.0, model, None, "")
    monkeypatch.setattr(session, "_loaded", loaded)
    return loaded


def test_chat_leaves_the_gpu_when_its_answer_has_ended_and_then_the_job_starts(
    run_id: int, child_does: Callable[[str], None], chat: session.Loaded
) -> None:
    child_does("return {}")
    chat.busy.acquire()
    job_id = queue.enqueue("train", run_id)
    with working():
        until(lambda: "chat's answer" in (queue.get(job_id)["phase"] or ""))
        assert queue.get(job_id)["state"] == "preparing" and session._loaded is None
        assert not children()
        chat.busy.release()
        assert ended(job_id)["state"] == "completed"


def test_a_job_that_waits_for_chat_can_be_stopped(
    run_id: int, child_does: Callable[[str], None], chat: session.Loaded
) -> None:
    child_does("return {}")
    chat.busy.acquire()
    job_id = queue.enqueue("train", run_id)
    with working():
        until(lambda: "chat's answer" in (queue.get(job_id)["phase"] or ""))
        queue.stop_run(run_id)
        assert ended(job_id)["state"] == "stopped"


def test_chat_stays_where_there_is_no_gpu(run_id: int, chat: session.Loaded) -> None:
    chat.model.device.type = "cpu"
    free_gpu.unload_chat(Job(queue.get(queue.enqueue("train", run_id))))
    assert session._loaded is chat


@pytest.fixture
def small(samples: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe's sections for a base of two layers with the starter's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from plumbline.models import load

    tokenizer = load.tokenizer("starter")
    sizes = tiny.SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return {
        "model": {"base": str(tmp_path / "base")},
        "lora": {"dropout": 0.1},
        "training": {"max_steps": 6, "eval_steps": 3, "save_steps": 3, "learning_rate": 1e-2},
    }


def curve(run_id: int) -> list[tuple]:
    return [(p["step"], p["loss"], p["eval_loss"], p["grad_norm"]) for p in runs.metrics(run_id)]


def test_a_run_in_a_process_has_the_thread_s_curve_to_the_bit(small: dict[str, Any]) -> None:
    in_thread, in_process = add(recipe(**small)), add(recipe(**small))
    for mode, run_id in (("thread", in_thread), ("process", in_process)):
        job_id = queue.enqueue("train", run_id)
        with working(mode):
            assert ended(job_id)["state"] == "completed", queue.get(job_id)["error"]
    assert curve(in_process) == curve(in_thread) and len(curve(in_thread)) == 7
    assert curve(in_thread)[0][2] > curve(in_thread)[-1][2]
    artifact = "artifact/adapter_model.safetensors"
    first, second = ((run_folder(run) / artifact).read_bytes() for run in (in_thread, in_process))
    assert first == second


def test_b7_what_jobs_took_has_gone_back_when_they_have_ended(
    run_id: int, child_does: Callable[[str], None]
) -> None:
    child_does("held = bytearray(os.urandom(1) * 500_000_000)\nreturn len(held)")
    with working():
        ended(queue.enqueue("merge", run_id))
        before = psutil.Process().memory_info().rss
        for _ in range(3):
            assert ended(queue.enqueue("merge", run_id))["result"] == 500_000_000
        assert psutil.Process().memory_info().rss - before <= 32 * MIB


if sys.platform == "win32":
    pytest.skip("signals and exit codes are those of Unix", allow_module_level=True)
