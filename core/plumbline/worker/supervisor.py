"""Jobs in processes of their own: one child a job, so that its memory goes back when it has ended.

A child that crashes, is killed or hangs costs its job and nothing else.
"""

import logging
import os
import subprocess
import time

from plumbline.errors import StopRequested, StudioError
from plumbline.jobs import heartbeat, queue
from plumbline.jobs.job import Job
from plumbline.jobs.mode import free_bytes
from plumbline.jobs.process import Process, how_it_ended
from plumbline.models.hardware import GIB
from plumbline.worker import free_gpu

log = logging.getLogger("plumbline")
SPARE_GIB = 4.0  # free memory from which a child is started before there is a job
IDLE_SECONDS = 5.0  # after a start or a job, before that child's imports take a core for as long
GOODBYE_SECONDS = 10.0  # for a child to end when its job has
POLL_SECONDS = 0.25


def new_child(ready: bool = False) -> Process:
    """A process that does one job, and needs its id. :param ready: it imports what trains at once"""
    environment = {name: value for name, value in os.environ.items() if name != "PLUMBLINE_AUTH"}
    return Process("plumbline.worker.child", environment, "--ready" if ready else "--now")


class Supervisor:
    """Does jobs in children. Everything but `kill` belongs to one thread: on Linux, children end with it."""

    def __init__(self) -> None:
        self._spare: Process | None = None
        self._running: Process | None = None
        self._idle_since = time.monotonic()
        self._spare_failed = False
        self._ending = False

    def idle(self) -> None:
        """Call while there is no job: the next one finds a process that has imported everything."""
        if time.monotonic() - self._idle_since > IDLE_SECONDS:
            self._prepare()

    def do(self, job: Job) -> None:
        """Do one job to its end and record how it ended, whatever happens to its process."""
        if not queue.claim(job.id):
            return
        try:
            if job.kind != "check":
                free_gpu.unload_chat(job)
            job.report("starting")
            child = self._running = self._take()
        except StopRequested:
            job.stopped()
            return
        except OSError as error:
            job.failed(f"The system started no process for it: {error.strerror or error}.")
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
                self._spare = new_child(ready=True)
            except OSError as error:
                log.warning("no worker waits for the next job: %s", error)
                self._spare_failed = True

    def _take(self) -> Process:
        if self._spare is not None and self._spare.process.poll() is not None:
            self.close()
        child, self._spare = self._spare, None
        return child or new_child()

    def _wait(self, child: Process, job: Job) -> bool:
        """Until the child has ended. :returns: whether it was ended here because it hung"""
        patience, ended_at = heartbeat.HangDetector(), None
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

    def _conclude(self, child: Process, job: Job, forced: bool) -> None:
        state = queue.state(job.id)
        if state is None or state in queue.ENDED:
            return
        how = how_it_ended(child.process.returncode)
        job.log(f"{child.printed().rstrip()}\nworker {how}\n")
        if self._ending or queue.ending(job.id):
            job.interrupted("Plumbline was ended before the job had saved its state.")
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
            job.failed(StudioError("worker", how, fix).text)
