"""The other processes of a run on this machine: the first one starts, watches and ends them.

One that dies leaves the first waiting for it, in a library that nothing can wake. So a watching thread
tells what happened and ends the process; that is why only a process that does one job has a crew.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.distributed import gpus, process_group
from plumbline.distributed.process_group import ProcessGroup
from plumbline.engine.plan import Plan
from plumbline.errors import StopRequested, StudioError
from plumbline.jobs.job import Job
from plumbline.jobs.process import Process, how_it_ended
from plumbline.program import command

FAILED, OUT_OF_MEMORY = 71, 72  # exit codes of a process that said why, and of one whose memory ran out
POLL_SECONDS = 0.2
NOTICE_SECONDS = 5.0  # for the first process to notice by itself that another has gone


class RankLauncher:
    """The processes beside the first; none until `start`, nor where a launcher has started them."""

    def __init__(self, job: Job, size: int) -> None:
        self.job, self.size = job, size
        self.on_memory: Callable[[], str] = lambda: ""  # suggests smaller settings, and says so
        self.others: list[Process] = []
        self.folder: Path | None = None
        self.in_step = False  # all of them have done what there was to do
        self.closing = threading.Event()

    def start(self, devices: list[str]) -> None:
        """Start the others, and watch them.

        :param devices: names for CUDA_VISIBLE_DEVICES, the first process's own first; empty without GPUs
        :raises StudioError: when the system starts no more processes
        """
        self.folder = Path(tempfile.mkdtemp(prefix="plumbline-"))
        self.meeting = self.folder / "meeting"
        try:
            for rank in range(1, self.size):
                self.others.append(Process("plumbline.worker.follower", self._told(rank, devices)))
        except OSError as error:
            what = f"the system started no more processes: {error.strerror or error}"
            raise StudioError("machines.gpus", what, "Lower it.") from error
        threading.Thread(target=self._watch, name="plumbline-crew", daemon=True).start()

    def _told(self, rank: int, devices: list[str]) -> dict[str, str]:
        told = {name: value for name, value in os.environ.items() if name != "PLUMBLINE_AUTH"}
        told |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(self.size)}
        told |= {process_group.MEETING: str(self.meeting), "TMPDIR": str(self.folder)}
        told.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (2 * self.size))))
        if devices:
            told["CUDA_VISIBLE_DEVICES"] = devices[rank]  # from its first import on it sees no other
        return told

    def exited(self) -> tuple[int, Process] | None:
        """The first of the others that has ended, with its rank."""
        ended = ((rank, one) for rank, one in enumerate(self.others, 1) if one.process.poll() is not None)
        return next(ended, None)

    def explained(self) -> StudioError:
        """What happened to the one that has ended."""
        found = self.exited()
        assert found is not None
        rank, one = found
        self.job.log(f"process {rank + 1} of {self.size}:\n{one.printed().rstrip()}\n")
        where = f"process {rank + 1} of {self.size}"
        if one.process.returncode == OUT_OF_MEMORY:
            fix = self.on_memory() or "Lower training.micro_batch_tokens, or set machines.gpus to 1."
            return StudioError(where, "ran out of memory", fix)
        fix = "What was saved before is intact, so it can be resumed; log.txt has its last words."
        if one.process.returncode == FAILED:
            said = one.printed().rstrip().splitlines()[-1:]
            return StudioError(where, f"failed: {' '.join(said)[:300]}", fix)
        return StudioError(where, how_it_ended(one.process.returncode), fix)

    def _watch(self) -> None:
        while not self.closing.wait(POLL_SECONDS):
            if self.exited() is not None:
                if not self.closing.wait(NOTICE_SECONDS):
                    try:
                        self.job.failed(self.explained().text)
                        self._clear()
                    finally:  # whatever else goes wrong, nobody must wait for it
                        os._exit(1)
                return

    def _clear(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        self.closing.set()
        for one in self.others:
            one.kill()  # all at once: none is to complain of another's end
        for one in self.others:
            one.close()
        self._clear()


@contextmanager
def launched_ranks(job: Job, plan: Plan) -> Iterator[RankLauncher]:
    """All processes of a plan in one world, until the work inside is done.

    :raises StudioError: when one of the others has ended before
    """
    _, launched = process_group.rank_and_size()
    if launched > 1 or plan.processes == 1:
        crew = RankLauncher(job, 1)
        with _launched(crew):
            yield crew
        return
    devices = gpus.chosen(plan.processes)
    job.report(f"starting {plan.processes - 1} more process{'es' if plan.processes > 2 else ''}")
    crew = RankLauncher(job, plan.processes)
    try:
        crew.start(devices)
        process_group.init_from_file(str(crew.meeting), 0, plan.processes)
        yield crew
    except (StudioError, StopRequested):
        raise
    except Exception as error:
        # The watching thread gives this one the time to tell it; a process ends a little after its word.
        if crew.exited() is None:
            crew.closing.wait(2 * POLL_SECONDS)
        if crew.exited() is None:
            raise
        raise crew.explained() from error
    finally:
        crew.close()
        process_group.abort()


@contextmanager
def _launched(crew: RankLauncher) -> Iterator[None]:
    """In a world of a launcher's, which the next run can use when this one has ended well."""
    joined: ProcessGroup = process_group.init()
    try:
        yield
    except BaseException as error:
        if joined.size == 1 or crew.in_step:
            raise
        process_group.abort()
        if isinstance(error, RuntimeError) and any(name in str(error).lower() for name in ("gloo", "nccl")):
            fix = f"Its own terminal says why. Launch all of them again with `{command('resume')}`."
            raise StudioError("the launched processes", "one of them has ended", fix) from error
        raise
