"""What a restore would do, and what stands in its way. Pure: manifest and target in, plan out."""

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from opsctl.amounts import size
from opsctl.errors import Refused
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
    """0: as many as pay."""
    accept_unknown_disk: bool = False
    data_only: bool = False
    """Fill empty tables of a database that exists."""

    replica_count: int = 0
    """Standbys whose sessions can be ended, because ``replica_urls`` names them."""

    is_trusted: bool = False
    """Whether the backup must be signed by a key that is trusted."""


@dataclass(frozen=True)
class TableLoss:
    """A table in which the live database has more rows than the backup; ``in_backup``: whether its data is in it."""

    schema: str
    name: str
    live_rows: int
    backup_rows: int
    in_backup: bool = True

    @property
    def lost_rows(self) -> int:
        return self.live_rows - self.backup_rows


@dataclass(frozen=True)
class Obstacle:
    """Why a restore would not work, and what to do about it."""

    reason: str
    hint: str


@dataclass(frozen=True)
class ExpectedTime:
    """How long a restore will take: that of ``backup_id``, in a drill or ours, took ``measured_seconds``."""

    seconds: float
    backup_id: str
    measured_seconds: float
    measured_at: datetime
    measured_by: Literal["drill", "restore"] = "drill"


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do. ``obstacles`` are why it would not work; ``warnings`` stop nothing."""

    backup_id: str
    database: str
    mode: Mode
    taken_at: datetime
    server_version: str
    """The version of the server that the backup is of …"""
    target_major: int
    """… and of the one it would be restored into."""
    database_bytes: int
    dump_bytes: int
    staging_database: str | None
    previous_database: str | None
    sessions: int
    free_bytes: int | None
    rows: int | None
    losses: tuple[TableLoss, ...]
    """The largest first."""
    uncounted: tuple[str, ...]
    """Tables of which nobody knows how many rows would be lost."""
    expected: ExpectedTime | None
    properties: DatabaseProperties
    obstacles: tuple[Obstacle, ...]
    warnings: tuple[str, ...]
    along: tuple[str, ...] = ()
    """What comes with the part that is restored."""
    missing: tuple[str, ...] = ()
    """What is left out of it although it belongs to it."""
    is_part: bool = False
    """Whether not all is restored: then time and disk are at most those of the whole."""

    @property
    def blockers(self) -> tuple[str, ...]:
        return tuple(obstacle.reason for obstacle in self.obstacles)

    @property
    def would_work(self) -> bool:
        return not self.obstacles

    @property
    def refusal(self) -> Refused | None:
        """The first obstacle, and how many there are, as the error that a restore ends with."""
        if not self.obstacles:
            return None
        first, *others = self.obstacles
        more = f" (and {len(others)} more in the plan)" if others else ""
        return Refused(f"The restore would not work: {first.reason}{more}.", hint=first.hint)

    @property
    def lost_rows(self) -> int:
        return sum(loss.lost_rows for loss in self.losses)

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
    other_obstacles: Iterable[Obstacle] = (),
    expected: ExpectedTime | None = None,
) -> RestorePlan:
    """Decide what a restore of ``manifest`` as ``database`` would do; everything it knows is an argument.

    ``other_obstacles`` are why the backup cannot be read here at all, or may not be trusted.
    """
    live = target.live
    mode = _mode(live, options)
    obstacles = [*_server_obstacles(manifest, target, mode), *_login_obstacles(manifest, target, options, mode)]
    obstacles += [*_mode_obstacles(manifest, live, mode, options), *other_obstacles]
    disk_obstacle, disk_warning = _disk(manifest, target, options)
    replaced = live if mode in {"swap", "in_place"} else None
    warnings = [*([disk_warning] if disk_warning else []), *_remarks(manifest, target, options, mode)]
    properties = live.properties if live is not None and mode != "create" else manifest.facts.database
    return RestorePlan(
        backup_id=manifest.id,
        database=database,
        mode=mode,
        taken_at=manifest.created_at,
        server_version=manifest.server_version,
        target_major=target.major,
        database_bytes=manifest.restored_bytes,
        dump_bytes=manifest.dump.bytes,
        staging_database=staging_name(database, secrets.token_hex(4)) if mode in {"swap", "create"} else None,
        previous_database=previous_name(database, now, target.previous) if mode == "swap" else None,
        sessions=replaced.sessions if replaced else 0,
        free_bytes=target.free_bytes,
        rows=manifest.facts.rows,
        losses=tuple(sorted(_losses(manifest, replaced), key=lambda loss: -loss.lost_rows)) if replaced else (),
        uncounted=tuple(_uncounted(manifest, replaced)) if replaced else (),
        expected=expected,
        properties=properties,
        obstacles=(*obstacles, *([disk_obstacle] if disk_obstacle else [])),
        warnings=tuple(warnings),
    )


def _mode(live: LiveDatabase | None, options: RestoreOptions) -> Mode:
    if options.in_place:
        return "in_place"
    if live is None:
        return "create"
    return "fill" if options.into else "swap"


def _filling_obstacles(manifest: Manifest, live: LiveDatabase | None) -> Iterator[Obstacle]:
    """Rows alone go into tables that are there, and empty: else they would mix with others'."""
    if live is None:
        yield Obstacle("there is no database of that name, and --data-only makes no tables", "Leave --data-only out.")
        return
    for table in manifest.facts.tables:
        name = f"{table.schema}.{table.name}"
        if (table.schema, table.name) not in live.rows:
            yield Obstacle(f"there is no table {name} in that database", "--schema-only makes it.")
        elif live.rows[table.schema, table.name] != 0:
            yield Obstacle(f"table {name} is not empty", "TRUNCATE it, or restore into another database.")


