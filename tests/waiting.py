"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], what: str, *, seconds: float = 120, every: float = 0.05) -> Found:
    """What ``condition`` returns as soon as that is true; fails, naming ``what``, when it never is.

    A machine that is busy takes many times as long as an idle one: who waits in vain waits for long, nobody else does.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        time.sleep(every)
    return found
