"""Jobs in processes of their own: one child a job, so that its memory goes back when it has ended.

A child that crashes, is killed or hangs costs its job and nothing else.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

from core.errors import StopRequested, StudioError
from core.jobs import life, queue, worker
from core.jobs.mode import free_bytes
from core.models.hardware import GIB

log = logging.getLogger("plumbline")
SPARE_GIB = 4.0  # free memory from which a child is started before there is a job
IDLE_SECONDS = 5.0  # after a start or a job, before that child's imports take a core for as long
GOODBYE_SECONDS = 10.0  # for a child to end when its job has
POLL_SECONDS = 0.25
KEPT = 8192  # bytes of what a child printed last
# The child finds modules where this process does, and only there.
START = "import sys; sys.path[:] = sys.argv[2:]; from core.jobs.child import main; main()"


class Child:
    """A process that does one job, and what it printed last.

    :param ready: import what trains at once, before there is a job
    :raises OSError: when the system starts no more processes
    """

    def __init__(self, ready: bool = False) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PLUMBLINE_AUTH"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "--ready" if ready else "--now", *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal goes to the studio alone
        )
        self._last = b""
        self._reader = threading.Thread(target=self._read, name="plumbline-printed", daemon=True)
        self._reader.start()

    def hand(self, job_id: int) -> None:
        """Give it its job."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"%d\n" % job_id)
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # it has died; its exit code says how

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        """End it, if it has not, and free what it held here."""
        self.process.kill()
        self.process.wait()
        self._reader.join(2)
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            return  # an id that was never read

    def printed(self) -> str:
        """What it printed last, once it has ended."""
        self._reader.join(2)
        return self._last.decode("utf-8", "replace")

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        with stream:
            while chunk := os.read(stream.fileno(), 4096):
                self._last = (self._last + chunk)[-KEPT:]
                with suppress(OSError, ValueError):  # a closed terminal must not stop the reading
                    sys.stderr.write(chunk.decode("utf-8", "replace"))


class Supervisor:
    """Does jobs in children. Everything but `kill` belongs to one thread: on Linux, children end with it."""

    def __init__(self) -> None:
        self._spare: Child | None = None
        self._running: Child | None = None
        self._idle_since = time.monotonic()
        self._spare_failed = False
        self._ending = False

    def idle(self) -> None:
        """Call while there is no job: the next one finds a process that has imported everything."""
        if time.monotonic() - self._idle_since > IDLE_SECONDS:
            self._prepare()

    def do(self, job: "worker.Job") -> None:
        """Do one job to its end and record how it ended, whatever happens to its process."""
        if not queue.claim(job.id):
            return
        try:
            if job.kind != "check":
                worker.make_room(job)
            job.report("starting")
            child = self._running = self._take()
        except StopRequested:
            worker.record_stop(job)
            return
        except OSError as error:
            worker.record_failure(job, f"The system started no process for it: {error.strerror or error}.")
            return
        try:
            child.hand(job.id)
            forced = self._wait(child, job)
            self._conclude(child, job, forced)
        finally:
            self._running = None
            child.close()
            self._idle_since, self._spare_failed = time.monotonic(), False

    def kill(self) -> None:
        """End the running job's process now, because this one ends; `do` records an interruption."""
        self._ending = True
        if (child := self._running) is not None:
            child.kill()

    def close(self) -> None:
        """End the child that waits for a job."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _prepare(self) -> None:
        if self._spare is not None and self._spare.process.poll() is not None:
            # It is not started again and again: the next job will tell what is wrong with it.
            log.warning("a waiting worker ended: %s", how_it_ended(self._spare.process.returncode))
            self._spare_failed = True
            self.close()
        if self._spare is None and not self._spare_failed and free_bytes() / GIB >= SPARE_GIB:
            try:
                self._spare = Child(ready=True)
            except OSError as error:
                log.warning("no worker waits for the next job: %s", error)
                self._spare_failed = True

    def _take(self) -> Child:
        if self._spare is not None and self._spare.process.poll() is not None:
            self.close()
        child, self._spare = self._spare, None
        return child or Child()

    def _wait(self, child: Child, job: "worker.Job") -> bool:
        """Until the child has ended. :returns: whether it was ended here because it hung"""
        patience, ended_at = life.Patience(), None
        while True:
            try:
                child.process.wait(POLL_SECONDS)
                return False
            except subprocess.TimeoutExpired:
                state = queue.state(job.id)
            if patience.over(state == "stopping"):
                child.kill()
                child.process.wait()
                return True
            if state is None or state in queue.ENDED:
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at > GOODBYE_SECONDS:
                    child.kill()
            elif queue.waiting():
                self._prepare()

    def _conclude(self, child: Child, job: "worker.Job", forced: bool) -> None:
        state = queue.state(job.id)
        if state is None or state in queue.ENDED:
            return
        how = how_it_ended(child.process.returncode)
        job.log(f"{child.printed().rstrip()}\nworker {how}\n")
        if self._ending or queue.ending(job.id):
            worker.record_interruption(job, "Plumbline was ended before the job had saved its state.")
        elif forced:
            queue.set_state(job.id, "stopped")
            again = (
                "it resumes from its last checkpoint" if job.kind == "train" else "it can be started again"
            )
            text = f"{job.kind} was force-stopped: it showed no sign of life after Stop; {again}"
            job.event(text, "warning")
        else:
            fix = "What was saved before is intact; log.txt has its last words."
            if "SIGKILL" in how:
                fix = f"Lower training.micro_batch_tokens or training.max_length. {fix}"
            worker.record_failure(job, StudioError("worker", how, fix).text)


def how_it_ended(code: int) -> str:
    """A process's exit code in words: ``was killed (SIGKILL, probably out of memory)``."""
    if code >= 0:
        return f"ended by itself (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return "was killed (SIGKILL, probably out of memory)"
    return f"was ended ({name})" if name in ("SIGTERM", "SIGINT", "SIGHUP") else f"crashed ({name})"
