"""Log lines: out of what the runtime sends, and several services' lines in the order of their times."""

import heapq
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from opsctl.errors import OpsctlError
from opsctl.services import LogLine, Service, ServiceRuntime

LINE_BYTES = 1 << 16
"""A longer line is shown in pieces: a program that never ends its line must not fill the memory."""

TOGETHER_SECONDS = 0.05
"""What arrives within this time is put in order before it is shown."""

LOOK_AGAIN_SECONDS = 1
STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) ?")
NEVER = "0001-01-01T00:00:00.000000000Z"


@dataclass(frozen=True)
class Moment:
    """A line's time: as it was written, which sorts, and as a time."""

    stamp: str
    at: datetime


def stamp_of(moment: datetime) -> str:
    """A time as stamps are written, to compare with them."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"


def messages(chunks: Iterable[bytes], *, framed: bool) -> Iterator[tuple[Moment, str]]:
    """Lines with their times, out of pieces that begin with a time each.

    ``framed``: a piece is one message, and a long line comes in several, each with a time of its own. Else (a
    container with a terminal) pieces end anywhere.
    """
    first: Moment | None = None
    text = b""
    for piece in chunks if framed else _whole_lines(chunks):
        match = STAMP.match(piece)
        if first is None:
            first = _moment(match[1]) if match else Moment(NEVER, datetime.min.replace(tzinfo=UTC))
        text += piece[match.end() :] if match else piece
        if text.endswith(b"\n") or len(text) >= LINE_BYTES:
            yield first, _readable(text)
            first, text = None, b""
    if first is not None:
        yield first, _readable(text)


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _moment(stamp: bytes) -> Moment:
    text = stamp.decode()
    return Moment(text, datetime.fromisoformat(text))


def _readable(text: bytes) -> str:
    return text.decode("utf-8", "replace").rstrip("\r\n")


def interleaved(sources: Iterable[Iterator[LogLine]]) -> Iterator[LogLine]:
    """The lines of several sources in the order of their times; each source is in order already."""
    return heapq.merge(*sources, key=lambda line: line.stamp)


def read_lines(
    runtime: ServiceRuntime,
    services: Sequence[Service],
    *,
    tail: int | None,
    since: datetime | None = None,
    pattern: re.Pattern[str] | None = None,
) -> Iterator[LogLine]:
    """The newest ``tail`` lines of each service, in the order of their times; with a pattern, of those that match."""
    start = stamp_of(since) if since else None

    def of(service: Service) -> Iterator[LogLine]:
        lines = interleaved(runtime.logs(service, tail=None if pattern else tail, since=start))
        if pattern is None:
            return lines
        matching = (line for line in lines if pattern.search(line.text))
        return matching if tail is None else iter(deque(matching, maxlen=tail))

    return interleaved([of(service) for service in services])


class Follower:
    """New lines of several services as they are written; a container that ends is waited for, under a new id too.

    ``find`` gives the containers of a service's name. ``after`` is the stamp of the last line of each container that
    has been shown already.
    """

    def __init__(
        self,
        runtime: ServiceRuntime,
        find: Callable[[str], Sequence[Service]],
        services: Sequence[Service],
        after: dict[str, str],
    ) -> None:
        self._runtime = runtime
        self._find = find
        self._after = after
        self._lines: queue.Queue[LogLine | OpsctlError] = queue.Queue(maxsize=10_000)
        self._followed: set[str] = set()
        self._lock = threading.Lock()
        for service in services:
            self._followed.add(service.id)
            self._in_thread(self._follow, service)

    def __iter__(self) -> Iterator[LogLine]:
        """The lines; raises what ended the following."""
        while True:
            yield from sorted(self._arrived(), key=lambda line: line.stamp)

    def _arrived(self) -> list[LogLine]:
        """A line, and what comes right after it."""
        found = [self._next(None)]
        deadline = time.monotonic() + TOGETHER_SECONDS
        while len(found) < 1000 and (left := deadline - time.monotonic()) > 0:
            try:
                found.append(self._next(left))
            except queue.Empty:
                break
        return found

    def _next(self, timeout: float | None) -> LogLine:
        line = self._lines.get(timeout=timeout)
        if isinstance(line, OpsctlError):
            raise line
        return line

    def _follow(self, service: Service) -> None:
        after = self._after.get(service.id)
        while True:
            sources = self._runtime.logs(service, tail=None, since=after, follow=True)
            stamps = [after or NEVER] * len(sources)
            pumps = [self._in_thread(self._pump, each, stamps, number) for number, each in enumerate(sources)]
            for pump in pumps:
                pump.join()
            after = max(stamps)
            service = self._awaited(service)

    def _pump(self, lines: Iterator[LogLine], stamps: list[str], number: int) -> None:
        for line in lines:
            if line.stamp > stamps[number]:
                stamps[number] = line.stamp
                self._lines.put(line)

    def _awaited(self, ended: Service) -> Service:
        """The container that takes the place of one that ended: mostly itself, restarted."""
        with self._lock:
            self._followed.discard(ended.id)
        while True:
            time.sleep(LOOK_AGAIN_SECONDS)
            for service in self._find(ended.name):
                with self._lock:
                    if service.state.is_running and service.id not in self._followed:
                        self._followed.add(service.id)
                        return service

    def _in_thread(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except OpsctlError as error:
                self._lines.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread
