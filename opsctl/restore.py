"""Restore: plan → staging database → checked → swapped in one transaction."""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path

from opsctl.dumps.script import Excerpt, Script
from opsctl.dumps.selection import Selected
from opsctl.errors import (
    BackupDamaged,
    ConfigurationError,
    CopyDiffers,
    OpsctlError,
    Refused,
    RestoreFailed,
    ServiceFailed,
    ServicesUnreachable,
)
from opsctl.keys import Keys, Source
from opsctl.manifest import DatabaseProperties, Facts, Manifest
from opsctl.postgres.binaries import Binaries, knows_restrict
from opsctl.postgres.databases import (
    apply_properties,
    create_staging,
    drop_database,
    gather_statistics,
    grants,
)
from opsctl.postgres.directory_format import framed, unpack
from opsctl.postgres.facts import compare, present_facts
from opsctl.postgres.lock import database_lock
from opsctl.postgres.server import Server, one
from opsctl.postgres.swap import Swap, Swapped, end_standby_sessions, execute_swap, remove_leftovers
from opsctl.postgres.target import inspect_target
from opsctl.postgres.tools import Child, Tools
from opsctl.postgres.writes import read_counters
from opsctl.restore_plan import ExpectedTime, Obstacle, RestoreOptions, RestorePlan, fitting_jobs, plan_restore
from opsctl.staging import SPOOL, Staging
from opsctl.stream import READ_BYTES, Advance, Packing, check_stored, load
from opsctl.swap_record import record_swap

ARCHIVE_IS_DAMAGED = (
    "end of file",
    "could not read from input file",
    "did not find magic string",
    "unrecognized data block type",
    "unexpected block ID",
    "could not find block ID",
    "could not uncompress",
    "corrupt tar header",
    "could not find header for file",
    "restoring data out of order",
)
"""pg_restore's words for an archive that is cut or broken, whatever the digests say."""

SPOOLED = {
    "doing": "a restore with several jobs, or of a signed backup,",
    "hint": "Set staging_path in [state] to a larger disk; --jobs 1 streams what needs no signature.",
}


@dataclass(frozen=True)
class SwapSettings:
    """What happens around a swap: hooks that hold clients back, and standbys whose sessions have to end."""

    before: str | None = None
    after: str | None = None
    replicas: Sequence[Server] = ()


