"""What a restore will meet on the server: asked before anything is created."""

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.manifest import DatabaseProperties
from opsctl.postgres.databases import apply_properties
from opsctl.postgres.facts import read_properties
from opsctl.postgres.live_rows import count_live
from opsctl.postgres.requirements import has_locale, missing_requirements
from opsctl.postgres.server import Server, maybe, one, rows
from opsctl.postgres.swap import find_previous

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

EMPTY = """
    select not exists (select from pg_class c join pg_namespace n on n.oid = relnamespace
                       where c.oid >= 16384 and nspname !~ '^pg_' and nspname <> 'information_schema')
       and not exists (select from pg_namespace where oid >= 16384 and nspname !~ '^pg_')"""


@dataclass(frozen=True)
class LiveDatabase:
    """The database that would be replaced.

    ``rows`` of all its tables are by (schema, table), ``None`` where counting took too long or is not allowed; empty
    when they were not asked for.
    """

    oid: int
    bytes: int
    properties: DatabaseProperties
    login_owns_it: bool
    is_empty: bool
    sessions: int
    protected_sessions: tuple[str, ...]
    prepared_transactions: tuple[str, ...]
    logical_slots: tuple[str, ...]
    subscriptions: tuple[str, ...]
    not_carried_over: tuple[str, ...]
    """What of its properties this login may not give to the copy, and why."""
    rows: dict[tuple[str, str], int | None]


@dataclass(frozen=True)
class Target:
    """The server a restore goes to, as its login sees it. ``free_bytes`` is ``None`` where it cannot be known."""

    major: int
    is_superuser: bool
    may_create_databases: bool
    in_recovery: bool
    writes_wal: bool
    roles: frozenset[str]
    memberships: frozenset[str]
    """Roles whose objects the login may give them: it is a member, and may become one of them."""
    available_extensions: dict[str, str]
    untrusted_extensions: frozenset[str]
    locale_providers: frozenset[str]
    collation_versions: dict[tuple[str, str], str | None]
    standbys: tuple[str, ...]
    free_bytes: int | None
    live: LiveDatabase | None
    previous: tuple[str, ...] = ()
    """What earlier swaps put aside, newest first."""

    has_locale: bool = True
    """Whether the server has the locale of the backup's database."""

    lacks: tuple[str, ...] = ()
    """What the backup's objects need, and this server's build or machine has not."""


def inspect_target(
    server: Server,
    database: str,
    requires: tuple[str, ...],
    properties: DatabaseProperties,
    *,
    count_rows: bool = True,
) -> Target:
    """Look at the server, whether it has what is required, and, if it exists, at ``database`` and its rows.

    ``properties`` are those that a new database would get.
    """
    info = server.info
    with server.connect(server.maintenance_database) as connection:
        return Target(
            major=info.major,
            is_superuser=info.is_superuser,
            may_create_databases=info.may_create_databases,
            in_recovery=info.in_recovery,
            writes_wal=_writes_wal(connection),
            roles=_names(connection, "select rolname from pg_roles"),
            memberships=_names(
                connection, "select rolname from pg_roles where pg_has_role(oid, %s)", _become_right(info.major)
            ),
            available_extensions=dict(rows(connection, "select name, default_version from pg_available_extensions")),
            untrusted_extensions=_names(
                connection,
                """select v.name from pg_available_extension_versions v join pg_available_extensions e
                   on e.name = v.name and e.default_version = v.version where v.superuser and not v.trusted""",
            ),
            locale_providers=_locale_providers(connection, info.major),
            collation_versions=_collation_versions(connection, info.major),
            standbys=_standbys(connection),
            free_bytes=_free_bytes(connection, server),
            has_locale=has_locale(connection, properties),
            lacks=() if info.in_recovery else tuple(missing_requirements(connection, requires)),
            live=_live(connection, server, database, count_rows=count_rows),
            previous=tuple(find_previous(connection, database)),
        )


def _names(connection: "Connection", query: str, *parameters: str) -> frozenset[str]:
    return frozenset(row[0] for row in rows(connection, query, parameters))


def _become_right(major: int) -> str:
    """The right that lets a member give objects to a role: from 16 on it can be withheld from a membership."""
    return "SET" if major >= 16 else "MEMBER"


