"""A drill: restore a backup into a server made for it, compare everything with the facts, and record what that proves.

Pass, fail and unknown are three outcomes. What says something about the backup is a pass or a fail and becomes
evidence; what says something about this machine (a missing extension, no room, an old PostgreSQL) is unknown.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from opsctl import __version__
from opsctl.drill_servers import Candidate, DrillServer
from opsctl.errors import (
    BackupDamaged,
    ConfigurationError,
    CopyDiffers,
    OpsctlError,
    QueryFailed,
    Refused,
    RestoreFailed,
)
from opsctl.keys import Keys
from opsctl.manifest import EvidenceLevel, Facts, Manifest
from opsctl.postgres.databases import create_staging, drop_database
from opsctl.postgres.facts import compare_objects, read_facts
from opsctl.postgres.server import Server
from opsctl.postgres.session import read_value
from opsctl.postgres.swap import staging_name
from opsctl.postgres.tools import Tools
from opsctl.repository import Repository
from opsctl.restore import Restore
from opsctl.restore_plan import RestoreOptions
from opsctl.stream import Advance
from opsctl.verify import Outcome, Verification, check_files, check_schema

LEVELS: dict[str, EvidenceLevel] = {"none": "restored", "counts": "counted", "content": "content"}
OPTIONS = RestoreOptions(into=True, no_tablespaces=True, accept_unknown_disk=True)

OF_THE_DATA = re.compile(
    r"COPY failed|invalid input syntax|invalid byte sequence|duplicate key"
    r"|could not create unique|violates|out of range"
)
"""pg_restore's words for what no server of any version would take."""

OF_THE_RIGHTS = re.compile(r"permission denied|must be (owner|superuser|able|member|a superuser)")

OF_THE_SERVER = re.compile(r"ERROR: +(.+)")
"""What the server itself said, without how the program that was told ended."""

OF_THE_MACHINE = re.compile(
    r"is not available|could not open extension control|could not access file|could not load library|not supported by"
    r"|unsupported XML|No space left"
    r"|could not (write|extend|create|open|fsync|resize)( \w+)* file|out of (shared )?memory"
    r"|Cannot allocate|server closed the connection|terminating connection|connection to server|the database system"
    r"|role \".*\" does not exist|collation \".*\" .*does not exist|could not create locale|unrecognized configuration"
    r"|invalid value for parameter|encoding .* does not match|was killed by signal|compression method"
)
"""… and for what this server or machine lacks: another one may have it."""

ASSERTION_SECONDS = 300


@dataclass(frozen=True)
class Assertion:
    """A query of the user's about the restored database, and the one value it should give."""

    sql: str
    expect: bool | float | str = True


class _CouldNotVerify(Exception):
    """Why a backup cannot be judged on a server."""


@dataclass(frozen=True)
class _Result:
    outcome: Outcome
    level: EvidenceLevel | None
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    restore_seconds: float | None = None
    server: str | None = None
    pg_restore: str | None = None


