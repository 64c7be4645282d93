"""A click's work is done once, however often its request comes."""

import threading

import pytest

from plumbline_studio.once import Once


def test_a_request_that_comes_again_waits_for_the_first_and_gets_its_result() -> None:
    once, begun, go = Once(), threading.Event(), threading.Event()
    calls: list[int] = []
    results: list[int] = []

    def work() -> int:
        calls.append(len(calls))
        begun.set()
        go.wait()
        return 7

    both = [threading.Thread(target=lambda: results.append(once.result("a click", work))) for _ in range(2)]
    both[0].start()
    begun.wait()
    both[1].start()
    go.set()
    for thread in both:
        thread.join()
    assert results == [7, 7] and calls == [0]
    assert once.result("another click", lambda: 8) == 8


def test_what_failed_may_be_tried_again() -> None:
    once = Once()
    with pytest.raises(ZeroDivisionError):
        once.result("a click", lambda: 1 // 0)
    assert once.result("a click", lambda: 7) == 7