def _mode_obstacles(
    manifest: Manifest, live: LiveDatabase | None, mode: Mode, options: RestoreOptions
) -> Iterator[Obstacle]:
    if mode == "in_place" and live is None:
        yield Obstacle("there is no live database to restore into", "Leave --in-place out: the database is created.")
    if options.data_only:
        yield from _filling_obstacles(manifest, live)
    elif mode == "fill" and live is not None and not live.is_empty:
        yield Obstacle("a database of that name exists already, and it is not empty", "--into another name.")
    if mode in {"fill", "in_place"} and options.jobs > 1:
        yield Obstacle(
            "one transaction takes one session: --jobs goes with a staging database only", "Leave --jobs out."
        )
    if mode == "swap" and live is not None:
        yield from _swap_obstacles(live)


def _server_obstacles(manifest: Manifest, target: Target, mode: Mode) -> Iterator[Obstacle]:
    properties = manifest.facts.database
    if target.in_recovery:
        yield Obstacle("the server is a standby: it takes no writes", "Restore on its primary.")
    if manifest.format != "plain" and target.major < SETS_TRANSACTION_TIMEOUT <= manifest.pg_dump_major:
        yield Obstacle(
            f"the archive was written by pg_dump {manifest.pg_dump_major}, whose commands a server of version"
            f" {target.major} does not know",
            f"Restore into a server of version {SETS_TRANSACTION_TIMEOUT} or newer: --to URL.",
        )
    if mode in {"swap", "create"}:
        if not target.may_create_databases:
            yield Obstacle(
                "the login may not create databases",
                "ALTER ROLE … CREATEDB; without that: --into an existing empty database, or --in-place.",
            )
        if properties.locale_provider not in {None, *target.locale_providers}:
            yield Obstacle(
                f"the server has no {properties.locale_provider} locales",
                f"Restore into a server built with {properties.locale_provider}: --to URL.",
            )
        if not target.has_locale:
            names = " and ".join(sorted({str(properties.collate), str(properties.ctype)}))
            yield Obstacle(
                f"the server has no locale {names}",
                "Install it on the server's machine (locale-gen) and restart the server, or --to URL.",
            )
    for lacking in target.lacks:
        yield Obstacle(
            f"the server has no {lacking}, which objects of the backup use",
            "Install it on the server's machine, or restore into a server that has it: --to URL.",
        )
    for extension in manifest.facts.extensions:
        if extension.name not in target.available_extensions:
            version = f" {extension.version}" if extension.version else ""
            yield Obstacle(
                f"extension {extension.name}{version} is not installed on the server",
                "Install its package on the server's machine; it needs no restart of the server.",
            )
        elif extension.name == "timescaledb":
            yield Obstacle(
                "timescaledb needs timescaledb_pre_restore() around a restore",
                "`opsctl export`, then restore by hand as timescaledb's documentation says.",
            )
        elif extension.name == "pg_cron" and mode in {"swap", "create"}:
            yield Obstacle(
                "pg_cron can only be created in the database that cron.database_name names", "Restore with --in-place."
            )


