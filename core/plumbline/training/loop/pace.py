"""The clock of a run: what its steps took, and what evaluations and saves took beside them.

A step's loss is looked at while the device computes the next step, and at once before an evaluation, so
the moment of looking says nothing of the step. What counts is when the device had done it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

EVALUATION, SAVE = "in the evaluation", "in the save"


class StepClock:
    """Seconds of computing steps. It stands still in `pause`, whose lengths it keeps.

    :param cuda: steps are computed on a CUDA device, which is not waited for
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.pauses: dict[str, list[float]] = {EVALUATION: [], SAVE: []}
        self._anchored: Any = None
        self._anchor()

    @property
    def left_out(self) -> float:
        """Seconds of all pauses."""
        return sum(map(sum, self.pauses.values()))

    def last(self, pause: str) -> float:
        """Seconds of the latest pause of a kind; 0 when there was none."""
        return self.pauses[pause][-1] if self.pauses[pause] else 0.0

    @contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """:param name: EVALUATION or SAVE; the device has nothing left to do when it begins"""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.pauses[name].append(time.perf_counter() - began)
            self._anchor()

    def mark(self) -> Callable[[], float]:
        """Call when a step has been asked of the device.

        :returns: tells on what second of computing the device had done it, once it has
        """
        left_out = self.left_out
        if not self.cuda:
            now = time.perf_counter() - left_out
            return lambda: now
        done = torch.cuda.Event(enable_timing=True)
        done.record()
        began, at = self._anchored, self._anchored_at

        def seconds() -> float:
            done.synchronize()
            return at + began.elapsed_time(done) / 1000 - left_out

        return seconds

    def _anchor(self) -> None:
        """Note one moment on the device's clock and on the processor's: they have no common zero."""
        if self.cuda:
            self._anchored = torch.cuda.Event(enable_timing=True)
            self._anchored.record()
            self._anchored.synchronize()
        self._anchored_at = time.perf_counter()
