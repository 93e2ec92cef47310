"""Where the status comes from: the state folder of this host, and what the repositories told last.

Everything is read when it has changed and kept until then, so that a request costs the same with ten runs in the
history and with a hundred thousand. What this user may not read is said, and nothing else is missing for it.
"""

import os
import socket
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opsctl.checks import all_checks
from opsctl.checks.report import Report, from_results, report
from opsctl.errors import OpsctlError
from opsctl.history import FILE as HISTORY_FILE
from opsctl.history import Checks, History, Run
from opsctl.incident import Incidents, Summary
from opsctl.metrics import homes
from opsctl.sightings import FILE as SIGHTINGS_FILE
from opsctl.sightings import Seen, Sightings
from opsctl.web.catalog import Catalog, Listed
from opsctl.web.status import (
    CHARTED,
    Check,
    Database,
    Doctor,
    Drill,
    Merged,
    Repository,
    Status,
    as_seen,
    judged,
    merged,
    repository_of,
)

if TYPE_CHECKING:
    from opsctl.config import Config
    from opsctl.telemetry.redact import Redactor

RUNS = 20
INCIDENTS = 10
FAILURES = 20
"""How many of each the page shows."""

CHANGING = ("backup", "verify", "drill", "prune", "sync", "import", "restore")
"""Commands after which the repositories are asked again at once."""

T = TypeVar("T")
U = TypeVar("U")


