"""Work in threads, where there is something to wait for."""

import threading
import time

import pytest
from waiting import wait_for

from opsctl.background import AHEAD, ahead, in_parallel


def test_what_waits_is_done_by_several_in_order():
    """A bucket answers after milliseconds: as soon as that shows, threads ask; the answers come in the items' order."""

    def work(number):
        time.sleep(0.03)
        return number, threading.current_thread()

    done = list(in_parallel(work, range(12), workers=4))

    assert [number for number, _ in done] == list(range(12))
    assert done[0][1] is threading.current_thread()
    assert 2 <= len({thread for _, thread in done[1:]}) <= 4
    assert threading.current_thread() not in {thread for _, thread in done[1:]}


def test_an_error_is_raised_where_its_result_is_asked_for():
    """One that cannot be read raises; what stands before it was given out."""

    def work(number):
        time.sleep(0.03)
        if number == 3:
            raise FileNotFoundError(number)
        return number

    results = in_parallel(work, range(6), workers=2)

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        next(results)


def test_items_are_made_ahead_but_not_far():
    """Memory is bounded: a reader that is slow holds back what makes the items."""
    made = []

    def make():
        for number in range(50):
            made.append(number)
            yield number

    items = ahead(make())
    assert next(items) == 0
    wait_for(lambda: len(made) == AHEAD, "the items ahead")
    assert list(items) == list(range(1, 50))


def test_whoever_stops_early_ends_the_thread():
    """Nothing is made any more, and what made it has cleaned up behind itself."""
    closed = threading.Event()

    def make():
        try:
            while True:
                yield b""
        finally:
            closed.set()

    items = ahead(make())
    next(items)
    items.close()

    assert closed.is_set()
    assert "ahead" not in {thread.name for thread in threading.enumerate()}


def test_an_error_comes_after_the_items_before_it():
    """What was made is used, then the error shows."""

    def make():
        yield 1
        raise ValueError("broken")

    items = ahead(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
