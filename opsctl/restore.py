"""Restore: plan → staging database → checked → swapped in one transaction."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from opsctl.dumps.selection import Selected
from opsctl.errors import (
    ConfigurationError,
    CopyDiffers,
    OpsctlError,
    RestoreFailed,
    ServiceFailed,
    ServicesUnreachable,
)
from opsctl.keys import Keys, Source
from opsctl.loading import Load, Loading
from opsctl.manifest import DatabaseProperties, Facts, Manifest
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.databases import (
    apply_properties,
    create_staging,
    drop_database,
    grants,
)
from opsctl.postgres.facts import compare, present_facts
from opsctl.postgres.lock import database_lock
from opsctl.postgres.server import Server, one
from opsctl.postgres.statistics import gather_statistics
from opsctl.postgres.swap import Swap, Swapped, end_standby_sessions, execute_swap, remove_leftovers
from opsctl.postgres.target import inspect_target
from opsctl.postgres.tools import Tools
from opsctl.postgres.writes import read_counters
from opsctl.restore_plan import ExpectedTime, Obstacle, RestoreOptions, RestorePlan, plan_restore
from opsctl.staging import SPOOL, Staging
from opsctl.stream import Advance, Packing
from opsctl.swap_record import record_swap


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
        does_fire = self.options.data_only and not self.loading.holds_off_triggers
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
        yield from (Obstacle(error.message.rstrip("."), error.hint or "") for error in errors)
        yield from self.loading.obstacles()

    @property
    def loading(self) -> Loading:
        return Loading(
            self.manifest,
            self.repository,
            self.server,
            self.options,
            self.tools,
            self.keys,
            self._staging,
            packing=self.packing,
            part=self.part,
            is_checked=self.is_checked,
        )

    @property
    def binaries(self) -> Binaries:
        """The program that loads the dump. Raises ConfigurationError."""
        return self.loading.binaries

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
            jobs = 1 if plan.staging_database is None else self.loading.jobs
            with self.loading.ready(jobs, start_progress) as load:
                if plan.staging_database is None:
                    restored = self._overwrite(plan, load)
                else:
                    restored = self._stage_and_swap(plan, plan.staging_database, load, clock)
        seconds = round(time.monotonic() - started, 3)
        return plan, replace(restored, seconds=seconds, removed_leftovers=tuple(leftovers))

    def _overwrite(self, plan: RestorePlan, load: Load) -> Restored:
        """Load into the database itself, in one transaction: it succeeds as a whole or changes nothing."""
        load(self.database, plan.mode)
        evidence, unanalyzed = self._check(self.database, sessions=1)
        return Restored(
            backup_id=self.manifest.id,
            database=self.database,
            previous_database=None,
            swapped=False,
            outage_seconds=None,
            evidence=evidence,
            warnings=tuple(unanalyzed),
        )

    def _stage_and_swap(self, plan: RestorePlan, staging: str, load: Load, clock: Callable[[], datetime]) -> Restored:
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
                load(staging, plan.mode)
                evidence, unanalyzed = self._check(staging, sessions=self.loading.sessions)
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
    def _staging(self) -> Staging:
        return self.staging or Staging(self.state_path / SPOOL)

    def _check(self, database: str, *, sessions: int) -> tuple[str, list[str]]:
        """Compare the copy with the facts and gather its statistics; the evidence that this is, and remarks."""
        facts = self.facts
        with self.server.connect(database) as connection:
            differences = compare(facts, present_facts(connection, database, facts.level))
            if differences:
                raise CopyDiffers(differences)
        remarks = gather_statistics(self.server, database, sessions=sessions)
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
