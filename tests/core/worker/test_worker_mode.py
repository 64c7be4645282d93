"""Where jobs are done and why, how long a job is waited for, and what asks a process to end."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plumbline import program as start
from plumbline.cli import doctor, main, terminal
from plumbline.config.schema import preset
from plumbline.errors import StudioError
from plumbline.jobs import heartbeat, mode, queue, signals
from plumbline.jobs.job import Job
from plumbline.jobs.process import how_it_ended
from plumbline.models import hardware
from plumbline.store import runs
from plumbline.worker import wait, worker
from plumbline_studio import status
from tests import ROOT


def test_auto_takes_a_process_where_there_is_memory_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "free_bytes", lambda: 8 * hardware.GIB)
    assert mode.choose("auto").value == "process"
    monkeypatch.setattr(mode, "free_bytes", lambda: hardware.GIB)
    assert mode.choose("auto") == ("thread", "a process of its own needs 2 GiB, 1.0 are free")
    assert mode.choose("process").value == "process"
    monkeypatch.setattr("sys.executable", "")
    monkeypatch.setattr(mode, "free_bytes", lambda: 8 * hardware.GIB)
    assert mode.choose("auto").value == "thread"


def test_doctor_says_where_jobs_are_done(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_WORKER", "thread")
    assert dict(doctor.report())["worker"] == "thread: set by --worker or PLUMBLINE_WORKER"


def test_the_flag_and_the_variable_choose_and_are_checked(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    served: list[Any] = []
    main.main([], lambda *values: served.append(values[3]))
    main.main(["studio", "--worker", "thread"], lambda *values: served.append(values[3]))
    monkeypatch.setenv("PLUMBLINE_WORKER", "process")
    main.main([], lambda *values: served.append(values[3]))
    assert served == ["auto", "thread", "process"]
    with pytest.raises(SystemExit):
        main.main(["studio", "--worker", "fibre"], lambda *values: None)
    with pytest.raises(StudioError, match="must be auto, process, thread, got 'fibre'"):
        mode.choose("fibre")


@pytest.mark.parametrize(
    "code, said",
    [
        (-9, "was killed (SIGKILL, probably out of memory)"),
        (-11, "crashed (SIGSEGV)"),
        (-15, "was ended (SIGTERM)"),
        (-63, "crashed (signal 63)"),
        (0, "ended by itself (exit code 0)"),
    ],
)
def test_f09_an_exit_code_is_told_in_words(code: int, said: str) -> None:
    assert how_it_ended(code) == said


class Clock:
    """Time that passes when told, and a job that shows itself when told."""

    def __init__(self) -> None:
        self.now, self.signs = 1000.0, 0
        self.patience: Any = None

    def after(self, seconds: float, sign: bool = False, stopping: bool = True) -> bool:
        self.now += seconds
        self.signs += sign
        return self.patience.over(stopping)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(heartbeat, "_stamp", lambda: made.signs)
    made.patience = heartbeat.HangDetector(lambda: made.now)
    return made


def test_f17_a_silent_job_is_waited_for_30_seconds_after_stop(clock: Clock) -> None:
    assert not clock.after(1000, stopping=False)  # nobody asked it to stop
    assert not clock.after(1)
    assert not clock.after(29.9)
    assert clock.after(0.2)


def test_f17_every_sign_of_life_begins_the_wait_anew(clock: Clock) -> None:
    for _ in range(100):
        assert not clock.after(20, sign=True)
    assert not clock.after(30)
    assert clock.after(11)


def test_f17_a_job_with_long_steps_is_given_two_of_them_and_no_more_than_five_minutes(clock: Clock) -> None:
    clock.after(60, sign=True, stopping=False)
    clock.after(60, sign=True, stopping=False)
    assert not clock.after(0)
    assert not clock.after(119) and clock.after(2)
    clock.after(9000, sign=True, stopping=False)
    assert not clock.after(0)
    assert not clock.after(300) and clock.after(1)


def test_f17_what_a_job_does_is_a_sign_of_life(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "TOUCH_SECONDS", 0.0)
    job = Job(queue.get(queue.enqueue("train", runs.add(preset("starter"), 1))))
    seen = []
    for deed in (job.stop_requested, lambda: job.report("going on"), lambda: job.event("said")):
        os.utime(heartbeat._path(), ns=(0, 0)) if seen else None
        deed()
        seen.append(heartbeat._stamp())
    assert all(seen)


def test_a_first_signal_is_noted_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    noted: list[int] = []
    with signals.caught(noted.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
    assert noted == [signal.SIGTERM, signal.SIGHUP] and signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def stubborn(samples: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job that runs until it is released, and asks nobody meanwhile."""
    made = SimpleNamespace(release=threading.Event(), job_id=0)

    def go(job: Job) -> None:
        job.running()
        made.release.wait()
        job.check_stop()

    monkeypatch.setattr(worker, "_handler", lambda kind: go)
    made.job_id = queue.enqueue("train", runs.add(preset("starter"), 1))
    yield made
    made.release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("plumbline-"):
            thread.join(30)


