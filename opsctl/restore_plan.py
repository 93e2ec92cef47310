"""What a restore would do, and what stands in its way. Pure: manifest and target in, plan out."""

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from opsctl.manifest import DatabaseProperties, Manifest
from opsctl.postgres.swap import previous_name, staging_name
from opsctl.postgres.target import LiveDatabase, Target

SETS_TRANSACTION_TIMEOUT = 17
"""From this major on pg_restore sets transaction_timeout, which an older server does not know."""

SMALL_BYTES = 1 << 30
"""A copy up to this size is restored even where the free disk cannot be seen; a larger one has to be accepted."""

Mode = Literal["swap", "create", "fill", "in_place"]
"""How the copy gets its place.

``swap``: staging, then the place of the live database. ``create``: staging, then a name nobody has. ``fill``: straight
into an existing empty database. ``in_place``: over the live database, in one transaction. The last two are for logins
that may not create databases.
"""


@dataclass(frozen=True)
class RestoreOptions:
    """How a restore was asked for."""

    into: bool = False
    in_place: bool = False
    no_owner: bool = False
    no_privileges: bool = False
    no_tablespaces: bool = False
    c_locale: bool = False
    """Sort and classify text as C does, because the server lacks the backup's locale."""
    role: str | None = None
    jobs: int = 1
    accept_unknown_disk: bool = False
    replica_count: int = 0
    """Standbys whose sessions can be ended, because ``replica_urls`` names them."""


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
    mode: Mode
    database_bytes: int | None
    dump_bytes: int
    staging_database: str | None
    previous_database: str | None
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

    @property
    def swaps(self) -> bool:
        return self.mode == "swap"

    @property
    def replaces(self) -> bool:
        """Whether something that exists is replaced: that needs a confirmation."""
        return self.mode in {"swap", "in_place"}


def plan_restore(
    manifest: Manifest,
    target: Target,
    options: RestoreOptions,
    *,
    database: str,
    now: datetime,
    other_obstacles: Iterable[str] = (),
) -> RestorePlan:
    """Decide what a restore of ``manifest`` as ``database`` would do; everything it knows is an argument.

    ``other_obstacles`` are why the backup cannot be read here at all, or may not be trusted.
    """
    live = target.live
    mode = _mode(live, options)
    blockers = [*_server_obstacles(manifest, target, mode), *_login_obstacles(manifest, target, options, mode)]
    blockers += [*_mode_obstacles(live, mode, options), *other_obstacles]
    disk_blocker, disk_warning = _disk(manifest, target, options)
    warnings = [*([disk_warning] if disk_warning else []), *_remarks(manifest, target, options, mode)]
    properties = live.properties if live is not None and mode != "create" else manifest.facts.database
    return RestorePlan(
        backup_id=manifest.id,
        database=database,
        mode=mode,
        database_bytes=manifest.database_bytes,
        dump_bytes=manifest.dump.bytes,
        staging_database=staging_name(database, secrets.token_hex(4)) if mode in {"swap", "create"} else None,
        previous_database=previous_name(database, now, target.previous) if mode == "swap" else None,
        sessions=live.sessions if live is not None and mode in {"swap", "in_place"} else 0,
        free_bytes=target.free_bytes,
        rows=manifest.facts.rows,
        losses=tuple(_losses(manifest, live)) if live is not None and mode in {"swap", "in_place"} else (),
        properties=properties,
        blockers=(*blockers, *([disk_blocker] if disk_blocker else [])),
        warnings=tuple(warnings),
    )


def _mode(live: LiveDatabase | None, options: RestoreOptions) -> Mode:
    if options.in_place:
        return "in_place"
    if live is None:
        return "create"
    return "fill" if options.into else "swap"


def _mode_obstacles(live: LiveDatabase | None, mode: Mode, options: RestoreOptions) -> Iterator[str]:
    if mode == "in_place" and live is None:
        yield "there is no live database to restore into"
    if mode == "fill" and live is not None and not live.is_empty:
        yield "a database of that name exists already, and it is not empty"
    if mode in {"fill", "in_place"} and options.jobs > 1:
        yield "one transaction takes one session: --jobs goes with a staging database only"
    if mode == "swap" and live is not None:
        yield from _swap_obstacles(live)


def _server_obstacles(manifest: Manifest, target: Target, mode: Mode) -> Iterator[str]:
    properties = manifest.facts.database
    if target.in_recovery:
        yield "the server is a standby: it takes no writes"
    if target.major < SETS_TRANSACTION_TIMEOUT <= manifest.pg_dump_major:
        yield (
            f"the archive was written by pg_dump {manifest.pg_dump_major}, whose commands a server of version"
            f" {target.major} does not know"
        )
    if mode in {"swap", "create"}:
        if not target.may_create_databases:
            yield (
                "the login may not create databases (ALTER ROLE … CREATEDB); without that: --into an existing empty"
                " database, or --in-place in one transaction"
            )
        if properties.locale_provider not in target.locale_providers:
            yield f"the server has no {properties.locale_provider} locales"
    for lacking in target.lacks:
        yield f"the server has no {lacking}, which objects of the backup use"
    for extension in manifest.facts.extensions:
        if extension.name not in target.available_extensions:
            yield f"extension {extension.name} {extension.version} is not installed on the server"
        elif extension.name == "timescaledb":
            yield "timescaledb needs timescaledb_pre_restore() around a restore: restore it by hand"
        elif extension.name == "pg_cron" and mode in {"swap", "create"}:
            yield "pg_cron can only be created in the database that cron.database_name names: use --in-place"


