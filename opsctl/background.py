"""Work in threads that end with the program: an interrupted run does not wait for a request to time out."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")

WAITED_SECONDS = 0.02
WAITS_SECONDS = 0.0005
"""So long in all, and so long for each item: the network, a slow disk. A local one answers at once."""


AHEAD = 4
"""How many items there are at a time, with the one in use: enough for neither side to wait, and few in memory."""

ENDING_SECONDS = 10
"""How long a thread that is not needed any more may take for the item it is at."""


def in_background(work: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Begin ``work`` in a thread of its own."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(future, work, *arguments), name="background", daemon=True).start()
    return future


def in_parallel(work: Callable[[Item], T], items: Sequence[Item], *, workers: int) -> Iterator[T]:
    """``work`` of every item, in their order: here, until it has waited a while for something, then by threads.

    Threads that do not wait are in each other's way.
    """
    began = time.monotonic() - time.thread_time()
    for number, item in enumerate(items):
        waited = time.monotonic() - time.thread_time() - began
        if waited > WAITED_SECONDS and waited > number * WAITS_SECONDS:
            yield from _by_threads(work, items[number:], workers)
            return
        yield work(item)


def ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The items, made by a thread while those before them are worked on. Close it to end early.

    Raises what making them raises, after the items before.
    """
    made: SimpleQueue[tuple[list[Item], BaseException | None]] = SimpleQueue()
    room = threading.Semaphore(AHEAD)
    ended = threading.Event()

    def run() -> None:
        error: BaseException | None = None
        try:
            with closing(items):
                while room.acquire() and not ended.is_set():
                    made.put(([next(items)], None))
        except StopIteration:
            pass
        except BaseException as caught:  # noqa: BLE001 - raised again where the items are asked for
            error = caught
        made.put(([], error))

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
            room.release()
    finally:
        ended.set()
        room.release()
        thread.join(ENDING_SECONDS)


def _by_threads(work: Callable[[Item], T], items: Sequence[Item], workers: int) -> Iterator[T]:
    futures: list[Future[T]] = [Future() for _ in items]
    left = iter(list(zip(items, futures, strict=True)))
    taking = threading.Lock()
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            with taking:
                item, future = next(left, (None, None))
            if future is None:
                return
            _run(future, work, item)

    for _ in range(min(workers, len(futures))):
        threading.Thread(target=run, name="background", daemon=True).start()
    try:
        for future in futures:
            yield future.result()
    finally:
        ended.set()


def _run(future: "Future[T]", work: Callable[..., T], *arguments: Any) -> None:
    try:
        future.set_result(work(*arguments))
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)
