"""Every run of opsctl on this host, in one SQLite file: what metrics, doctor and the status page read.

Losing it loses no backup, and a file that cannot be written fails no run. A run that was killed has a beginning and no
end; the next run on its host sees that its process is gone and calls it ``lost``.

The file is kept with a rollback journal: another user of its group reads it without writing anything, which a
write-ahead log does not allow once the last writer has gone.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opsctl.history_file import HistoryFile
from opsctl.times import format_time

if TYPE_CHECKING:
    import sqlite3

FILE = "history.db"

KEPT_RUNS = 200_000
KEPT_DAYS = 400
TRIMMED_EVERY = 100
MESSAGE_CHARACTERS = 2000

LOST_AFTER = timedelta(hours=48)
"""A run of another host or container is called lost after so long: its process cannot be seen from here."""

PROOFS = frozenset({"verify", "drill"})
"""Commands of which only ``done`` is a success: what needs attention there is that nothing was proven."""

RunOutcome = Literal["running", "done", "attention", "failed", "refused", "interrupted", "lost"]

COLUMNS = (
    "run_id, command, database, started_at, finished_at, outcome, exit_code, error_code, message, backup_id, bytes,"
    " stored_bytes, host, pid"
)


@dataclass(frozen=True)
class Run:
    """One run of a command, or its part that concerns one database."""

    run_id: str
    command: str
    database: str | None
    started_at: datetime
    finished_at: datetime | None = None
    outcome: RunOutcome = "running"
    exit_code: int | None = None
    error_code: str | None = None
    message: str | None = None
    backup_id: str | None = None
    bytes: int | None = None
    stored_bytes: int | None = None
    host: str = ""
    pid: int = 0

    @property
    def duration_seconds(self) -> float | None:
        return (self.finished_at - self.started_at).total_seconds() if self.finished_at else None


@dataclass(frozen=True)
class Ending:
    """How a run ended for one database; None where the command has none."""

    database: str | None
    outcome: RunOutcome
    exit_code: int | None
    error_code: str | None = None
    message: str | None = None
    backup_id: str | None = None
    bytes: int | None = None
    stored_bytes: int | None = None


@dataclass(frozen=True)
class MeasuredRestore:
    """How long it took to restore a whole backup, whose plain dump has ``dump_bytes``."""

    backup_id: str
    dump_bytes: int
    seconds: float
    at: datetime
    by: Literal["drill", "restore"] = "restore"


@dataclass(frozen=True)
class CheckState:
    """What a check said last, and since when its status is that. ``entry`` is its result as doctor prints it.

    While a check is skipped because of another one, ``status`` stays what it was: nobody looked.
    """

    id: str
    target: str | None
    status: str
    since: datetime
    at: datetime
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class CheckChange:
    """A check whose status is another one than the last time; ``before`` is None for one seen the first time."""

    state: CheckState
    before: str | None


@dataclass(frozen=True)
class Checks:
    """The last run of doctor that looked at everything, and every check's last state."""

    at: datetime
    status: str
    verdict: Mapping[str, Any]
    states: tuple[CheckState, ...]


def _as_it_is(value: Any) -> Any:
    return value


