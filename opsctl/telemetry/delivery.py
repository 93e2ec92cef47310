"""What is sent to other servers while the run goes on: in order, and waited for no longer than is said.

Nothing here may fail or hold up a run: what is sent is sent in a thread that ends with the program.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.client import HTTPException
from threading import Condition
from urllib import request
from urllib.error import HTTPError, URLError
from uuid import NAMESPACE_URL, uuid5

from opsctl import __version__
from opsctl.background import in_background


class Undelivered(Exception):
    """There was no answer; the text says why, without the address: it may be a secret."""


class Sender:
    """Deliveries to one place, one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._busy = False
        self._changed = Condition()

    def add(self, delivery: Callable[[], object]) -> None:
        """Deliver after what was added before. What ``delivery`` raises is lost with it."""
        with self._changed:
            self._waiting.append(delivery)
            if not self._busy:
                self._busy = True
                in_background(self._work)

    def wait(self, seconds: float) -> bool:
        """Whether all is delivered, or given up, within so long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, max(0.0, seconds))

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._busy = False
                    self._changed.notify_all()
                    return
                delivery = self._waiting.popleft()
            with suppress(Exception):
                delivery()


def run_uuid(run_id: str) -> str:
    """A run's id as other services want it: one of theirs, always the same for the same run."""
    return str(uuid5(NAMESPACE_URL, f"opsctl:{run_id}"))


def wait_for(senders: Iterable[Sender], seconds: float) -> bool:
    """Whether all of them are done within so long, all together."""
    deadline = time.monotonic() + seconds
    return all(sender.wait(deadline - time.monotonic()) for sender in senders)


def post(url: str, body: bytes, *, headers: Mapping[str, str] | None = None, timeout_seconds: float) -> int:
    """The status of the answer to ``body``; through the environment's proxy, following no redirect.

    ``timeout_seconds`` is for each wait on the network; who needs a bound for all of them waits for a Sender.
    Raises Undelivered.
    """
    named = {"User-Agent": f"opsctl/{__version__}", "Content-Type": "text/plain; charset=utf-8", **(headers or {})}
    try:
        asked = request.Request(url, data=body, headers=named, method="POST")  # noqa: S310 - _opener knows HTTP only
        with _opener().open(asked, timeout=timeout_seconds) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code
    except URLError as error:
        raise Undelivered(_reason(error.reason)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise Undelivered(_reason(error)) from error


def _opener() -> request.OpenerDirector:
    """One that neither follows redirects, which could lead inside the network, nor knows ``file:``."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or type(error).__name__