@dataclass(frozen=True)
class Restored:
    """What a restore, or an undo, did."""

    backup_id: str | None
    database: str
    previous_database: str | None
    swapped: bool
    outage_seconds: float | None
    evidence: str | None
    seconds: float | None = None
    """How long a restore took from its lock to its end; an undo takes none."""

    warnings: tuple[str, ...] = ()
    removed_leftovers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restore:
    """A restore that was asked for: from where, to where, and how."""

    manifest: Manifest
    repository: Source
    server: Server
    database: str
    options: RestoreOptions
    tools: Tools
    state_path: Path
    swap_settings: SwapSettings = field(default_factory=SwapSettings)
    keys: Keys = field(default_factory=Keys)
    expected: ExpectedTime | None = None
    is_checked: bool = False
    """Whether the stored dump was hashed a moment ago."""
    staging: Staging | None = None
    """Where an archive lies that cannot be loaded while it is read."""
    packing: Packing | None = None
    """How it is compressed, where opsctl did not write it."""
    part: Selected | None = None
    """What of it is restored, where that is not all."""
    remarks: tuple[str, ...] = ()
    """What its plan should warn of besides."""

    def plan(self, now: datetime) -> RestorePlan:
        """Look at the server and plan. Nothing is created."""
        facts = self.facts
        count_rows = not self.options.into or self.options.data_only
        target = inspect_target(self.server, self.database, facts.requires, self._own_properties, count_rows=count_rows)
        options = replace(
            self.options, replica_count=len(self.swap_settings.replicas), is_trusted=bool(self.keys.trusted)
        )
        planned = plan_restore(
            replace(self.manifest, facts=facts),
            target,
            options,
            database=self.database,
            now=now,
            other_obstacles=self._obstacles(),
            expected=self.expected,
        )
        planned = replace(planned, warnings=(*self.remarks, *planned.warnings))
        if self.part is None:
            return planned
        fire = "triggers fire while the rows come in: only a superuser can hold them off"
        does_fire = self.options.data_only and not self._holds_off_triggers
        warnings = (*planned.warnings, *([fire] if does_fire else []))
        return replace(planned, along=self.part.along, missing=self.part.missing, is_part=True, warnings=warnings)

    @property
    def facts(self) -> Facts:
        """What the copy is compared with."""
        return self.part.restricted(self.manifest.facts) if self.part else self.manifest.facts

    def _obstacles(self) -> Iterator[Obstacle]:
        """Why the backup cannot be read here, or may not be trusted."""
        errors: list[OpsctlError] = []
        try:
            _ = self.binaries
        except (ConfigurationError, ServiceFailed, ServicesUnreachable) as error:
            errors.append(error)
        errors += self.keys.obstacles(self.repository, self.manifest)
        if self._must_spool:
            try:
                self._staging.require_room(self.manifest.dump.bytes, **SPOOLED)
            except (ConfigurationError, Refused) as error:
                errors.append(error)
        yield from (Obstacle(error.message.rstrip("."), error.hint or "") for error in errors)
        if self.options.jobs > 1 and not self.tools.reads_files:
            yield Obstacle('tools = "service" loads with one session', "Leave --jobs out.")
        if self.part and not self.tools.reads_files:
            yield Obstacle('tools = "service" restores backups as a whole', "Restore all of it --into a database.")
        if self._is_script:
            if self.options.jobs > 1:
                yield Obstacle("a plain dump is loaded with one session", "Leave --jobs out.")
            if self.options.in_place:
                yield Obstacle("a plain dump cannot take the place of what is there", "Leave --in-place out.")

    @property
    def binaries(self) -> Binaries:
        """The pg_restore, or psql, that suits dump and server. Raises ConfigurationError."""
        if self._is_script:
            return self.tools.for_script(self.server.info.major)
        return self.tools.for_restore(archive_major=self.manifest.pg_dump_major, server_major=self.server.info.major)

    def execute(
        self, *, clock: Callable[[], datetime], start_progress: Callable[[str, int], Advance]
    ) -> tuple[RestorePlan, Restored]:
        """Restore, under the database's lock, by a plan made anew.

        Raises Refused when something stands in the way, BackupDamaged, RestoreFailed; then the live database is as
        it was and nothing that was created is left.
        """
        started = time.monotonic()
        with database_lock(self.server, self.database, command="restore", state_path=self.state_path, now=clock()):
            leftovers = remove_leftovers(self.server, self.database)
            self._staging.remove_leftovers()
            plan = self.plan(clock())
            if plan.refusal:
                raise plan.refusal
            dump = self.manifest.dump
            if not self.is_checked:
                with self.repository.open(self.manifest, dump) as file:
                    check_stored(dump, file, start_progress("checking", dump.stored_bytes))
            advance = start_progress("restoring", dump.bytes)
            if plan.staging_database is None:
                restored = self._overwrite(plan, advance)
            else:
                restored = self._stage_and_swap(plan, plan.staging_database, advance, clock)
        seconds = round(time.monotonic() - started, 3)
        return plan, replace(restored, seconds=seconds, removed_leftovers=tuple(leftovers))

    def _overwrite(self, plan: RestorePlan, advance: Advance) -> Restored:
        """Load into the database itself, in one transaction: it succeeds as a whole or changes nothing."""
        flags = ["--single-transaction", *(["--clean", "--if-exists"] if plan.mode == "in_place" else [])]
        self._load(self.database, advance, flags)
        evidence, unanalyzed = self._check(self.database)
        return Restored(
            backup_id=self.manifest.id,
            database=self.database,
            previous_database=None,
            swapped=False,
            outage_seconds=None,
            evidence=evidence,
            warnings=tuple(unanalyzed),
        )

    def _stage_and_swap(
        self, plan: RestorePlan, staging: str, advance: Advance, clock: Callable[[], datetime]
    ) -> Restored:
        with self.server.connect(self.server.maintenance_database, lasting=True) as connection:
            try:
                # The backup's encoding and locale, the live database's owner.
                owner = self.server.info.user if self._owner_falls_away(plan) else plan.properties.owner
                own = self._own_properties
                if own.collate is None:  # nobody knows: the live database's, or the server's default
                    own = plan.properties
                create_staging(connection, staging, replace(own, owner=owner))
                properties = replace(plan.properties, acl=None) if self.options.no_privileges else plan.properties
                privileges = grants(connection, staging, properties)
                refused = apply_properties(connection, staging, properties, rehearse=True)
                self._load(staging, advance, [], jobs=self._jobs)
                evidence, unanalyzed = self._check(staging)
                apply_properties(connection, staging, properties)
                swap = Swap(self.database, staging, plan.previous_database, privileges)
                swapped, remarks = self._swap(swap, clock)
            except BaseException:
                self._clean_up(staging)
                raise
        return Restored(
            backup_id=self.manifest.id,
            database=self.database,
            previous_database=plan.previous_database,
            swapped=plan.swaps,
            outage_seconds=swapped.outage_seconds if plan.swaps else None,
            evidence=evidence,
            warnings=(*refused, *unanalyzed, *remarks),
        )

    @property
    def _is_script(self) -> bool:
        return self.manifest.format == "plain"

    @property
    def _own_properties(self) -> DatabaseProperties:
        properties = self.manifest.facts.database
        return replace(properties, collate="C", ctype="C") if self.options.c_locale else properties

    def _owner_falls_away(self, plan: RestorePlan) -> bool:
        """With ``--no-owner``, a database that is made anew belongs to whoever makes it."""
        return self.options.no_owner and plan.mode == "create"

    def _swap(self, swap: Swap, clock: Callable[[], datetime]) -> tuple[Swapped, list[str]]:
        if swap.previous is None:
            return execute_swap(self.server, swap), []  # nobody was there: nothing to hold back, nothing to undo
        with self.server.connect(swap.incoming) as inside:
            counters = read_counters(inside)
            (oid,) = one(inside, "select oid from pg_database where datname = current_database()")
        # Before the swap: a signal that came during it takes effect right after it.
        record_swap(self.state_path, self.server, oid, backup_id=self.manifest.id, at=clock(), counters=counters)
        return swap_with_hooks(self.server, swap, self.swap_settings, self.tools)

    @property
    def _jobs(self) -> int:
        """How many sessions load: what was asked for, else several where they pay and their file has room."""
        if self.options.jobs:
            return self.options.jobs
        jobs = fitting_jobs(self.manifest, processors=(os.cpu_count() or 1) if self.server.is_here else None)
        if jobs == 1 or not self.tools.reads_files:
            return 1
        plain_bytes = self.manifest.dump.bytes
        try:
            self._staging.require_room(plain_bytes + (self.manifest.database_bytes or 2 * plain_bytes), **SPOOLED)
        except (ConfigurationError, Refused):
            return 1
        return jobs

    def _load(self, database: str, advance: Advance, flags: list[str], *, jobs: int = 1) -> None:
        if self._is_script:
            self._run_script(database, advance)
            return
        binaries = self.binaries
        options = self.options
        flags = [
            *flags,
            *(["--no-owner"] if options.no_owner else []),
            *(["--no-privileges"] if options.no_privileges else []),
            *(["--no-tablespaces"] if options.no_tablespaces else []),
            *([f"--role={options.role}"] if options.role else []),
            *(["--data-only", "--disable-triggers"] if self._holds_off_triggers else []),
        ]
        with self.repository.open(self.manifest, self.manifest.dump) as file:
            identities = self.keys.identities if self.manifest.encryption else None
            chunks = load(self.manifest.dump, file, advance, identities, packing=self.packing)
            if self.manifest.format == "directory":
                chunks = framed(chunks)
            use_list = self.part.use_list if self.part else None
            load_into = partial(
                self.tools.restore, binaries, self.server, database, flags=flags, jobs=jobs, use_list=use_list
            )
            if jobs == 1 and not self._must_spool:
                with load_into() as child:
                    _feed(child, chunks)
            elif self.manifest.format == "directory" and (jobs > 1 or self._is_reordered):
                with self._staging.folder(self.manifest.dump.bytes, **SPOOLED) as folder:
                    unpack(chunks, folder.path)
                    with load_into(folder=folder) as child:
                        _require_success(child)
            else:
                with self._staging.file(self.manifest.dump.bytes, **SPOOLED) as archive:
                    for chunk in chunks:
                        archive.write(chunk)
                    archive.flush()
                    with load_into(archive=archive) as child:
                        _require_success(child)

    def _run_script(self, database: str, advance: Advance) -> None:
        """What of a plain dump is about this database, through psql, which takes none of its own commands meanwhile."""
        options, binaries = self.options, self.binaries
        in_one_transaction = database == self.database  # nothing else would take back a half
        script = Script(
            Excerpt(
                section=self.manifest.imported.section if self.manifest.imported else "",
                no_owner=options.no_owner,
                no_privileges=options.no_privileges,
                no_tablespaces=options.no_tablespaces,
                in_one_transaction=in_one_transaction,
            )
        )
        identities = self.keys.identities if self.manifest.encryption else None
        with self.repository.open(self.manifest, self.manifest.dump) as file, ExitStack() as cleanup:
            chunks = load(self.manifest.dump, file, advance, identities, packing=self.packing)
            if self._must_spool:
                spooled = cleanup.enter_context(self._staging.file(self.manifest.dump.bytes, **SPOOLED))
                spooled.writelines(chunks)
                spooled.seek(0)
                chunks = iter(lambda: spooled.read(READ_BYTES), b"")
            child = cleanup.enter_context(
                self.tools.run_script(binaries, self.server, database, in_one_transaction=in_one_transaction)
            )
            _feed(child, chain(self._preamble(binaries), script.run(chunks)))

    def _preamble(self, binaries: Binaries) -> Iterator[bytes]:
        if knows_restrict(binaries):
            yield f"\\restrict {secrets.token_hex(16)}\n".encode()
        if self.options.role:
            quoted = self.options.role.replace('"', '""')
            yield f'SET ROLE "{quoted}";\n'.encode()

    @property
    def _holds_off_triggers(self) -> bool:
        """Rows are as they were dumped: what a trigger made of them is among them. Only a superuser may do that."""
        return self.options.data_only and self.server.info.is_superuser

    @property
    def _must_spool(self) -> bool:
        """Several sessions read files; and nothing of a signed backup runs before all of it was seen to be it.

        The storage could hand out one dump to be hashed and another one to be loaded.
        """
        return self.options.jobs > 1 or bool(self.keys.trusted) or self._is_reordered

    @property
    def _is_reordered(self) -> bool:
        """Whether the archive is not read from its beginning to its end."""
        return self.part is not None and self.part.is_reordered

    @property
    def _staging(self) -> Staging:
        return self.staging or Staging(self.state_path / SPOOL)

    def _check(self, database: str) -> tuple[str, list[str]]:
        """Compare the copy with the facts and gather its statistics; the evidence that this is, and remarks."""
        facts = self.facts
        with self.server.connect(database) as connection:
            differences = compare(facts, present_facts(connection, database, facts.level))
            if differences:
                raise CopyDiffers(differences)
            remarks = gather_statistics(connection)
        level = facts.level if self.part is None or self.part.with_rows else "none"
        return {"none": "restored", "counts": "counted", "content": "content"}[level], remarks

    def _clean_up(self, staging: str) -> None:
        """Drop the staging database; after a finished swap there is none of that name. The first error is the one."""
        with suppress(OpsctlError), self.server.connect(self.server.maintenance_database) as connection:
            drop_database(connection, staging)


