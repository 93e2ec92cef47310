"""Where metrics come from: what this run saw of the repositories, what earlier ones left, and the history of runs."""

from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from opsctl.catalog import Backup, StoredBackup
from opsctl.errors import HistoryUnavailable
from opsctl.freshness import TOLERANCE, expected_interval, good_ones
from opsctl.history import FILE, CheckState, History
from opsctl.manifest import EVIDENCE_LEVELS
from opsctl.repository import Repository
from opsctl.schedule import SCHEDULED
from opsctl.sightings import Drill, Look, Newest, Proof, Seen, Sighting, Sightings
from opsctl.telemetry.metrics import CheckFacts, DoctorFacts, Known, RunFacts

if TYPE_CHECKING:
    from opsctl.config import Config


def looks(repositories: Iterable[Repository], *, now: datetime) -> list[Look]:
    """What this run saw of the repositories that it asked; nothing is asked for it."""
    return [look_at(each, now=now) for each in repositories if each.listing.answered is not None]


def look_at(repository: Repository, *, now: datetime) -> Look:
    listing = repository.listing
    sightings = [
        sighting(repository.name, database, copies, now=now) for database, copies in listing.by_database().items()
    ]
    return Look(
        repository.name,
        bool(listing.answered),
        None if listing.databases is None else frozenset(listing.databases),
        tuple(each for each in sightings if each.backups),
        listing.incomplete,
        listing.removed,
        listing.copied,
    )


def sighting(repository: str, database: str, copies: Iterable[StoredBackup], *, now: datetime) -> Sighting:
    """What is told of one database's backups in one repository. Good ones are those that doctor counts, too."""
    backups = sorted((Backup((copy,)) for copy in copies), key=lambda each: (each.created_at, each.id), reverse=True)
    good = good_ones(backups, now)
    return Sighting(
        repository,
        database,
        backups=len(backups),
        stored_bytes=sum(each.manifest.stored_bytes for each in backups),
        damaged=sum(each.failed for each in backups),
        future=sum(each.created_at > now + TOLERANCE for each in backups),
        oldest_at=good[-1].created_at if good else None,
        newest=_newest(good[0]) if good else None,
        interval_seconds=expected_interval(None, good, now).total_seconds(),
        proofs=_proofs(good),
    )


def _newest(backup: Backup) -> Newest:
    manifest, proven = backup.manifest, backup.proven
    return Newest(
        manifest.id,
        manifest.created_at,
        manifest.duration_seconds,
        manifest.dump.bytes,
        manifest.stored_bytes,
        proven.level if proven else None,
    )


def _proofs(good: list[Backup]) -> dict[str, Proof]:
    """For each level what is proven at it or better."""
    proofs: dict[str, Proof] = {}
    for rank, level in enumerate(EVIDENCE_LEVELS):
        enough = EVIDENCE_LEVELS[rank:]
        passed = {
            backup.created_at: max(each.at for each in found)
            for backup in good
            if (found := [e for copy in backup.copies for e in copy.evidence if e.passed and e.level in enough])
        }
        if passed:
            proofs[level] = Proof(max(passed), max(passed.values()))
    return proofs


def drills(result: Any, repositories: Iterable[Repository], *, now: datetime) -> dict[str, Drill]:
    """The restores that a run has timed, by database."""
    listings = [each.listing for each in repositories]
    found: dict[str, Drill] = {}
    for each in (result or {}).get("backups", ()):
        if each.get("outcome") == "pass" and each.get("restore_seconds") is not None:
            names = (listing.database_of(each["id"]) for listing in listings)
            database = each.get("database") or next((name for name in names if name), None)
            if database:
                found[database] = Drill(now, float(each["restore_seconds"]))
    return found


def known(config: "Config", *, now: datetime) -> Known:
    """Everything metrics are made of, from the state folder alone: nothing is asked that could hang."""
    seen, history = Sightings(config.state_path).read(), History(config.state_path / FILE)
    try:
        latest, successes, totals, checks = history.latest(), history.last_success(), history.totals(), history.checks()
    except HistoryUnavailable:
        latest, successes, totals, checks = {}, {}, {}, None
    return Known(
        now,
        homes(config, seen),
        seen,
        intervals(config, now),
        {
            (command, database or ""): RunFacts(run.started_at, run.finished_at, run.outcome)
            for (command, database), run in latest.items()
        },
        {
            (command, database or ""): run.finished_at
            for (command, database), run in successes.items()
            if run.finished_at
        },
        {(command, database or "", outcome): count for (command, database, outcome), count in totals.items()},
        DoctorFacts(checks.at, checks.status, [_check(each) for each in checks.states]) if checks else None,
    )


def _check(state: CheckState) -> CheckFacts:
    return CheckFacts(state.id, state.target or "", state.status, state.entry.get("value"), state.entry.get("unit"))


def homes(config: "Config", seen: Seen) -> dict[str, list[str]]:
    """The repositories of each database: those configured by name, and those seen of a whole server."""
    names = [name for name, settings in config.databases.items() if not settings.all]
    names += sorted(
        {database for _, database in seen.sightings if database not in names and _is_looked_after(config, database)}
    )
    return {name: config.repositories_of(name) for name in names}


def _is_looked_after(config: "Config", database: str) -> bool:
    section = config.section_of(database)
    if section is None:
        return False
    return not any(fnmatchcase(database, pattern) for pattern in config.databases[section].exclude)


def intervals(config: "Config", now: datetime) -> dict[str, float]:
    """How far apart runs should be, in seconds, of what [schedule] names."""
    schedules = {name: config.schedule.of(name) for name in SCHEDULED}
    found = {name: schedule.interval(now) for name, schedule in schedules.items() if schedule}
    return {name: interval.total_seconds() for name, interval in found.items() if interval}
