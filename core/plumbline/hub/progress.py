"""Bytes that have arrived from the Hub, told at most twice a second; also where Stop is heard."""

import time
from collections.abc import Callable
from typing import Any

Report = Callable[[str, float | None], None]


class Progress:
    """Several files are counted together.

    :param total: bytes of all of them
    :param report: called with a phase and the share that is done
    :param check_stop: raises when the user pressed Stop
    """

    def __init__(self, total: int, report: Report | None, check_stop: Callable[[], None] | None) -> None:
        self.total, self.report, self.check_stop = total, report, check_stop
        self.done, self.told = 0, 0.0

    def reached(self, done: int, name: str) -> None:
        self.done = max(self.done, done)
        if time.monotonic() - self.told < 0.5 and done < self.total:
            return
        self.told = time.monotonic()
        if self.check_stop:
            self.check_stop()
        if self.report:
            share = self.done / self.total if self.total else None
            self.report(f"{name}: {self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB", share)

    def bar(self, name: str, size: int, before: int) -> Any:
        """A class of progress bars, which is how the Hub's library tells what arrives of a file.

        :param before: bytes of the files that came before this one
        """
        from tqdm import tqdm

        progress = self

        class Bar(tqdm):  # type: ignore[type-arg]
            def __init__(self, *arguments: Any, **settings: Any) -> None:
                super().__init__(*arguments, **{**settings, "disable": True})
                self.arrived = int(settings.get("initial") or 0)

            def update(self, n: float | None = 1) -> None:
                self.arrived += int(n or 0)
                progress.reached(before + min(self.arrived, size), name)

        return Bar