def _login_obstacles(manifest: Manifest, target: Target, options: RestoreOptions, mode: Mode) -> Iterator[Obstacle]:
    """What the archive holds and this login cannot bring back, each entry by name."""
    facts = manifest.facts
    owners = {owned.role for owned in facts.owners} | ({facts.database.owner} if facts.database.owner else set())
    needed = [role for role in facts.roles if not (options.no_owner if role in owners else options.no_privileges)]
    if mode == "create" and not options.no_privileges:
        needed += sorted(facts.database.grantees.difference(needed))
    if options.role:
        needed.append(options.role)
    missing = [role for role in needed if role not in target.roles]
    if missing:
        yield Obstacle(
            f"roles that the backup needs do not exist here: {', '.join(missing)}",
            f"{_how_roles_are_made(manifest)}; --no-owner and --no-privileges do without.",
        )
    if target.is_superuser:
        return
    as_superuser = "Restore as a superuser."
    others = set() if options.no_owner else owners & target.roles - target.memberships
    for owned in facts.owners:
        if owned.role in others:
            more = f" and {owned.count - len(owned.examples)} more" if owned.count > len(owned.examples) else ""
            yield Obstacle(
                f"the login is no member of {owned.role}, the owner of {', '.join(owned.examples)}{more}",
                f"GRANT {owned.role} TO the login, or --no-owner.",
            )
    if mode == "create" and facts.database.owner in others.difference(owned.role for owned in facts.owners):
        yield Obstacle(
            f"the login is no member of {facts.database.owner}, the owner of the database",
            f"GRANT {facts.database.owner} TO the login, or --no-owner.",
        )
    if options.role and options.role in target.roles and options.role not in target.memberships:
        yield Obstacle(f"the login is no member of {options.role}", f"GRANT {options.role} TO the login.")
    for name in facts.superuser_objects:
        yield Obstacle(f"only a superuser can restore {name}", as_superuser)
    for extension in facts.extensions:
        if extension.name in target.untrusted_extensions:
            yield Obstacle(f"only a superuser can create extension {extension.name}", as_superuser)


def _how_roles_are_made(manifest: Manifest) -> str:
    if manifest.imported:
        return "CREATE ROLE creates them: a dump does not say what they may do"
    # Whoever copies the line alone would make them on the configured server.
    return f"`opsctl restore {manifest.id} --globals` creates them, with the same --to if there was one"


def _swap_obstacles(live: LiveDatabase) -> Iterator[Obstacle]:
    owner = live.properties.owner
    if not live.login_owns_it:
        yield Obstacle(
            f"only its owner, {owner}, can rename the live database",
            f"Restore as {owner}, or GRANT {owner} TO the login.",
        )
    for what, names, hint in (
        ("prepared transactions hold", live.prepared_transactions, "COMMIT PREPARED or ROLLBACK PREPARED ends one."),
        ("logical replication slots belong to", live.logical_slots, "pg_drop_replication_slot() drops one."),
        ("subscriptions belong to", live.subscriptions, "DROP SUBSCRIPTION ends one; recreate it after the swap."),
        (
            "sessions that this login cannot end hold",
            live.protected_sessions,
            "End them, GRANT pg_signal_backend TO the login, or restore as a superuser.",
        ),
    ):
        if names:
            yield Obstacle(f"{what} the live database: {', '.join(names)}", hint)