class History:
    """The record in ``<state>/history.db``. Raises HistoryUnavailable where the file cannot be used.

    ``redact`` is the last step before anything is written; whoever writes gives it.
    """

    def __init__(self, path: Path, *, redact: Callable[[Any], Any] = _as_it_is, kept_runs: int = KEPT_RUNS) -> None:
        self._file = HistoryFile(path)
        self._redact = redact
        self._kept_runs = kept_runs

    def begin(
        self, run_id: str, command: str, *, at: datetime, host: str, pid: int, databases: Sequence[str] = ()
    ) -> None:
        """Record that a run has begun, and which earlier ones ended without a word."""
        with self._file.writing() as connection:
            _mark_lost(connection, host, at)
            for database in databases or ("",):
                connection.execute(
                    "insert into runs (run_id, command, database, started_at, outcome, host, pid, process)"
                    " values (?, ?, ?, ?, 'running', ?, ?, ?)",
                    (run_id, command, _storable(self._redact(database)), format_time(at), host, pid, _process(pid)),
                )

    def concern(self, run_id: str, databases: Sequence[str]) -> None:
        """Record which databases a run that has begun is about."""
        with self._file.writing() as connection:
            rows = connection.execute("select * from runs where run_id = ?", (run_id,)).fetchall()
            if rows and databases:
                connection.execute("delete from runs where run_id = ?", (run_id,))
                for name in dict.fromkeys(_storable(self._redact(each)) for each in databases):
                    row = (*rows[0][:2], name, *rows[0][3:])
                    connection.execute(f"insert into runs values ({', '.join('?' * len(row))})", row)

    def end(self, run_id: str, endings: Iterable[Ending], *, at: datetime) -> None:
        """Record how a run ended, for each database it concerned."""
        with self._file.writing() as connection:
            query = "select command, started_at, host, pid, process from runs where run_id = ? limit 1"
            begun = connection.execute(query, (run_id,)).fetchone()
            if begun is None:
                return  # its beginning could not be recorded
            command, started_at, host, pid, process = begun
            connection.execute("delete from runs where run_id = ?", (run_id,))
            for each in map(self._clean, endings):
                database = each.database or ""
                row = (
                    *(run_id, command, database, started_at, format_time(at), each.outcome, each.exit_code),
                    *(each.error_code, each.message, each.backup_id, each.bytes, each.stored_bytes),
                    *(host, pid, process),
                )
                marks = ", ".join("?" * len(row))
                connection.execute(f"insert or replace into runs ({COLUMNS}, process) values ({marks})", row)
                _count(connection, run_id, command, database, each.outcome)
            _trim(connection, at, self._kept_runs)

    def notice_lost(self, *, at: datetime, host: str) -> None:
        """See which runs ended without a word, without beginning one."""
        with self._file.writing() as connection:
            _mark_lost(connection, host, at)

    def _clean(self, ending: Ending) -> Ending:
        def clean(text: str | None) -> str | None:
            return text and _storable(self._redact(text))

        return replace(
            ending,
            database=clean(ending.database),
            message=clean(ending.message),
            error_code=clean(ending.error_code),
            backup_id=clean(ending.backup_id),
        )

    def runs(
        self,
        *,
        limit: int | None = None,
        since: datetime | None = None,
        before: datetime | None = None,
        command: str | None = None,
        database: str | None = None,
        outcome: str | None = None,
    ) -> tuple[Run, ...]:
        """The newest first."""
        wanted: dict[str, Any] = {"command = ?": command, "database = ?": database, "outcome = ?": outcome}
        wanted["started_at >= ?"] = format_time(since) if since else None
        wanted["started_at < ?"] = format_time(before) if before else None
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f" where {' and '.join(given)}" if given else ""
        query = f"select {COLUMNS} from runs{where} order by started_at desc, run_id, database limit ?"
        return self._select(query, *given.values(), -1 if limit is None else limit)

    def latest(self) -> dict[tuple[str, str | None], Run]:
        """The newest run that ended, of each command and database."""
        return self._of_subjects("last_run")

    def last_success(self) -> dict[tuple[str, str | None], Run]:
        """The newest run that did what it should; no failure erases it.

        That is ``done`` or ``attention``; of what proves something, ``done`` alone.
        """
        return self._of_subjects("last_success")

    def totals(self) -> dict[tuple[str, str | None, str], int]:
        """How many runs of each command and database ended how, since the file exists."""
        with self._file.reading() as connection:
            found = connection.execute("select command, database, outcome, runs from totals").fetchall()
        return {(command, database or None, outcome): runs for command, database, outcome, runs in found}

    def record_restore(self, database: str, server: str, measured: MeasuredRestore) -> None:
        """Remember how long the last restore of a database into a server took."""
        backup_id = _storable(self._redact(measured.backup_id))
        row = (database, server, backup_id, measured.dump_bytes, measured.seconds, format_time(measured.at))
        with self._file.writing() as connection:
            connection.execute("insert or replace into restores values (?, ?, ?, ?, ?, ?)", row)

    def last_restore(self, database: str, server: str) -> MeasuredRestore | None:
        """The last restore of a database into a server, if this host made it."""
        query = "select backup_id, dump_bytes, seconds, at from restores where database = ? and server = ?"
        with self._file.reading() as connection:
            found = connection.execute(query, (database, server)).fetchone()
        if found is None:
            return None
        backup_id, dump_bytes, seconds, at = found
        return MeasuredRestore(backup_id, dump_bytes, seconds, datetime.fromisoformat(at))

    def record_checks(self, report: Mapping[str, Any], *, at: datetime, is_whole: bool) -> tuple[CheckChange, ...]:
        """Remember what doctor found (its result as JSON has it), and say which checks changed their status.

        A check that was skipped because of another one keeps its status: nobody looked. One that has nothing to look at
        any more is forgotten. Of a run that looked at some checks only (``is_whole`` is False) the verdict is not kept.
        """
        report = self._redact(report)
        changes: list[CheckChange] = []
        with self._file.writing() as connection:
            known = {(state.id, state.target): state for state in _states(connection)}
            for entry in report["checks"]:
                before = known.pop((entry["id"], entry.get("target")), None)
                state = _next_state(before, entry, at)
                if state is None:
                    known |= {(before.id, before.target): before} if before else {}
                    continue
                if before is None or before.status != state.status:
                    changes.append(CheckChange(state, before.status if before else None))
                connection.execute(
                    "insert or replace into checks values (?, ?, ?, ?, ?, ?)",
                    (
                        state.id,
                        state.target or "",
                        state.status,
                        format_time(state.since),
                        format_time(at),
                        _json(entry),
                    ),
                )
            if is_whole:
                gone = [(id_, target or "") for id_, target in known]
                connection.executemany("delete from checks where id = ? and target = ?", gone)
                verdict = {key: report[key] for key in ("status", "verdict")}
                row = ("doctor", format_time(at), _json(verdict))
                connection.execute("insert or replace into verdicts values (?, ?, ?)", row)
        return tuple(changes)

    def checks(self) -> Checks | None:
        """What doctor found last; None when it has never looked at everything."""
        with self._file.reading() as connection:
            verdict = connection.execute("select at, entry from verdicts where name = 'doctor'").fetchone()
            if verdict is None:
                return None
            entry = json.loads(verdict[1])
            return Checks(datetime.fromisoformat(verdict[0]), entry["status"], entry["verdict"], _states(connection))

    def _of_subjects(self, column: str) -> dict[tuple[str, str | None], Run]:
        columns = ", ".join(f"runs.{name}" for name in COLUMNS.split(", "))
        query = f"select {columns} from subjects join runs on runs.run_id = subjects.{column}"
        query += " and runs.database = subjects.database"
        return {(run.command, run.database): run for run in self._select(query)}

    def _select(self, query: str, *values: Any) -> tuple[Run, ...]:
        with self._file.reading() as connection:
            return tuple(map(_run, connection.execute(query, values)))