def when_running(*numbers: int) -> Any:
    """Something for `wait` to look with: sends these signals, one a look, once the job runs."""
    left = list(numbers)

    def look(job: dict[str, Any]) -> None:
        if job["state"] in ("running", "stopping") and left:
            os.kill(os.getpid(), left.pop(0))

    return look


@pytest.mark.parametrize("name, state", [("SIGINT", "stopped"), ("SIGTERM", "interrupted")])
def test_f10_a_signal_asks_the_job_in_the_foreground_to_save_and_end(
    stubborn: Any, name: str, state: str
) -> None:
    send = when_running(getattr(signal, name))

    def look(job: dict[str, Any]) -> None:
        send(job)
        if job["state"] == "stopping":
            stubborn.release.set()

    assert wait.until_ended(stubborn.job_id, look)["state"] == state


def test_f10_a_second_signal_leaves_the_job_in_the_foreground_at_once(stubborn: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        wait.until_ended(stubborn.job_id, when_running(signal.SIGINT, signal.SIGINT))
    assert queue.get(stubborn.job_id)["state"] == "stopping"


def test_f10_a_job_that_waits_in_the_queue_stays_there_when_its_watcher_is_ended(stubborn: Any) -> None:
    second = queue.enqueue("merge", 1)

    def look(job: dict[str, Any]) -> None:
        if queue.get(stubborn.job_id)["state"] == "running" and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    sent: list[bool] = []
    assert wait.until_ended(second, look)["state"] == "queued"


def test_the_strip_gives_no_total_of_a_gpu_that_only_the_job_s_process_knows(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = runs.add(preset("starter"), 1)
    queue.set_state(queue.enqueue("train", run_id), "running")
    runs.update(run_id, device="cuda", memory_gb=5.0)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert "<b>5.0 GiB</b>" in status.strip()
    runs.update(run_id, device="cpu")
    assert "<b>5.0 / " in status.strip()


@pytest.mark.parametrize(
    "program, place, command",
    [
        (str(ROOT / "launch.py"), ROOT, "python3 launch.py resume 1"),
        (str(ROOT / "launch.py"), ROOT / "tests", f"python3 {ROOT / 'launch.py'} resume 1"),
        ("/usr/bin/plumbline", ROOT, "plumbline resume 1"),
    ],
)
def test_a_run_that_ctrl_c_ended_is_told_with_the_command_that_goes_on(
    samples: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    place: Path,
    command: str,
) -> None:
    job_id = queue.enqueue("train", runs.add(preset("starter"), 1))
    monkeypatch.chdir(place)
    monkeypatch.setenv(start.STARTED, "")
    start.started_as(program)

    def twice(job_id: int, look: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(wait, "until_ended", twice)
    with pytest.raises(KeyboardInterrupt):
        terminal.watch(job_id)
    assert f"To go on: {command}\n" in capsys.readouterr().err
    queue.set_state(job_id, "stopped")
    monkeypatch.setattr(wait, "until_ended", lambda job_id, look: queue.get(job_id))
    terminal.watch(job_id)
    assert f"To go on: {command}\n" in capsys.readouterr().err