class Sources:
    """What there is to tell, read as rarely as it changes. May be used by several threads."""

    def __init__(self, config: "Config", redactor: "Redactor", clock: Callable[[], datetime]) -> None:
        self.config = config
        self.clock = clock
        self._state = config.state_path
        self.history = History(self._state / HISTORY_FILE)
        self.incidents = Incidents(self._state / "incidents", redactor, clock)
        self._kept: dict[str, tuple[Hashable, Any, Any]] = {}
        self._keeping = threading.Lock()
        self._order = {check.id: place for place, check in enumerate(all_checks(config))}

    def marker(self) -> object:
        """Another value whenever a run may have changed what is in the repositories."""
        latest = self._if_changed("latest", self._file(HISTORY_FILE), self.history.latest)
        return [run.run_id for (command, _), run in sorted(latest.items(), key=str) if command in CHANGING]

    def status(self, catalog: Catalog) -> Status:
        """Everything the page shows, as it is known now."""
        now = self.clock()
        listed = catalog.listed()
        problems: list[str] = []
        doctor = self._guarded(problems, self.doctor, None)
        is_readable = not problems
        runs = self._guarded(problems, self.recent_runs, None)
        incidents = self._guarded(problems, self.recent_incidents, None)
        schedule = self.config.schedule.of("doctor")
        state, summary, is_stale = judged(
            doctor, now, schedule.interval(now) if schedule else None, is_readable=is_readable
        )
        seen = self._seen()
        return Status(
            now=now,
            host=socket.gethostname(),
            state=state,
            summary=summary,
            doctor=doctor,
            is_stale=is_stale,
            databases=self._databases(listed, seen, now, problems),
            repositories=tuple(_known_at_least(self._repository(each), seen) for each in listed),
            runs=runs,
            incidents=incidents,
            problems=tuple(dict.fromkeys(problems)),
        )

    def merged(self, listed: list[Listed]) -> Merged:
        """The repositories' answers together."""
        answers = [each.result for each in listed]
        signature = tuple((id(each.result), each.problem) for each in listed)
        return self._if_changed("merged", signature, lambda: merged(listed), keep=answers)

    def report(self) -> tuple[Checks, Report] | None:
        """What the checks said last, and when."""
        return self._if_changed("report", self._file(HISTORY_FILE), self._read_report)

    def _read_report(self) -> tuple[Checks, Report] | None:
        found = self.history.checks()
        if found is None:
            return None
        states = sorted(found.states, key=lambda each: (self._order.get(each.id, len(self._order)), each.target or ""))
        return found, report(from_results([each.entry for each in states]))

    def doctor(self) -> Doctor | None:
        found = self.report()
        if found is None:
            return None
        checks, told = found
        since = {(each.id, each.target): each.since for each in checks.states}
        return Doctor(
            at=checks.at,
            status=told.status,
            summary=told.verdict.summary,
            scenario=told.verdict.scenario,
            checks=tuple(
                Check(
                    id=each.id,
                    target=each.target,
                    status=each.status,
                    message=each.message,
                    because=each.because,
                    remedy=each.remedy.text if each.remedy else None,
                    command=str(each.remedy.command) if each.remedy and each.remedy.command else None,
                    scenario=each.remedy.scenario if each.remedy else None,
                    since=since.get((each.id, each.target)),
                )
                for each in told.checks
            ),
        )

    def recent_runs(self) -> tuple[Run, ...]:
        return self._if_changed("runs", self._file(HISTORY_FILE), lambda: self.history.runs(limit=RUNS))

    def recent_incidents(self) -> tuple[Summary, ...]:
        """The newest ones, and all that are still open. Raises OpsctlError where they are private."""
        found = self.all_incidents()
        return tuple(each for place, each in enumerate(found) if place < INCIDENTS or not each.is_closed)

    def all_incidents(self) -> tuple[Summary, ...]:
        folder = self._state / "incidents"
        if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
            raise OpsctlError(f"The incidents in {folder} can be read by their owner only.")
        files = tuple(sorted((each.name, *_signature(each)) for each in folder.glob("*")))
        return self._if_changed("incidents", files, lambda: tuple(each.summary() for each in self.incidents.list()))

    def _databases(self, listed: list[Listed], seen: Seen, now: datetime, problems: list[str]) -> tuple[Database, ...]:
        backups = self.merged(listed)
        configured = list(homes(self.config, seen))
        schedule = self.config.schedule.of("backup")
        next_at = schedule.next_run(now) if schedule else None
        found = []
        for name in dict.fromkeys([*configured, *backups.by_database]):
            database = self._database(name, backups)
            if not database.count:
                database = self._as_runs_saw(name, seen, problems)
            drill = seen.drills.get(name)
            found.append(
                replace(
                    database,
                    drill=Drill(drill.at, drill.restore_seconds) if drill else None,
                    failures=self._failures(database, now, problems),
                    next_at=next_at if name in configured else None,
                    is_configured=name in configured,
                )
            )
        return tuple(found)

    def _database(self, name: str, backups: Merged) -> Database:
        signature = id(backups)
        return self._if_changed(f"database {name}", signature, lambda: backups.database(name), keep=backups)

    def _repository(self, listed: Listed) -> Repository:
        return self._if_changed(f"repository {listed.repository}", listed, lambda: repository_of(listed), by_id=True)

    def _as_runs_saw(self, name: str, seen: Seen, problems: list[str]) -> Database:
        """A database no repository has told us of (yet, or us): the backups that runs of this host took."""

        def read() -> tuple[Run, ...]:
            runs = self.history.runs(command="backup", database=name, limit=2 * CHARTED)
            return tuple(run for run in runs if run.backup_id and run.outcome in {"done", "attention"})[:CHARTED]

        signature = self._file(HISTORY_FILE)
        runs = self._guarded(problems, lambda: self._if_changed(f"taken {name}", signature, read), ())
        return as_seen(name, [each for (_, of), each in seen.sightings.items() if of == name], runs)

    def _failures(self, database: Database, now: datetime, problems: list[str]) -> tuple[Run, ...]:
        """The runs of ``backup`` that failed since the oldest backup that is shown."""
        since = database.backups[-1].created_at if database.backups else now.replace(hour=0) - timedelta(days=90)

        def read() -> tuple[Run, ...]:
            found: list[Run] = []
            for outcome in ("failed", "lost"):
                found += self.history.runs(
                    command="backup", database=database.name, outcome=outcome, since=since, limit=FAILURES
                )
            return tuple(sorted(found, key=lambda each: each.started_at, reverse=True)[:FAILURES])

        name, signature = f"failures {database.name}", (*self._file(HISTORY_FILE), since.date())
        return self._guarded(problems, lambda: self._if_changed(name, signature, read), ())

    def _seen(self) -> Seen:
        return self._if_changed("seen", self._file(SIGHTINGS_FILE), Sightings(self._state).read)

    def _file(self, name: str) -> tuple[int, ...]:
        return _signature(self._state / name)

    def _if_changed(
        self, name: str, signature: Any, read: Callable[[], T], *, keep: Any = None, by_id: bool = False
    ) -> T:
        """What was read before, while its signature is still the same. ``keep`` lives as long, for those made of ids.

        ``by_id``: it is the same while it is the same object.
        """
        if by_id:
            signature, keep = id(signature), signature
        with self._keeping:
            known = self._kept.get(name)
        if known is not None and known[0] == signature:
            value: T = known[1]
            return value
        value = read()
        with self._keeping:
            self._kept[name] = signature, value, keep
        return value

    def _guarded(self, problems: list[str], read: Callable[[], T], otherwise: U) -> T | U:
        """What can be read, else a line about why not."""
        try:
            return read()
        except OpsctlError as error:
            problems.append(error.message)
            return otherwise


def _signature(path: Path) -> tuple[int, ...]:
    """Changes with the file; empty when there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _known_at_least(repository: Repository, seen: Seen) -> Repository:
    """A repository that has told us nothing yet as the runs of this host saw it last."""
    place = seen.places.get(repository.name)
    if repository.answered_at is not None or place is None or place.answered_at is None:
        return repository
    sightings = [each for (name, _), each in seen.sightings.items() if name == repository.name]
    return replace(
        repository,
        backups=sum(each.backups for each in sightings),
        stored_bytes=sum(each.stored_bytes for each in sightings),
        incomplete=place.incomplete,
        answered_at=place.answered_at,
        source="runs",
    )
