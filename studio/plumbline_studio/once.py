"""Work that a click asks for, done once: a request is sent again when its connection broke in between."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

MOST = 256  # results that are remembered


class Once:
    """Results by the token of a click. A failure is forgotten: the same click may try again."""

    def __init__(self) -> None:
        self._results: dict[str, Future[int]] = {}
        self._lock = threading.Lock()

    def result(self, token: str, work: Callable[[], int]) -> int:
        """What ``work`` gives. Whoever comes with the same token waits for that, and does nothing.

        :raises Exception: what ``work`` raises
        """
        with self._lock:
            known = self._results.get(token)
            mine = known is None
            if known is None:
                known = self._results[token] = Future()
                if len(self._results) > MOST:
                    del self._results[next(iter(self._results))]
        if mine:
            try:
                known.set_result(work())
            except BaseException as error:
                with self._lock:
                    self._results.pop(token, None)
                known.set_exception(error)
        return known.result()
