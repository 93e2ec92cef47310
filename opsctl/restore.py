"""Restore: plan → staging database → checked → swapped in one transaction. And back: undo."""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import IO

from opsctl.errors import Refused, RestoreFailed
from opsctl.manifest import DatabaseProperties, Manifest
from opsctl.postgres.facts import compare, present_facts
from opsctl.postgres.lock import database_lock
from opsctl.postgres.server import Server, rows
from opsctl.postgres.swap import (
    Swap,
    apply_properties,
    create_staging,
    drop_database,
    execute_swap,
    find_previous,
    find_staging,
    grants,
    previous_name,
    staging_name,
)
from opsctl.postgres.target import LiveDatabase, Target, inspect_target
from opsctl.postgres.tools import Child, Tools
from opsctl.repository import Repository
from opsctl.stream import Advance, check_stored, load

SETS_TRANSACTION_TIMEOUT = 17
"""From this major on pg_restore sets transaction_timeout, which an older server does not know."""


@dataclass(frozen=True)
class TableLoss:
    """A table in which the live database has more rows than the backup."""

    schema: str
    name: str
    live_rows: int
    backup_rows: int


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do. ``blockers`` are why it would not work; ``warnings`` stop nothing."""

    backup_id: str
    database: str
    database_bytes: int | None
    dump_bytes: int
    staging_database: str
    previous_database: str | None
    swaps: bool
    sessions: int
    free_bytes: int | None
    rows: int | None
    losses: tuple[TableLoss, ...]
    properties: DatabaseProperties
    blockers: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def would_work(self) -> bool:
        return not self.blockers


@dataclass(frozen=True)
class Restored:
    """What a restore, or an undo, did."""

    backup_id: str | None
    database: str
    previous_database: str | None
    swapped: bool
    outage_seconds: float | None
    evidence: str | None
    warnings: tuple[str, ...] = ()
    removed_leftovers: tuple[str, ...] = field(default=())


def plan_restore(manifest: Manifest, target: Target, *, database: str, into: bool, now: datetime) -> RestorePlan:
    """Decide what a restore of ``manifest`` as ``database`` would do. Pure: everything it knows is an argument.

    ``into`` asks for a database beside the live one, which must not exist yet.
    """
    live = None if into else target.live
    blockers, warnings = _obstacles(manifest, target, into=into)
    return RestorePlan(
        backup_id=manifest.id,
        database=database,
        database_bytes=manifest.database_bytes,
        dump_bytes=manifest.dump.bytes,
        staging_database=staging_name(database, secrets.token_hex(4)),
        previous_database=previous_name(database, now, target.previous) if live else None,
        swaps=live is not None,
        sessions=live.sessions if live else 0,
        free_bytes=target.free_bytes,
        rows=manifest.facts.rows,
        losses=tuple(_losses(manifest, live)) if live else (),
        properties=live.properties if live else manifest.facts.database,
        blockers=tuple(blockers),
        warnings=tuple(warnings),
    )


def _obstacles(manifest: Manifest, target: Target, *, into: bool) -> tuple[list[str], list[str]]:
    facts, live = manifest.facts, target.live
    blockers: list[str] = []
    warnings: list[str] = []
    if target.in_recovery:
        blockers.append("the server is a standby: it takes no writes")
    if not target.may_create_databases:
        blockers.append("the login may not create databases (ALTER ROLE … CREATEDB)")
    missing = [role for role in facts.roles if role not in target.roles]
    if missing:
        blockers.append(f"roles that own objects of the backup do not exist here: {', '.join(missing)}")
    blockers += [
        f"extension {extension.name} {extension.version} is not installed on the server"
        for extension in facts.extensions
        if extension.name not in target.available_extensions
    ]
    if target.major < manifest.pg_dump_major:
        text = f"the archive was written by pg_dump {manifest.pg_dump_major}, the server is older ({target.major})"
        (blockers if target.major < SETS_TRANSACTION_TIMEOUT <= manifest.pg_dump_major else warnings).append(text)
    needed = manifest.database_bytes or manifest.dump.bytes
    if target.free_bytes is None:
        warnings.append("the free disk space of the server cannot be seen from here")
    elif target.free_bytes < needed:
        blockers.append(f"the server has {target.free_bytes:,} bytes free, the copy needs about {needed:,}")
    if live is not None and into:
        blockers.append("a database of that name exists already")
    elif live is not None:
        blockers += _swap_obstacles(live)
    warnings += [f"when the backup was taken: {warning}" for warning in manifest.warnings]
    return blockers, warnings


def _swap_obstacles(live: LiveDatabase) -> Iterator[str]:
    if not live.login_owns_it:
        yield f"only its owner, {live.properties.owner}, can rename the live database"
    if live.prepared_transactions:
        yield f"prepared transactions hold the live database: {', '.join(live.prepared_transactions)}"
    if live.logical_slots:
        yield f"logical replication slots belong to the live database: {', '.join(live.logical_slots)}"
    if live.subscriptions:
        yield f"subscriptions belong to the live database: {', '.join(live.subscriptions)}"
    if live.protected_sessions:
        yield f"{live.protected_sessions} sessions of superusers cannot be ended by this login"


def _losses(manifest: Manifest, live: LiveDatabase) -> Iterator[TableLoss]:
    for table in manifest.facts.tables:
        rows_now = live.rows.get((table.schema, table.name))
        if rows_now is not None and table.rows is not None and rows_now > table.rows:
            yield TableLoss(table.schema, table.name, rows_now, table.rows)


@dataclass(frozen=True)
class Restore:
    """A restore that was asked for: from where, to where, and how."""

    manifest: Manifest
    repository: Repository
    server: Server
    database: str
    into: bool
    tools: Tools
    state_path: Path
    jobs: int = 1

    def plan(self, now: datetime) -> RestorePlan:
        """Look at the server and plan. Nothing is created."""
        target = inspect_target(self.server, self.database, () if self.into else self.manifest.facts.tables)
        return plan_restore(self.manifest, target, database=self.database, into=self.into, now=now)

    def execute(
        self, *, clock: Callable[[], datetime], start_progress: Callable[[str, int], Advance]
    ) -> tuple[RestorePlan, Restored]:
        """Restore, under the database's lock, by a plan made anew.

        Raises Refused when something stands in the way, BackupDamaged, RestoreFailed; then the live database is as
        it was and nothing that was created is left.
        """
        with database_lock(self.server, self.database, command="restore", state_path=self.state_path, now=clock()):
            leftovers = _remove_leftovers(self.server, self.database)
            plan = self.plan(clock())
            if plan.blockers:
                raise Refused(
                    f"The restore would not work: {plan.blockers[0]}.", hint="`opsctl restore --plan` shows all."
                )
            dump = self.manifest.dump
            with self.repository.open(self.manifest, dump) as file:
                check_stored(dump, file, start_progress("checking", dump.stored_bytes))
            return plan, self._execute(plan, start_progress, leftovers)

    def _execute(
        self, plan: RestorePlan, start_progress: Callable[[str, int], Advance], leftovers: list[str]
    ) -> Restored:
        with self.server.connect(self.server.maintenance_database, lasting=True) as connection:
            try:
                # The backup's encoding and locale, the live database's owner.
                create_staging(connection, plan.staging_database, _created_with(self.manifest, plan))
                self._load(plan.staging_database, start_progress("restoring", self.manifest.dump.bytes))
                evidence = self._check(plan.staging_database)
                refused = apply_properties(connection, plan.staging_database, plan.properties)
                swap = Swap(
                    live=self.database,
                    incoming=plan.staging_database,
                    previous=plan.previous_database,
                    statements=grants(connection, plan.staging_database, plan.properties),
                )
                outage = execute_swap(self.server, swap)
            except BaseException:
                self._clean_up(plan)
                raise
        return Restored(
            backup_id=self.manifest.id,
            database=self.database,
            previous_database=plan.previous_database,
            swapped=plan.swaps,
            outage_seconds=outage if plan.swaps else None,
            evidence=evidence,
            warnings=tuple(refused),
            removed_leftovers=tuple(leftovers),
        )

    def _load(self, database: str, advance: Advance) -> None:
        binaries = self.tools.for_restore(
            archive_major=self.manifest.pg_dump_major, server_major=self.server.info.major
        )
        with self.repository.open(self.manifest, self.manifest.dump) as file:
            chunks = load(self.manifest.dump, file, advance)
            if self.jobs == 1:
                with self.tools.restore(binaries, self.server, database) as child:
                    _feed(child, chunks)
                return
            with (
                self._spooled(chunks) as archive,
                self.tools.restore(binaries, self.server, database, jobs=self.jobs, archive=archive) as child,
            ):
                _finished(child)

    @contextmanager
    def _spooled(self, chunks: Iterator[bytes]) -> Iterator[IO[bytes]]:
        """The plain archive in a file without a name, for pg_restore's several readers: gone however we end."""
        folder = self.state_path / "spool"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.statvfs(folder)
        if status.f_bavail * status.f_frsize < self.manifest.dump.bytes:
            raise Refused(
                f"--jobs needs {self.manifest.dump.bytes:,} bytes of free disk in {folder}.",
                hint="Restore with --jobs 1, which streams, or set OPSCTL_STATE_DIR to a larger disk.",
            )
        with tempfile.TemporaryFile(dir=folder) as archive:
            for chunk in chunks:
                archive.write(chunk)
            archive.flush()
            yield archive

    def _check(self, database: str) -> str | None:
        """Compare the copy with the facts and gather its statistics; the evidence that this is."""
        facts = self.manifest.facts
        with self.server.connect(database) as connection:
            found = present_facts(connection, database, facts.level)
            differences = compare(facts, found)
            if differences:
                raise RestoreFailed(
                    f"The restored copy differs from the backup: {'; '.join(differences[:5])}.",
                    hint="The live database is as it was. `opsctl verify` examines the backup itself.",
                )
            connection.execute("analyze")
        return {"none": "restored", "counts": "counted", "content": "content"}[facts.level]

    def _clean_up(self, plan: RestorePlan) -> None:
        """Drop the staging database; after a finished swap there is none of that name."""
        with self.server.connect(self.server.maintenance_database) as connection:
            drop_database(connection, plan.staging_database)