def _login_obstacles(manifest: Manifest, target: Target, options: RestoreOptions, mode: Mode) -> Iterator[str]:
    """What the archive holds and this login cannot bring back, each entry by name."""
    facts = manifest.facts
    owners = {facts.database.owner, *(owned.role for owned in facts.owners)}
    needed = [role for role in facts.roles if not (options.no_owner if role in owners else options.no_privileges)]
    if mode == "create" and not options.no_privileges:
        needed += sorted(facts.database.grantees.difference(needed))
    if options.role:
        needed.append(options.role)
    missing = [role for role in needed if role not in target.roles]
    if missing:
        yield f"roles that the backup needs do not exist here: {', '.join(missing)} (restore --globals shows them)"
    if target.is_superuser:
        return
    others = set() if options.no_owner else owners & target.roles - target.memberships
    for owned in facts.owners:
        if owned.role in others:
            more = f" and {owned.count - len(owned.examples)} more" if owned.count > len(owned.examples) else ""
            yield f"the login is no member of {owned.role}, the owner of {', '.join(owned.examples)}{more} (--no-owner)"
    if mode == "create" and facts.database.owner in others.difference(owned.role for owned in facts.owners):
        yield f"the login is no member of {facts.database.owner}, the owner of the database (--no-owner)"
    if options.role and options.role in target.roles and options.role not in target.memberships:
        yield f"the login is no member of {options.role}"
    for name in facts.superuser_objects:
        yield f"only a superuser can restore {name}"
    for extension in facts.extensions:
        if extension.name in target.untrusted_extensions:
            yield f"only a superuser can create extension {extension.name}"


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
        yield f"sessions that this login cannot end hold the live database: {', '.join(live.protected_sessions)}"


def _disk(manifest: Manifest, target: Target, options: RestoreOptions) -> tuple[str | None, str | None]:
    """(blocker, warning) of the disk space; what cannot be known is said to be unknown."""
    needed = manifest.database_bytes or manifest.dump.bytes
    if target.free_bytes is not None:
        if target.free_bytes < needed:
            return f"the server has {target.free_bytes:,} bytes free, the copy needs about {needed:,}", None
        return None, None
    unknown = f"the free disk space of the server is unknown; the copy needs about {needed:,} bytes"
    if needed > SMALL_BYTES and not options.accept_unknown_disk:
        return f"{unknown} (--accept-unknown-disk)", None
    return None, unknown


def _remarks(manifest: Manifest, target: Target, options: RestoreOptions, mode: Mode) -> Iterator[str]:
    facts = manifest.facts
    if target.major < manifest.pg_dump_major and not target.major < SETS_TRANSACTION_TIMEOUT <= manifest.pg_dump_major:
        yield f"the archive was written by pg_dump {manifest.pg_dump_major}, the server is older ({target.major})"
    if target.writes_wal:
        yield f"the load writes about {manifest.database_bytes or manifest.dump.bytes:,} bytes of WAL"
    for extension in facts.extensions:
        default = target.available_extensions.get(extension.name)
        if default is not None and default != extension.version:
            yield f"extension {extension.name} is {default} here, it was {extension.version}"
    locale = facts.database.locale or facts.database.collate
    collation = target.collation_versions.get((facts.database.locale_provider, locale))
    if None not in {collation, facts.database.collation_version} and collation != facts.database.collation_version:
        was = facts.database.collation_version
        yield f"the collation's version is {collation} here, it was {was}: text may sort anew"
    if mode == "swap" and target.live is not None:
        yield from target.live.not_carried_over
    if mode == "swap" and len(target.standbys) > options.replica_count:
        yield f"standbys whose sessions go on reading the old database: {', '.join(target.standbys)} (replica_urls)"
    if mode == "in_place":
        yield "there is no undo: the live database is overwritten in one transaction"
    for table in manifest.excluded_tables:
        yield f"the data of {table} is not in the backup"
    for warning in manifest.warnings:
        yield f"when the backup was taken: {warning}"


def _losses(manifest: Manifest, live: LiveDatabase) -> Iterator[TableLoss]:
    for table in manifest.facts.tables:
        rows_now = live.rows.get((table.schema, table.name))
        if rows_now is not None and table.rows is not None and rows_now > table.rows:
            yield TableLoss(table.schema, table.name, rows_now, table.rows)
