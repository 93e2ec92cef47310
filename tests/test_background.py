"""Work in threads, where there is something to wait for."""

import threading
import time

import pytest

from opsctl.background import in_parallel


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