def _created_with(manifest: Manifest, plan: RestorePlan) -> DatabaseProperties:
    return replace(manifest.facts.database, owner=plan.properties.owner)


def _feed(child: Child, chunks: Iterator[bytes]) -> None:
    """Everything into pg_restore; when it has closed its input, its own error says why."""
    try:
        for chunk in chunks:
            child.write(chunk)
    except BrokenPipeError:
        pass
    child.close_stdin()
    _finished(child)
    for _rest in chunks:  # it may end before the archive does; the digests cover everything
        pass


def _finished(child: Child) -> None:
    if child.finish() != 0:
        raise child.failure(RestoreFailed, "; the copy was dropped")


def _remove_leftovers(server: Server, database: str) -> list[str]:
    """Drop what interrupted restores left behind. The lock is ours, so nobody is at work on them."""
    with server.connect(server.maintenance_database) as connection:
        leftovers = find_staging(connection, database)
        for name in leftovers:
            drop_database(connection, name)
    return leftovers


@dataclass(frozen=True)
class Undo:
    """Put back the database that the last swap put aside; the one undone is put aside in turn."""

    server: Server
    database: str
    state_path: Path

    def previous(self) -> list[str]:
        """The databases put aside, newest first."""
        with self.server.connect(self.server.maintenance_database) as connection:
            return find_previous(connection, self.database)

    def execute(self, *, clock: Callable[[], datetime]) -> Restored:
        with database_lock(self.server, self.database, command="undo", state_path=self.state_path, now=clock()):
            previous = require_previous(self.previous(), self.database)
            back = previous[0]
            with self.server.connect(self.server.maintenance_database) as connection:
                exists = rows(connection, "select from pg_database where datname = %s", (self.database,))
            aside = previous_name(self.database, clock(), previous) if exists else None
            outage = execute_swap(self.server, Swap(live=self.database, incoming=back, previous=aside))
        return Restored(None, self.database, aside, swapped=True, outage_seconds=outage, evidence=None)

    def forget(self, *, clock: Callable[[], datetime]) -> list[str]:
        """Drop every database put aside; the names of what was dropped."""
        with database_lock(self.server, self.database, command="forget", state_path=self.state_path, now=clock()):
            names = require_previous(self.previous(), self.database)
            with self.server.connect(self.server.maintenance_database) as connection:
                for name in names:
                    drop_database(connection, name)
        return names


def require_previous(names: list[str], database: str) -> list[str]:
    """``names``, of which there must be one. Raises Refused."""
    if not names:
        raise Refused(
            f"There is no previous database of {database!r}: no restore has replaced it, or it was forgotten.",
            hint="`opsctl restore` replaces a database by a backup and keeps the old one.",
        )
    return names
