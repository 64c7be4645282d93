"""A job as its handler sees it, and how it ended."""

import sqlite3
import time
from typing import Any

from plumbline.errors import StopRequested
from plumbline.home import home, run_folder
from plumbline.jobs import heartbeat, queue
from plumbline.store import runs
from plumbline.store.database import PASSING_SECONDS, in_passing, is_held, patience, writing
from plumbline.store.records import JobRow


class Job:
    """What a handler sees of its job: its payload, a way to report, and a way to be stopped."""

    def __init__(self, row: JobRow) -> None:
        self.id: int = row["id"]
        self.kind: str = row["kind"]
        self.payload: dict[str, Any] = row["payload"]
        self._run_id: int | None = row["run_id"]
        self._dataset_id: int | None = row["dataset_id"]
        self._events: list[tuple[str, str, float]] = []
        self._phase: tuple[str, float | None] | None = None

    @property
    def run_id(self) -> int:
        """The run it belongs to; a check and a probe have none."""
        assert self._run_id is not None, f"a {self.kind} job has no run"
        return self._run_id

    @property
    def dataset_id(self) -> int:
        """The dataset that a check looks at; other jobs have none."""
        assert self._dataset_id is not None, f"a {self.kind} job has no dataset"
        return self._dataset_id

    def event(self, text: str, level: str = "info") -> None:
        """A line of the log that people see. It waits while another program holds the database."""
        heartbeat.beat()
        self._events.append((text, level, time.time()))
        in_passing(self.settle)

    def log(self, text: str) -> None:
        """Keep a traceback: in the run's folder, or in the workspace's when there is no run."""
        log_folder = home() if self._run_id is None else run_folder(self._run_id)
        with open(log_folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(text)

    def running(self) -> None:
        """Preparation is over."""
        if not self.stop_requested():
            queue.set_state(self.id, "running")

    def report(self, phase: str, progress: float | None = None) -> None:
        """What is being done; while another program holds the database, only the newest is kept."""
        heartbeat.beat()
        self._phase = phase, progress
        in_passing(self.settle)

    def settle(self) -> None:
        """Write what waits: events and the phase."""
        with writing():
            for text, level, at in self._events:
                runs.event(text, self._run_id, self.id, level, at)
            if self._phase is not None:
                queue.set_progress(self.id, *self._phase)
        self._events, self._phase = [], None

    def stop_requested(self) -> bool:
        """Whether the job is to save its state and end: the user pressed Stop, or Plumbline is ended.

        While another program holds the database nobody can have asked for it.
        """
        heartbeat.beat()
        try:
            with patience(PASSING_SECONDS):
                return queue.stop_requested(self.id)
        except sqlite3.OperationalError as error:
            if not is_held(error):
                raise
            return False

    def check_stop(self) -> None:
        """:raises StopRequested: when the user pressed Stop, or Plumbline is ended"""
        if self.stop_requested():
            raise StopRequested()

    def stopped(self) -> None:
        """It ended because it was asked to: by its user, or because Plumbline is ended."""
        if queue.ending(self.id):
            self.interrupted("Plumbline was ended while it ran.")
            return
        queue.set_state(self.id, "stopped")
        self.event(f"{self.kind} stopped")

    def interrupted(self, why: str) -> None:
        """Its process ended before it did; a training run may be resumed."""
        queue.set_state(self.id, "interrupted", error=why)
        self.event(f"{self.kind} was interrupted: {why}", "warning")

    def failed(self, text: str) -> None:
        """:param text: what is wrong, for people"""
        queue.set_state(self.id, "failed", error=text)
        self.event(f"{self.kind} failed: {text}", "error")