def swap_with_hooks(server: Server, swap: Swap, settings: SwapSettings, tools: Tools) -> tuple[Swapped, list[str]]:
    """Swap between the two hooks, then end what the standbys still read; the swap and what needs attention.

    Raises RestoreFailed when the first hook fails: nothing is swapped then, and the second one runs all the same, so
    that a pooler that was paused goes on.
    """
    remarks = []
    try:
        if settings.before:
            _run_first_hook(tools, settings.before)
        swapped = execute_swap(server, swap)
    finally:
        if settings.after:
            try:
                tools.run_hook(settings.after)
            except OpsctlError as error:
                remarks.append(error.message)
    if swapped.old_oid is not None:
        ended = [
            end_standby_sessions(replica, live=swap.live, incoming_oid=swapped.incoming_oid, old_oid=swapped.old_oid)
            for replica in settings.replicas
        ]
        remarks += [remark for remark in ended if remark is not None]
    return swapped, remarks


def _run_first_hook(tools: Tools, command: str) -> None:
    try:
        tools.run_hook(command)
    except OpsctlError as error:
        raise RestoreFailed(f"{error.message} The swap did not happen.", hint=error.hint) from error


def _feed(child: Child, chunks: Iterator[bytes]) -> None:
    """Everything into pg_restore; when it has closed its input, its own error says why."""
    with suppress(BrokenPipeError):
        for chunk in chunks:
            child.write(chunk)
    child.close_stdin()
    _require_success(child)
    for _rest in chunks:  # it may end before the archive does; the digests cover everything
        pass


def _require_success(child: Child) -> None:
    if child.finish() != 0:
        damaged = any(child.said(sign) for sign in ARCHIVE_IS_DAMAGED)
        raise child.failure(BackupDamaged if damaged else RestoreFailed, "and what it had loaded is gone again")
