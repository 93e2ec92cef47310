"""What was last seen of the backups in each repository, kept on this host: what metrics and the page tell of them.

A run that lists a repository leaves here what it saw. So nothing has to be listed to tell of it, and what is known
outlives a failed run and a repository that does not answer. Never the truth: that is the repository.
"""

import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

FILE = "sightings.json"
SCHEMA = 1
BUSY_SECONDS = 1.0
"""How long another run may keep us from it: one that was stopped while it wrote must not stop this one."""


@dataclass(frozen=True)
class Proof:
    """The newest backup proven at a level or better: when it was taken, and when that was last proven of any."""

    backup_at: datetime
    proven_at: datetime


@dataclass(frozen=True)
class Newest:
    """The newest good backup of a database in a repository; ``level`` is what is proven about it."""

    id: str
    at: datetime
    duration_seconds: float
    bytes: int
    stored_bytes: int
    level: str | None


@dataclass(frozen=True)
class Sighting:
    """The backups of one database in one repository, as they were listed last.

    ``interval_seconds`` is how far apart they lately were. ``damaged`` failed a verification, ``future`` are dated
    after the clock.
    """

    repository: str
    database: str
    backups: int
    stored_bytes: int
    damaged: int = 0
    future: int = 0
    oldest_at: datetime | None = None
    newest: Newest | None = None
    interval_seconds: float | None = None
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    """By level."""


@dataclass(frozen=True)
class Place:
    """A repository itself: whether it answered when it was last asked, and when it last did."""

    answered: bool
    answered_at: datetime | None = None
    incomplete: int = 0
    """Folders that are no backup: interrupted, under way or damaged."""
    pruned: int = 0
    """Backups that this host removed there, ever."""
    copied: int = 0
    """Backups that this host copied there, ever."""


@dataclass(frozen=True)
class Drill:
    """The last successful restore of a database into a throwaway server, and how long the restore took."""

    at: datetime
    restore_seconds: float


@dataclass(frozen=True)
class Seen:
    """All that is kept, by names."""

    places: Mapping[str, Place] = field(default_factory=dict)
    sightings: Mapping[tuple[str, str], Sighting] = field(default_factory=dict)
    """By repository and database."""
    drills: Mapping[str, Drill] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """What one run saw of one repository. ``databases`` are those it asked for; ``None`` is all of them."""

    repository: str
    answered: bool
    databases: frozenset[str] | None = frozenset()
    sightings: tuple[Sighting, ...] = ()
    incomplete: int | None = None
    """Only where everything was listed."""
    pruned: int = 0
    copied: int = 0


def with_look(seen: Seen, look: Look, *, now: datetime) -> Seen:
    """What is known after a run has looked: what it did not see, or ask for, stays as it was."""
    before = seen.places.get(look.repository, Place(answered=True))
    place = replace(
        before,
        answered=look.answered,
        answered_at=now if look.answered else before.answered_at,
        incomplete=before.incomplete if look.incomplete is None else look.incomplete,
        pruned=before.pruned + look.pruned,
        copied=before.copied + look.copied,
    )
    kept = {
        key: each
        for key, each in seen.sightings.items()
        if key[0] != look.repository or (look.databases is not None and key[1] not in look.databases)
    }
    found = {(each.repository, each.database): each for each in look.sightings}
    return replace(seen, places={**seen.places, look.repository: place}, sightings={**kept, **found})


class Sightings:
    """The file they are kept in. One that is damaged is begun anew."""

    def __init__(self, state_path: Path) -> None:
        self._path = state_path / FILE

    def read(self) -> Seen:
        try:
            return _parsed(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return Seen()

    def update(self, looks: list[Look], drills: Mapping[str, Drill], *, now: datetime) -> Seen:
        """Add what a run saw; runs that end at the same time wait for each other, for a moment. Raises OSError."""
        with self._alone():
            seen = self.read()
            for look in looks:
                seen = with_look(seen, look, now=now)
            seen = replace(seen, drills={**seen.drills, **drills})
            self._write(seen)
        return seen

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            deadline = time.monotonic() + BUSY_SECONDS
            while not _locked(descriptor):
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "another run holds it")
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def _write(self, seen: Seen) -> None:
        document = {
            "schema": SCHEMA,
            "places": {name: asdict(each) for name, each in seen.places.items()},
            "sightings": [asdict(each) for each in seen.sightings.values()],
            "drills": {name: asdict(each) for name, each in seen.drills.items()},
        }
        descriptor, name = tempfile.mkstemp(prefix=".sightings-", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                json.dump(document, file, default=datetime.isoformat)
            Path(name).chmod(0o640)  # the page may be served by another user of the group
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parsed(document: Any) -> Seen:
    """Raises ValueError for what is no such document, or a later version's."""
    try:
        if document["schema"] != SCHEMA:
            raise ValueError(document["schema"])
        sightings = [_sighting(each) for each in document["sightings"]]
        return Seen(
            {
                name: Place(**{**each, "answered_at": _time(each["answered_at"])})
                for name, each in document["places"].items()
            },
            {(each.repository, each.database): each for each in sightings},
            {name: Drill(_moment(each["at"]), each["restore_seconds"]) for name, each in document["drills"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no sightings") from error


def _sighting(values: Mapping[str, Any]) -> Sighting:
    newest = values["newest"]
    return Sighting(
        **{
            **values,
            "oldest_at": _time(values["oldest_at"]),
            "newest": Newest(**{**newest, "at": _moment(newest["at"])}) if newest else None,
            "proofs": {
                level: Proof(_moment(each["backup_at"]), _moment(each["proven_at"]))
                for level, each in values["proofs"].items()
            },
        }
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _time(text: str | None) -> datetime | None:
    return None if text is None else _moment(text)