@dataclass(frozen=True)
class Drills:
    """How the backups of a database are drilled: on the first of ``candidates`` that can."""

    candidates: Callable[[Manifest], Iterable[Candidate]]
    tools: Tools
    keys: Keys
    clock: Callable[[], datetime]
    start_progress: Callable[[str, int], Advance]
    assertions: Sequence[Assertion] = ()

    def verify(self, copies: Sequence[tuple[Repository, Manifest]]) -> list[Verification]:
        """Drill one backup. Every copy is read whole; what is proven of one is so of those with the same bytes."""
        found: list[Verification] = []
        intact: list[tuple[Repository, Manifest]] = []
        for repository, known in copies:
            try:
                _, manifest = repository.reread(known)
                self.keys.require_signature(repository, manifest)
                problems = check_files(manifest, repository, self.start_progress)
            except (Refused, BackupDamaged) as error:
                # As in verify: it says nothing about the bytes that other readers could check.
                found.append(Verification(known.id, repository.name, "fail", None, (error.message,)))
            except OpsctlError as error:
                found.append(Verification(known.id, repository.name, "unknown", None, (error.message,)))
            else:
                if problems:
                    found.append(self._recorded(repository, manifest, _Result("fail", "stored", tuple(problems))))
                else:
                    intact.append((repository, manifest))
        while intact:
            repository, manifest = intact[0]
            result = self._drilled(repository, manifest)
            found += [self._recorded(each, same, result) for each, same in intact if same == manifest]
            intact = [(each, other) for each, other in intact if other != manifest]
        return found

    def _recorded(self, repository: Repository, manifest: Manifest, result: _Result) -> Verification:
        """The result as evidence; one that is unknown is none."""
        problems = result.problems
        if result.level is not None and result.outcome != "unknown":
            details = {
                "problems": list(problems),
                "notes": list(result.notes),
                "drill": result.server is not None,
                "restore_seconds": result.restore_seconds,
                "server": result.server,
                "pg_restore_version": result.pg_restore,
                "opsctl_version": __version__,
                "assertions": len(self.assertions),
            }
            try:
                repository.record_evidence(manifest, result.level, result.outcome, at=self.clock(), details=details)
            except OpsctlError as error:
                problems = (*problems, f"the evidence could not be recorded: {error.message}")
        reached = result.level if result.outcome == "pass" else "stored" if result.level != "stored" else None
        return Verification(
            backup_id=manifest.id,
            repository=repository.name,
            outcome=result.outcome,
            evidence=reached,
            problems=problems,
            notes=result.notes,
            restore_seconds=result.restore_seconds,
            restored_on=result.server,
        )

    def _drilled(self, repository: Repository, manifest: Manifest) -> _Result:
        try:
            self.keys.require_identity(repository, manifest)
            problems = tuple(check_schema(manifest, repository, self.tools, self.keys))
        except BackupDamaged as error:
            problems = (error.message,)
        except OpsctlError as error:
            return _Result("unknown", None, (error.message,))
        if problems:
            return _Result("fail", "decoded", problems)
        reasons = []
        for candidate in self.candidates(manifest):
            result = None
            try:
                with candidate.open(manifest) as server:
                    result = self._on(server, repository, manifest, candidate.description)
            except (_CouldNotVerify, OpsctlError, OSError) as error:
                reason = getattr(error, "message", None) or str(error)
                if result is not None:
                    return replace(result, notes=(*result.notes, f"cleaning up: {reason}"))
                reasons.append(f"{candidate.description}: {reason.rstrip('.')}")
            else:
                return result
        none = (f"there is no server of PostgreSQL {manifest.server_major} or newer here to drill on",)
        return _Result("unknown", None, tuple(reasons) or none)

    def _on(self, server: DrillServer, repository: Repository, manifest: Manifest, description: str) -> _Result:
        """Restore and compare. Raises _CouldNotVerify and OpsctlError for what says nothing about the backup."""
        result = self._judged(server, repository, manifest, description)
        if reason := server.stopped_because():  # what did not hold may not have been asked any more
            raise _CouldNotVerify(reason)
        return result

    def _judged(self, server: DrillServer, repository: Repository, manifest: Manifest, description: str) -> _Result:
        restore = Restore(
            manifest,
            repository,
            server.server,
            server.server.database,
            OPTIONS,
            self._tools(server, manifest),
            server.work_path,
            keys=self.keys,
            is_checked=True,
        )
        restore, notes = _prepared(restore, server, self.clock())
        try:
            return self._run(restore, notes, server, description)
        except RestoreFailed as error:
            if OF_THE_RIGHTS.search(error.message) and restore.server is not server.superuser:
                refused = OF_THE_SERVER.search(error.message)
                restore, more = _as_superuser(restore, server, refused[1] if refused else error.message)
                return self._run(restore, [*notes, more], server, description)
            raise

    def _tools(self, server: DrillServer, manifest: Manifest) -> Tools:
        """The programs of this host, or those beside the server where ours do not fit."""
        if server.tools is None:
            return self.tools
        try:
            self.tools.for_restore(archive_major=manifest.pg_dump_major, server_major=server.server.info.major)
        except ConfigurationError:
            return server.tools
        return self.tools

    def _run(self, restore: Restore, notes: list[str], server: DrillServer, description: str) -> _Result:
        manifest = restore.manifest
        version = restore.binaries.version
        level = LEVELS[manifest.facts.level]
        started = time.monotonic()
        try:
            _, restored = restore.execute(clock=self.clock, start_progress=self.start_progress)
        except CopyDiffers as error:
            seconds = time.monotonic() - started
            return _Result("fail", level, error.differences, tuple(notes), round(seconds, 3), description, version)
        except BackupDamaged as error:
            return _Result("fail", "restored", (error.message,), tuple(notes), None, description, version)
        except RestoreFailed as error:
            if server.stopped_because() or not _is_the_backups(error.message, manifest, restore.server.info.major):
                raise  # a server that was stopped is not asked for its version
            return _Result("fail", "restored", (error.message,), tuple(notes), None, description, version)
        seconds = time.monotonic() - started
        problems = [*self._objects(restore.server, manifest.facts), *self._asserted(restore.server)]
        outcome: Outcome = "fail" if problems else "pass"
        remarks = (*notes, *restored.warnings)
        return _Result(outcome, level, tuple(problems), remarks, round(seconds, 3), description, version)

    def _objects(self, server: Server, facts: Facts) -> list[str]:
        with server.connect() as connection:
            return compare_objects(facts, read_facts(connection, server.database, "none"))

    def _asserted(self, server: Server) -> Iterator[str]:
        """What does not hold of the copy, under its own settings."""
        for assertion in self.assertions:
            try:
                with server.connect() as connection:
                    value = read_value(connection, assertion.sql, seconds=ASSERTION_SECONDS)
            except QueryFailed as error:
                yield f"assertion {assertion.sql!r}: {error.message}"
            else:
                if not _is_expected(value, assertion.expect):
                    yield f"assertion {assertion.sql!r} gives {value}, not {assertion.expect}"