def _writes_wal(connection: "Connection") -> bool:
    """Whether a bulk load goes through the WAL and from there to an archive or a standby."""
    return bool(
        one(
            connection, "select current_setting('wal_level') <> 'minimal' and current_setting('archive_mode') <> 'off'"
        )[0]
    ) or bool(rows(connection, "select from pg_stat_replication limit 1"))


def _locale_providers(connection: "Connection", major: int) -> frozenset[str]:
    has_icu = one(connection, "select exists (select from pg_collation where collprovider = 'i')")[0]
    return frozenset({"libc"} | ({"icu"} if has_icu else set()) | ({"builtin"} if major >= 17 else set()))


def _collation_versions(connection: "Connection", major: int) -> dict[tuple[str, str], str | None]:
    """The version each locale of this server's databases has now, by provider and name."""
    if major < 15:
        return {}
    locale = f"coalesce({'datlocale' if major >= 17 else 'daticulocale'}, datcollate)"
    query = f"""select distinct on (datlocprovider, {locale}) datlocprovider::text, {locale},
                       pg_database_collation_actual_version(oid) from pg_database"""
    words = {"c": "libc", "i": "icu", "b": "builtin"}
    return {(words[provider], name): version for provider, name, version in rows(connection, query)}


def _standbys(connection: "Connection") -> tuple[str, ...]:
    query = """select coalesce(nullif(application_name, ''), 'a standby')
                      || coalesce(' at ' || host(client_addr), '') from pg_stat_replication
               where application_name is distinct from 'pg_basebackup'"""
    return tuple(str(row[0]) for row in rows(connection, query))


def _live(connection: "Connection", server: Server, database: str, *, count_rows: bool) -> LiveDatabase | None:
    try:
        properties = read_properties(connection, database)
    except LookupError:
        return None
    oid, owned, accepts = one(
        connection,
        "select oid, pg_has_role(datdba, 'member'), datallowconn from pg_database where datname = %s",
        (database,),
    )
    sessions = rows(
        connection,
        """select pid, coalesce(usename, '?'), coalesce(application_name, ''),
                  not (pg_has_role(current_user, usesysid, 'member')
                       or pg_has_role(current_user, 'pg_signal_backend', 'member') and not coalesce(rolsuper, true))
           from pg_stat_activity left join pg_roles r on r.oid = usesysid
           where datid = %s and usesysid is not null  -- another role's session hides even what kind it is
             and coalesce(backend_type, 'client backend') = 'client backend'""",
        (oid,),
    )
    protected = [f"pid {pid} ({user}, {name})" for pid, user, name, is_protected in sessions if is_protected]
    prepared = rows(connection, "select gid from pg_prepared_xacts where database = %s", (database,))
    slots = rows(connection, "select slot_name from pg_replication_slots where database = %s", (database,))
    subscriptions = rows(connection, "select subname from pg_subscription where subdbid = %s", (oid,))
    counted: dict[tuple[str, str], int | None] = {}
    is_empty = False
    if accepts:
        with server.connect(database) as inside:
            is_empty = bool(one(inside, EMPTY)[0])
            counted = count_live(inside) if count_rows else {}
    return LiveDatabase(
        oid=oid,
        bytes=maybe(connection, "select pg_database_size(%s::oid)", (oid,)) or 0,
        properties=properties,
        login_owns_it=owned,
        is_empty=is_empty,
        sessions=len(sessions),
        protected_sessions=() if server.info.is_superuser else tuple(protected),
        prepared_transactions=tuple(row[0] for row in prepared),
        logical_slots=tuple(row[0] for row in slots),
        subscriptions=tuple(row[0] for row in subscriptions),
        not_carried_over=tuple(_not_carried_over(connection, server, database, properties)),
        rows=counted,
    )


def _not_carried_over(
    connection: "Connection", server: Server, database: str, properties: DatabaseProperties
) -> list[str]:
    """Try on the live database itself, in transactions that are rolled back, what the copy will need."""
    return [] if server.info.in_recovery else apply_properties(connection, database, properties, rehearse=True)


def _free_bytes(connection: "Connection", server: Server) -> int | None:
    """Free disk of the data folder, when the server is on this host and says where its data is."""
    if not server.is_here:
        return None
    folder = maybe(connection, "select setting from pg_settings where name = 'data_directory'")
    try:
        return shutil.disk_usage(folder).free if folder else None
    except OSError:
        return None