def _run(row: Sequence[Any]) -> Run:
    names = [field.name for field in fields(Run)]
    values = dict(zip(names, row, strict=True))
    values["database"] = values["database"] or None
    values["started_at"] = datetime.fromisoformat(values["started_at"])
    values["finished_at"] = datetime.fromisoformat(values["finished_at"]) if values["finished_at"] else None
    return Run(**values)


def _states(connection: "sqlite3.Connection") -> tuple[CheckState, ...]:
    found = connection.execute("select id, target, status, since, at, entry from checks order by rowid")
    return tuple(
        CheckState(
            id_, target or None, status, datetime.fromisoformat(since), datetime.fromisoformat(at), json.loads(entry)
        )
        for id_, target, status, since, at, entry in found
    )


def _next_state(before: CheckState | None, entry: Mapping[str, Any], at: datetime) -> CheckState | None:
    """None: there is nothing to remember."""
    status = entry["status"]
    if status == "skip":
        return replace(before, at=at, entry=entry) if before and entry.get("because") else None
    since = before.since if before and before.status == status else at
    return CheckState(entry["id"], entry.get("target"), status, since, at, entry)


def _mark_lost(connection: "sqlite3.Connection", host: str, now: datetime) -> None:
    """Runs that are under way, and whose process is not there any more."""
    query = "select run_id, command, database, started_at, host, pid, process from runs where outcome = 'running'"
    for run_id, command, database, started_at, run_host, pid, process in connection.execute(query).fetchall():
        if run_host == host and _is_visible(process):
            is_lost = _process(pid) != process
        else:
            is_lost = now - datetime.fromisoformat(started_at) > LOST_AFTER
        if is_lost:
            connection.execute("update runs set outcome = 'lost' where run_id = ? and database = ?", (run_id, database))
            _count(connection, run_id, command, database, "lost")


def _count(connection: "sqlite3.Connection", run_id: str, command: str, database: str, outcome: RunOutcome) -> None:
    connection.execute(
        "insert into totals values (?, ?, ?, 1) on conflict do update set runs = runs + 1", (command, database, outcome)
    )
    connection.execute("insert or ignore into subjects values (?, ?, null, null)", (command, database))
    is_success = outcome == "done" or (outcome == "attention" and command not in PROOFS)
    for column in ("last_run", "last_success") if is_success else ("last_run",):
        update = f"update subjects set {column} = ? where command = ? and database = ?"
        connection.execute(update, (run_id, command, database))


def _trim(connection: "sqlite3.Connection", now: datetime, kept: int) -> None:
    """Now and then forget the oldest runs; the last one and the last success of each command and database stay."""
    (ended,) = connection.execute("select sum(runs) from totals").fetchone()
    if not ended or ended % min(TRIMMED_EVERY, kept):
        return
    (count,) = connection.execute("select count(*) from runs").fetchone()
    needed = "select last_run from subjects union select last_success from subjects where last_success is not null"
    connection.execute(
        f"delete from runs where outcome <> 'running' and run_id not in ({needed})"
        " and (started_at < ? or (run_id, database) in"
        " (select run_id, database from runs order by started_at limit ?))",
        (format_time(now - timedelta(days=KEPT_DAYS)), max(0, count - kept)),
    )


def _process(pid: int) -> str:
    """Which process a pid is: when it began, in which boot and container. Empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    is_dead = stat[0] in {b"Z", b"X"}  # nobody has asked how it ended
    return "" if is_dead else f"{_namespace()}/{stat[19].decode()}"


def _namespace() -> str:
    """Where a pid means something: this boot of the machine, and the container if we are in one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_visible(process: str) -> bool:
    """Whether a process can be looked for: after a reboot there is no doubt either, in another container there is."""
    boot, _, rest = process.partition("/")
    here_boot, _, here = _namespace().partition("/")
    return boot != here_boot or rest.rpartition("/")[0] == here


def _storable(text: str) -> str:
    """Text as SQLite takes it; no longer than anybody reads."""
    return text[:MESSAGE_CHARACTERS].encode("utf-8", "replace").decode()


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