def _prepared(restore: Restore, server: DrillServer, now: datetime) -> tuple[Restore, list[str]]:
    """The restore as it can be made there, and what is remarkable about that. Raises _CouldNotVerify."""
    notes = []
    anyhow = replace(restore, options=replace(restore.options, c_locale=True))  # its own locale is tried below
    blockers = anyhow.plan(now).blockers
    if blockers and server.superuser is not None and not replace(anyhow, server=server.superuser).plan(now).blockers:
        restore, note = _as_superuser(restore, server, blockers[0])
        notes.append(note)
    elif blockers:
        raise _CouldNotVerify("; ".join(blockers))
    problem = _locale_problem(restore)
    if problem is not None:
        restore = replace(restore, options=replace(restore.options, c_locale=True))
        notes.append(f"restored with the locale C instead of its own: {problem}")
    return restore, notes


def _as_superuser(restore: Restore, server: DrillServer, reason: str) -> tuple[Restore, str]:
    """Code of a backup that is loaded by a superuser can do what the server's OS user can."""
    if server.superuser is None:
        raise _CouldNotVerify(reason)
    if not (server.trusts_superuser or restore.keys.trusted):
        raise _CouldNotVerify(
            f"{reason}; its code would then run as this user of the operating system, and is not trusted with that:"
            " run drills as root, sign backups, or set allow_superuser in [drill]"
        )
    return replace(restore, server=server.superuser), f"loaded by a superuser: {reason}"


def _locale_problem(restore: Restore) -> str | None:
    """Why a database with the backup's locale cannot be made; tried, because only that tells."""
    probe = staging_name(restore.database, "00000000")  # removed with the drill's other leftovers
    properties = replace(restore.manifest.facts.database, owner=restore.server.info.user)
    server = restore.server
    try:
        with server.connect(server.maintenance_database) as connection:
            create_staging(connection, probe, properties)
            drop_database(connection, probe)
    except QueryFailed as error:
        if "locale" in error.message and properties.collate not in {"C", "POSIX"}:
            return error.message.removeprefix("The server refused a statement: ").rstrip(".")
        raise
    return None


def _is_the_backups(message: str, manifest: Manifest, major: int) -> bool:
    """Whether a load failed because of the backup: else because of the server, its version or the login's rights."""
    if OF_THE_MACHINE.search(message) or OF_THE_RIGHTS.search(message):
        return False
    return OF_THE_DATA.search(message) is not None or major == manifest.server_major


def _is_expected(value: Any, expected: bool | float | str) -> bool:
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    if isinstance(expected, int | float) and isinstance(value, int | float | Decimal):
        return Decimal(str(value)) == Decimal(str(expected))
    return str(value) == str(expected)
