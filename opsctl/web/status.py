"""The one record that the page is made of: everything in it was known before anybody asked. Pure.

It judges nothing itself: what is good or bad was said by the checks, or by how a run ended. What the last run of the
checks said counts for a while only: a green page that nobody keeps green is worse than none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from opsctl.history import Run
from opsctl.incident import Summary
from opsctl.manifest import EVIDENCE_LEVELS
from opsctl.sightings import Sighting
from opsctl.web.catalog import Listed, Problem

CHARTED = 90
"""How many backups of a database the chart shows."""

STALE_RUNS = 3
STALE = timedelta(hours=24)
"""After so many runs that did not come, or that long without a schedule, what the checks said says nothing any more."""

BAD_FIRST = {"crit": 0, "unknown": 1, "warn": 2, "ok": 3, "skip": 4}


@dataclass(frozen=True)
class Check:
    """One check as the last run of ``doctor`` left it. ``since`` is when it got that status."""

    id: str
    target: str | None
    status: str
    message: str
    because: str | None = None
    remedy: str | None = None
    command: str | None = None
    scenario: str | None = None
    since: datetime | None = None

    @property
    def name(self) -> str:
        return f"{self.id} ({self.target})" if self.target else self.id


@dataclass(frozen=True)
class Doctor:
    """The last run of the checks."""

    at: datetime
    status: str
    summary: str
    scenario: str | None
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Backup:
    id: str
    created_at: datetime
    duration_seconds: float
    bytes: int
    stored_bytes: int
    level: str | None
    proven_at: datetime | None
    failed_in: tuple[str, ...]
    repositories: tuple[str, ...]
    pinned: bool
    encrypted: bool

    @property
    def is_damaged(self) -> bool:
        """Whether no copy is left that is not known to be damaged."""
        return set(self.repositories) <= set(self.failed_in)

    @property
    def is_restorable(self) -> bool:
        """Whether it has been restored once."""
        return self.level in EVIDENCE_LEVELS[2:]


@dataclass(frozen=True)
class Drill:
    """The last restore into a throwaway server that went well, and how long it took."""

    at: datetime
    restore_seconds: float


@dataclass(frozen=True)
class Database:
    """One database and its newest backups, newest first."""

    name: str
    count: int = 0
    stored_bytes: int = 0
    backups: tuple[Backup, ...] = ()
    proofs: Mapping[str, datetime] = field(default_factory=dict)
    """When a backup of it was last proven at a level, or better."""
    drill: Drill | None = None
    failures: tuple[Run, ...] = ()
    """Runs of ``backup`` that failed, in the time of the backups above."""
    next_at: datetime | None = None
    is_configured: bool = True
    source: str = "list"
    """``list``: told by the repositories; ``runs``: as runs of this host took and saw them."""

    @property
    def newest(self) -> Backup | None:
        """The newest good one."""
        return next((each for each in self.backups if not each.is_damaged), None)

    @property
    def restored_at(self) -> datetime | None:
        """When a backup of it was last restored, by what the repositories or this host know."""
        known = [self.proofs.get("restored"), self.drill.at if self.drill else None]
        return max((each for each in known if each), default=None)

    @property
    def failed(self) -> Run | None:
        """The last run of ``backup``, when it failed and none has gone well since."""
        last = self.failures[0] if self.failures else None
        newest = self.newest
        return last if last and (newest is None or last.started_at > newest.created_at) else None


@dataclass(frozen=True)
class Repository:
    name: str
    backups: int
    stored_bytes: int
    incomplete: int
    answered_at: datetime | None
    problem: Problem | None
    source: str = "list"
    """``list``: told by itself; ``runs``: as the last run that used it saw it."""


@dataclass(frozen=True)
class Status:
    now: datetime
    host: str
    state: str
    """What the page says in one word: that of the checks while it counts, else ``unknown``."""
    summary: str
    doctor: Doctor | None
    is_stale: bool
    databases: tuple[Database, ...]
    repositories: tuple[Repository, ...]
    runs: tuple[Run, ...] | None
    """``None`` where they cannot be read: not the same as none."""
    incidents: tuple[Summary, ...] | None
    problems: tuple[str, ...] = ()
    """What could not be read on this host."""

    @property
    def bad_checks(self) -> list[Check]:
        """Those that want something done, the worst first."""
        found = [each for each in (self.doctor.checks if self.doctor else ()) if each.status not in {"ok", "skip"}]
        return sorted(found, key=lambda each: BAD_FIRST.get(each.status, 1))

    @property
    def other_checks(self) -> list[Check]:
        return [each for each in (self.doctor.checks if self.doctor else ()) if each.status in {"ok", "skip"}]

    @property
    def open_incidents(self) -> list[Summary]:
        return [each for each in self.incidents or () if not each.is_closed]


def judged(
    doctor: Doctor | None, now: datetime, interval: timedelta | None, *, is_readable: bool = True
) -> tuple[str, str, bool]:
    """State, summary, and whether the last run of the checks is too long ago to count."""
    if not is_readable:
        return "unknown", "What the checks said last cannot be read.", False
    if doctor is None:
        return "unknown", "No checks have been made on this host yet.", False
    if now - doctor.at > (STALE_RUNS * interval if interval else STALE):
        return "unknown", "What the checks last said is too old to rely on.", True
    return doctor.status, doctor.summary, False


@dataclass(frozen=True)
class Merged:
    """The answers of all repositories as one: each backup once, with all its copies, newest first."""

    entries: tuple[Mapping[str, Any], ...] = ()
    """As ``list --json`` has them."""
    by_database: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    incomplete: tuple[Mapping[str, Any], ...] = ()
    unreachable: tuple[str, ...] = ()

    def database(self, name: str) -> Database:
        """What they say of one database."""
        entries = self.by_database.get(name, ())
        proofs: dict[str, datetime] = {}
        for entry in entries:
            if entry["evidence"]:
                proven_at = datetime.fromisoformat(entry["evidence"]["at"])
                for level in EVIDENCE_LEVELS[: EVIDENCE_LEVELS.index(entry["evidence"]["level"]) + 1]:
                    proofs[level] = max(proofs.get(level, proven_at), proven_at)
        return Database(
            name,
            count=len(entries),
            stored_bytes=sum(each["stored_bytes"] for each in entries),
            backups=tuple(backup_of(each) for each in entries[:CHARTED]),
            proofs=proofs,
        )


def merged(listed: Iterable[Listed]) -> Merged:
    """All repositories' answers together, the older ones of those that do not answer now as well."""
    found: dict[str, dict[str, Any]] = {}
    incomplete: list[Mapping[str, Any]] = []
    unreachable = []
    for each in listed:
        if each.problem is not None:
            unreachable.append(each.repository)
        if each.result is None:
            continue
        incomplete += each.result["incomplete"]
        for entry in each.result["backups"]:
            known = found.get(entry["id"])
            found[entry["id"]] = entry if known is None else _both(known, entry)
    entries = sorted(found.values(), key=lambda each: (each["created_at"], each["id"]), reverse=True)
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(entry["database"], []).append(entry)
    by_database = {name: tuple(each) for name, each in grouped.items()}
    return Merged(tuple(entries), by_database, tuple(incomplete), tuple(sorted(unreachable)))


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two copies of a backup as one entry."""
    proven = [each["evidence"] for each in (one, other) if each["evidence"]]
    return {
        **one,
        "evidence": max(proven, key=lambda e: (EVIDENCE_LEVELS.index(e["level"]), e["at"]), default=None),
        "failed_in": [*one["failed_in"], *other["failed_in"]],
        "repositories": [*one["repositories"], *other["repositories"]],
        "pinned": one["pinned"] or other["pinned"],
    }


def backup_of(entry: Mapping[str, Any]) -> Backup:
    """A backup from its entry in a list."""
    evidence = entry["evidence"]
    return Backup(
        id=entry["id"],
        created_at=datetime.fromisoformat(entry["created_at"]),
        duration_seconds=entry["duration_seconds"],
        bytes=entry["bytes"],
        stored_bytes=entry["stored_bytes"],
        level=evidence["level"] if evidence else None,
        proven_at=datetime.fromisoformat(evidence["at"]) if evidence else None,
        failed_in=tuple(entry["failed_in"]),
        repositories=tuple(entry["repositories"]),
        pinned=entry["pinned"],
        encrypted=entry["encrypted"],
    )


def as_seen(name: str, sightings: Sequence[Sighting], runs: Sequence[Run]) -> Database:
    """A database whose repositories cannot be listed from here: what runs of this host took and saw."""
    levels = {each.newest.id: each.newest.level for each in sightings if each.newest}
    homes = tuple(each.repository for each in sightings)
    backups = [
        Backup(
            id=run.backup_id or "",
            created_at=run.started_at,
            duration_seconds=run.duration_seconds or 0.0,
            bytes=run.bytes or 0,
            stored_bytes=run.stored_bytes or 0,
            level=levels.get(run.backup_id or ""),
            proven_at=None,
            failed_in=(),
            repositories=homes or ("?",),
            pinned=False,
            encrypted=False,
        )
        for run in runs
    ]
    return Database(
        name,
        count=max((each.backups for each in sightings), default=0),
        stored_bytes=sum(each.stored_bytes for each in sightings),
        backups=tuple(backups),
        proofs={level: proof.proven_at for each in sightings for level, proof in each.proofs.items()},
        source="runs" if backups or sightings else "list",
    )


def repository_of(listed: Listed) -> Repository:
    result = listed.result or {"backups": (), "incomplete": ()}
    return Repository(
        listed.repository,
        backups=len(result["backups"]),
        stored_bytes=sum(each["stored_bytes"] for each in result["backups"]),
        incomplete=len(result["incomplete"]),
        answered_at=listed.answered_at,
        problem=listed.problem,
    )
