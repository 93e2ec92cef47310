"""Incidents on disk: a timeline file for each, which only grows, and beside it the record of where it ends.

Whoever appends holds the file's lock, so that a note beside a running runbook keeps the chain. A line is on disk, and
the folder too, before ``append`` returns.
"""

import fcntl
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from opsctl.errors import LockHeld, NoSuchIncident, TimelineUnwritable
from opsctl.telemetry.redact import Redactor
from opsctl.telemetry.shapes import deep_without_shapes
from opsctl.timeline import OWN_KEYS, Event, Examined, Head, Link, examine, parse_head, write_line
from opsctl.times import format_time

LOCK_SECONDS = 5.0
TEXT_BYTES = 64 * 1024
"""A longer text keeps its beginning and its end."""

ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


class Incidents:
    """The incidents of this host, in a folder of the state. ``actor`` is who is at work: it stands in every line."""

    def __init__(
        self,
        folder: Path,
        redactor: Redactor,
        clock: Callable[[], datetime],
        actor: Mapping[str, Any] | None = None,
        *,
        lock_seconds: float = LOCK_SECONDS,
    ) -> None:
        self._folder = folder
        self._redactor = redactor
        self._clock = clock
        self._actor = dict(actor or {})
        self._lock_seconds = lock_seconds

    def open(
        self, scenario: str | None, summary: str, *, detected_at: datetime | None = None, **fields: Any
    ) -> "Incident":
        """Begin an incident: its timeline exists from here on. ``fields`` are what else its first line says."""
        with _mapped(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            incident = self._create(self._clock())
        incident.append(
            "opened",
            incident=incident.id,
            scenario=scenario,
            summary=summary,
            detected_at=detected_at,
            **fields,
        )
        return incident

    def _create(self, now: datetime) -> "Incident":
        while True:
            incident = self._incident(f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
            try:
                descriptor = os.open(incident.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            os.close(descriptor)
            incident.write_head(Head(incident.id, Link(), 0))
            return incident

    def _incident(self, name: str) -> "Incident":
        return Incident(self._folder / f"{name}.jsonl", self._redactor, self._clock, self._actor, self._lock_seconds)

    def list(self) -> "list[Incident]":
        """Every incident there is, newest first; one whose timeline was removed and left its head, too."""
        names = {path.stem for path in self._folder.glob("*.jsonl")} | {p.stem for p in self._folder.glob("*.head")}
        return [self._incident(name) for name in sorted(names, reverse=True) if ID.fullmatch(name)]

    def find(self, wanted: str) -> "Incident":
        """The incident meant by ``latest``, its id, or a unique beginning or end of it. Raises NoSuchIncident."""
        known = self.list()
        if wanted == "latest" and known:
            return known[0]
        matches = [each for each in known if each.id == wanted] or [
            each for each in known if wanted and (each.id.startswith(wanted) or each.id.endswith(wanted))
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(each.id for each in matches[:5])
            raise NoSuchIncident(f"{wanted!r} means {len(matches)} incidents.", hint=f"Name one of them: {names}")
        raise NoSuchIncident(f"There is no incident {wanted!r}.", hint="`opsctl incident list` shows those there are.")

    def the_open_one(self) -> "Incident":
        """The incident that is not closed, where there is just one. Raises NoSuchIncident."""
        opened = [each for each in self.list() if not each.summary().is_closed]
        if len(opened) == 1:
            return opened[0]
        if opened:
            names = ", ".join(each.id for each in opened[:5])
            raise NoSuchIncident(f"{len(opened)} incidents are open.", hint=f"Name one of them: {names}")
        raise NoSuchIncident("No incident is open.", hint="`opsctl incident open TITLE` opens one.")


@dataclass(frozen=True)
class Summary:
    """What an incident came to so far. A moment is ``None`` as long as nobody has told of it."""

    id: str
    scenario: str | None
    summary: str
    status: str
    """open, acknowledged, mitigated, resolved or closed; damaged when it cannot be told."""

    opened_at: datetime | None
    detected_at: datetime | None
    acknowledged_at: datetime | None
    mitigated_at: datetime | None
    resolved_at: datetime | None
    closed_at: datetime | None
    events: int
    is_intact: bool

    @property
    def is_closed(self) -> bool:
        return self.closed_at is not None


class Incident:
    """One incident and its timeline."""

    def __init__(
        self,
        path: Path,
        redactor: Redactor,
        clock: Callable[[], datetime],
        actor: Mapping[str, Any],
        lock_seconds: float,
    ) -> None:
        self.path = path
        self.id = path.stem
        self._redactor = redactor
        self._clock = clock
        self._actor = actor
        self._lock_seconds = lock_seconds

    def append(self, kind: str, **fields: Any) -> Event:
        """Write one line, redacted, and see to it that it is on disk. Raises TimelineUnwritable, LockHeld.

        What is too long keeps its beginning and its end. A timeline that was cut off goes on where its head says it
        ended, so the gap stays visible.
        """
        reserved = OWN_KEYS & fields.keys()
        if reserved:
            raise ValueError(f"a line of a timeline has its own {', '.join(sorted(reserved))}")
        clean = self._clean({key: each for key, each in fields.items() if each is not None})
        actor = self._clean(self._actor)
        with _mapped(self.path), self._opened("r+b", fcntl.LOCK_EX) as file:
            link, torn, has_no_end = self._end_of(file)
            line = write_line(link, at=self._clock(), kind=kind, actor=actor, fields=clean, torn=torn)
            _write_all(file, b"\n" + line if has_no_end else line)
            [event] = examine(line, self.id, None).events
            with suppress(OSError):  # the line stands; a head that lags behind is made good by the next one
                self.write_head(Head(self.id, event.link, file.tell()))
        return event

    def _clean(self, fields: Mapping[str, Any]) -> Any:
        """As it is written: redacted before anything is shortened, else half a secret might be left."""
        return bounded(deep_without_shapes(self._redactor.deep(plain(fields))))

    def _end_of(self, file: IO[bytes]) -> tuple[Link, bytes, bool]:
        """Where the chain goes on, the cut-off line at the end if there is one, and whether the last byte ends a line.

        The file is left at its end.
        """
        head = parse_head(self._read_head(), self.id)
        size = file.seek(0, os.SEEK_END)
        if head is not None and head.size_bytes == size:
            return head.link, b"", False
        file.seek(0)
        found = examine(file.read(), self.id, None)
        link = head.link if head is not None and head.link.seq > found.link.seq else found.link
        return link, found.torn, bool(found.torn)

    def events(self) -> tuple[Event, ...]:
        """Every line that is what was written, oldest first."""
        return self.verify().events

    def verify(self) -> Examined:
        """Read the timeline and find every place where it is not what was written."""
        with _mapped(self.path):
            try:
                with self._opened("rb", fcntl.LOCK_SH) as file:
                    return examine(file.read(), self.id, self._read_head())
            except FileNotFoundError:
                return examine(b"", self.id, self._read_head())

    def close(self, text: str | None = None) -> Event:
        """Say that nothing more is to be done. Notes may follow."""
        return self.append("closed", text=text)

    def summary(self) -> Summary:
        found = self.verify()
        return summarize(self.id, found.events, is_intact=found.is_intact)

    def write_head(self, head: Head) -> None:
        """Put the record of the end in place, whole or not at all."""
        path = self.path.with_suffix(".head")
        partial = path.with_suffix(f".{os.getpid()}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(head.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def _read_head(self) -> bytes | None:
        try:
            return self.path.with_suffix(".head").read_bytes()
        except FileNotFoundError:
            return None

    @contextmanager
    def _opened(self, mode: str, lock: int) -> Iterator[IO[bytes]]:
        """The timeline's file, locked. Raises LockHeld after a while."""
        flags = (os.O_RDWR if "+" in mode else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path, flags), mode, buffering=0) as file:
            give_up_at = time.monotonic() + self._lock_seconds
            while True:
                try:
                    fcntl.flock(file, lock | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= give_up_at:
                        raise LockHeld(
                            f"Another opsctl has been writing to the incident {self.id} for {self._lock_seconds:g} s.",
                            hint="See whether it hangs; its timeline is locked until it ends.",
                        ) from None
                    time.sleep(0.01)
            yield file


MOMENTS = ("acknowledged", "mitigated", "resolved", "closed")
"""What a person says of an incident, in the order in which it goes."""

FIRST_ACTIONS = frozenset({"confirmed", "note", "step_started"})
"""Somebody is at work on it, whether they said so or not. Who opens an incident by hand is at work at once."""


def summarize(name: str, events: tuple[Event, ...], *, is_intact: bool = True) -> Summary:
    """What a timeline says of the incident as a whole; pure."""
    first = events[0] if events and events[0].kind == "opened" else None
    moments = {kind: next((moment_of(each) for each in events if each.kind == kind), None) for kind in MOMENTS}
    acted = next((each.at for each in events if each.kind in FIRST_ACTIONS), None)
    reached = [kind for kind in MOMENTS if moments[kind] is not None]
    fields = first.fields if first else {}
    opened_at = first.at if first else None
    detected = fields.get("detected_at")
    return Summary(
        id=name,
        scenario=fields.get("scenario"),
        summary=str(fields.get("summary") or ""),
        status="damaged" if first is None else reached[-1] if reached else "open",
        opened_at=opened_at,
        detected_at=datetime.fromisoformat(detected) if detected else opened_at,
        acknowledged_at=moments["acknowledged"] or (acted if "scenario" in fields else opened_at),
        mitigated_at=moments["mitigated"],
        resolved_at=moments["resolved"] or moments["closed"],
        closed_at=moments["closed"],
        events=len(events),
        is_intact=is_intact,
    )


def moment_of(event: Event) -> datetime:
    """When what it tells of happened: it may have been written down later."""
    told = event.fields.get("happened_at")
    return datetime.fromisoformat(told) if told else event.at


def plain(value: Any) -> Any:
    """Fields as JSON knows them."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float | None) else str(value)


def bounded(value: Any) -> Any:
    """The same with every long text shortened."""
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, dict):
        return {key: bounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [bounded(each) for each in value]
    return value


def shortened(text: str, limit: int = TEXT_BYTES) -> str:
    """A text of at most about ``limit`` bytes: its beginning, its end, and what was left out between them."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    kept = limit // 2
    marker = f"\n… {len(data) - 2 * kept} bytes left out; sha256 of all {len(data)}: {sha256(data).hexdigest()} …\n"
    return data[:kept].decode("utf-8", "ignore") + marker + data[-kept:].decode("utf-8", "ignore")


def _write_all(file: IO[bytes], data: bytes) -> None:
    """All of it, on disk; after a failure (a full disk) the file is as long as it was."""
    size = file.tell()
    try:
        written = 0
        while written < len(data):
            written += file.write(data[written:])
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(size)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NoSuchIncident(
            f"There is no timeline {path}.", hint="`opsctl incident list` shows those there are."
        ) from (error)
    except OSError as error:
        raise TimelineUnwritable(
            f"The timeline {path} cannot be used: {error.strerror}.",
            hint="OPSCTL_STATE_DIR names another folder, on a disk with room, for this run.",
        ) from error
