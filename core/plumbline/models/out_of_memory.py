"""Memory that ran out: less at once where that is enough."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


# CUDA, cuBLAS, the CPU's allocator and bitsandbytes each have words of their own.
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "status_alloc_failed",
    "cudaerrormemoryallocation",
)


def ran_out(error: BaseException) -> bool:
    """True for every way in which the host's or the GPU's memory is said to be exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@dataclass
class OomBackoff:
    """How much is computed at once: half as much from when memory ran out on.

    :param limit: so many at once
    :param of: what is counted, as in ``tokens``
    :param event: is told when there is less at once, with a level
    :param any_of: from whether it ran out here to whether it ran out in any process that has to compute in
        the same way
    :param retries: False where others wait in the middle of an attempt, so that it cannot begin again
    """

    limit: int
    of: str
    event: Callable[[str, str], None]
    any_of: Callable[[bool], bool] = lambda ran: ran
    retries: bool = True

    def run(self, doing: str, attempt: Callable[[int], T], least: int, most: int) -> T:
        """What ``attempt`` gives with at most so many at once.

        :param doing: as in ``the evaluation at step 4``
        :param least: less than this at once changes nothing any more
        :param most: there are no more than these
        """
        while self.retries:
            limit, ran = min(self.limit, most), False
            try:
                result = attempt(self.limit)
            except Exception as error:
                if not ran_out(error):
                    raise
                if limit <= least:
                    self.any_of(True)
                    raise
                ran = True
            if not self.any_of(ran):
                return result
            if limit <= least:
                raise MemoryError("another process ran out of memory")
            # Here the exception is gone, and with it what its frames held.
            _free_unused()
            self.limit = limit // 2
            self.event(
                f"{doing} ran out of memory with {limit:,} {self.of} at once and goes on with {self.limit:,}",
                "warning",
            )
        return attempt(self.limit)


def _free_unused() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
