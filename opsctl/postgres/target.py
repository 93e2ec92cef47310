"""What a restore will meet on the server: asked before anything is created."""

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.manifest import DatabaseProperties, TableFacts
from opsctl.postgres.facts import PINNED, count_table, list_tables, read_properties
from opsctl.postgres.server import Server, maybe, one, rows
from opsctl.postgres.swap import find_previous

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

COUNT_SECONDS = 5
"""How long one live table may be counted for the comparison; it stays unknown then."""


@dataclass(frozen=True)
class LiveDatabase:
    """The database that would be replaced.

    ``rows`` are by (schema, table), ``None`` where counting took too long or is not allowed.
    """

    oid: int
    bytes: int
    properties: DatabaseProperties
    login_owns_it: bool
    sessions: int
    protected_sessions: int
    prepared_transactions: tuple[str, ...]
    logical_slots: tuple[str, ...]
    subscriptions: tuple[str, ...]
    rows: dict[tuple[str, str], int | None]


@dataclass(frozen=True)
class Target:
    """The server a restore goes to, as its login sees it. ``free_bytes`` is ``None`` where it cannot be known."""

    major: int
    may_create_databases: bool
    in_recovery: bool
    roles: frozenset[str]
    available_extensions: dict[str, str]
    free_bytes: int | None
    live: LiveDatabase | None
    previous: tuple[str, ...] = ()
    """What earlier swaps put aside, newest first."""


def inspect_target(server: Server, database: str, tables: tuple[TableFacts, ...]) -> Target:
    """Look at the server and, if it exists, at ``database``, whose ``tables`` are counted."""
    info = server.info
    with server.connect(server.maintenance_database) as connection:
        roles = frozenset(row[0] for row in rows(connection, "select rolname from pg_roles"))
        extensions = dict(rows(connection, "select name, default_version from pg_available_extensions"))
        free = _free_bytes(connection, server)
        live = _live(connection, server, database, tables)
        previous = find_previous(connection, database)
    return Target(
        major=info.major,
        may_create_databases=info.may_create_databases,
        in_recovery=info.in_recovery,
        roles=roles,
        available_extensions=extensions,
        free_bytes=free,
        live=live,
        previous=tuple(previous),
    )


def _live(
    connection: "Connection", server: Server, database: str, tables: tuple[TableFacts, ...]
) -> LiveDatabase | None:
    try:
        properties = read_properties(connection, database)
    except LookupError:
        return None
    oid, owned, accepts = one(
        connection,
        "select oid, pg_has_role(datdba, 'member'), datallowconn from pg_database where datname = %s",
        (database,),
    )
    sessions, protected = one(
        connection,
        """select count(*), count(*) filter (where rolsuper)
           from pg_stat_activity left join pg_roles r on r.oid = usesysid
           where datid = %s and backend_type = 'client backend'""",
        (oid,),
    )
    if server.info.is_superuser:
        protected = 0
    prepared = rows(connection, "select gid from pg_prepared_xacts where database = %s", (database,))
    slots = rows(connection, "select slot_name from pg_replication_slots where database = %s", (database,))
    subscriptions = rows(connection, "select subname from pg_subscription where subdbid = %s", (oid,))
    counted: dict[tuple[str, str], int | None] = {}
    if accepts:
        with server.connect(database) as inside:
            counted = _count(inside, tables)
    return LiveDatabase(
        oid=oid,
        bytes=maybe(connection, "select pg_database_size(%s::oid)", (oid,)) or 0,
        properties=properties,
        login_owns_it=owned,
        sessions=sessions,
        protected_sessions=protected,
        prepared_transactions=tuple(row[0] for row in prepared),
        logical_slots=tuple(row[0] for row in slots),
        subscriptions=tuple(row[0] for row in subscriptions),
        rows=counted,
    )


def _count(connection: "Connection", tables: tuple[TableFacts, ...]) -> dict[tuple[str, str], int | None]:
    """Rows per table of the backup that is still there; a table that is gone has no entry."""
    import psycopg

    connection.execute(PINNED)
    connection.execute(f"set statement_timeout = '{COUNT_SECONDS}s'; set lock_timeout = '200ms'")
    wanted = {(table.schema, table.name) for table in tables}
    counted: dict[tuple[str, str], int | None] = {}
    for table in list_tables(connection):
        if (table.schema, table.name) not in wanted:
            continue
        try:
            counted[table.schema, table.name] = count_table(connection, table, "counts").rows
        except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
            counted[table.schema, table.name] = None
    return counted


def _free_bytes(connection: "Connection", server: Server) -> int | None:
    """Free disk of the data folder, when the server is on this host and says where its data is."""
    host = server.parameters.get("host") or os.environ.get("PGHOST") or "/"
    if not host.startswith("/") and host not in {"localhost", "127.0.0.1", "::1"}:
        return None
    folder = maybe(connection, "select setting from pg_settings where name = 'data_directory'")
    try:
        return shutil.disk_usage(folder).free if folder else None
    except OSError:
        return None