def _disk(manifest: Manifest, target: Target, options: RestoreOptions) -> tuple[Obstacle | None, str | None]:
    """What stands in the way, or a remark; what cannot be known is said to be unknown."""
    needed = manifest.restored_bytes
    if target.free_bytes is not None:
        if target.free_bytes >= needed:
            return None, None
        short = f"the server has {size(target.free_bytes)} free, the copy needs about {size(needed)}"
        if manifest.database_bytes is None and target.free_bytes >= manifest.plain_bytes:
            return None, f"{short}, as far as a dump tells"
        return Obstacle(short, "Free space on its disk; --forget-previous drops what restores put aside."), None
    unknown = f"the free disk space of the server is unknown; the copy needs about {size(needed)}"
    if needed > SMALL_BYTES and not options.accept_unknown_disk:
        return Obstacle(unknown, "Look yourself, then --accept-unknown-disk."), None
    return None, unknown


def _remarks(manifest: Manifest, target: Target, options: RestoreOptions, mode: Mode) -> Iterator[str]:
    facts = manifest.facts
    if target.major < manifest.pg_dump_major and not target.major < SETS_TRANSACTION_TIMEOUT <= manifest.pg_dump_major:
        yield f"the archive was written by pg_dump {manifest.pg_dump_major}, the server is older ({target.major})"
    if target.writes_wal:
        yield f"the load writes about {size(manifest.restored_bytes)} of WAL"
    for extension in facts.extensions:
        default = target.available_extensions.get(extension.name)
        if None not in {default, extension.version} and default != extension.version:
            yield f"extension {extension.name} is {default} here, it was {extension.version}"
    locale = (facts.database.locale_provider or "", facts.database.locale or facts.database.collate or "")
    collation = target.collation_versions.get(locale)
    if None not in {collation, facts.database.collation_version} and collation != facts.database.collation_version:
        was = facts.database.collation_version
        yield f"the collation's version is {collation} here, it was {was}: text may sort anew"
    if mode == "swap" and target.live is not None:
        yield from target.live.not_carried_over
    if mode == "swap" and len(target.standbys) > options.replica_count:
        yield f"standbys whose sessions go on reading the old database: {', '.join(target.standbys)} (replica_urls)"
    if mode == "in_place":
        yield "there is no undo: the live database is overwritten in one transaction"
    if target.is_superuser and not options.is_trusted:
        yield (
            "loaded by a superuser: functions that the dump brings run with all rights, also outside of the database;"
            " load one that you do not trust as its owner (--to URL)"
        )
    for table in manifest.excluded_tables:
        yield f"the data of {table} is not in the backup"
    for warning in manifest.warnings:
        yield f"about the dump: {warning}" if manifest.imported else f"when the backup was taken: {warning}"


def _losses(manifest: Manifest, live: LiveDatabase) -> Iterator[TableLoss]:
    """A table whose data is not in the backup is lost whole: one made since, or one that was left out."""
    stored = {(table.schema, table.name): table.rows for table in manifest.facts.tables}
    for (schema, name), live_rows in live.rows.items():
        in_backup = (schema, name) in stored
        backup_rows = stored.get((schema, name), 0)
        if live_rows is not None and backup_rows is not None and live_rows > backup_rows:
            yield TableLoss(schema, name, live_rows, backup_rows, in_backup)


def _uncounted(manifest: Manifest, live: LiveDatabase) -> Iterator[str]:
    unknown = {(table.schema, table.name) for table in manifest.facts.tables if table.rows is None}
    for table, live_rows in sorted(live.rows.items()):
        if live_rows is None or (live_rows and table in unknown):
            yield ".".join(table)
