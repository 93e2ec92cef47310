"""The server's state at one moment, shared by the dump and the facts.

The tables are locked in ACCESS SHARE before the snapshot is taken: an exported snapshot alone does not protect against
TRUNCATE and table rewrites. Locking is a utility statement, so the snapshot comes into being after it, with the export.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from opsctl.errors import DumpFailed, LockHeld
from opsctl.manifest import Facts, TableFacts
from opsctl.postgres.facts import PINNED, FactsLevel, count_large_objects, count_table, read_copy, read_facts
from opsctl.postgres.server import Server, one, rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

ATTEMPTS = 10
"""How often the list of tables is taken anew when tables come and go in between."""

DUMPED_TABLES = """
    select c.oid, nspname, relname from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind in ('r', 'p') and relpersistence <> 't' and nspname !~ '^pg_' and nspname <> 'information_schema'
      and not exists (select from pg_depend d join pg_extension e on e.oid = d.refobjid
                      where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
                        and not coalesce(c.oid = any(e.extconfig), false))
    order by c.oid"""
"""Tables pg_dump locks: its own tables, and of extensions those with configuration data."""


@dataclass(frozen=True)
class Snapshot:
    """An exported snapshot; it lives as long as the session that holds it."""

    id: str
    facts: Facts
    database_oid: int
    database_bytes: int


@contextmanager
def open_snapshot(server: Server, *, level: FactsLevel, lock_timeout_seconds: float) -> Iterator[Snapshot]:
    """Lock all tables, export a snapshot and read the facts that are cheap; the session ends with the context.

    Raises LockHeld with the blocking sessions and their queries when a table's lock is not had in time.
    """
    with server.connect(application_name="opsctl snapshot", lasting=True) as connection:
        connection.execute(PINNED)
        connection.execute("select set_config('lock_timeout', %s, false)", (f"{int(lock_timeout_seconds * 1000)}ms",))
        for _attempt in range(ATTEMPTS):
            wanted = _dumped_tables(connection)
            if not _begin_with_locks(connection, server, wanted, lock_timeout_seconds):
                continue
            snapshot_id = one(connection, "select pg_export_snapshot()")[0]
            if _dumped_tables(connection).keys() <= wanted.keys():
                break
            connection.execute("rollback")
        else:
            raise DumpFailed(
                f"Tables appear and disappear faster than they can be locked ({ATTEMPTS} attempts).",
                hint="Stop what creates and drops them for a moment; temporary tables do not matter.",
            )
        oid, size = one(
            connection,
            "select oid, pg_database_size(oid) from pg_database where datname = current_database()",
        )
        yield Snapshot(snapshot_id, read_facts(connection, server.database, (), level), oid, size)
        connection.execute("rollback")


def _dumped_tables(connection: "Connection") -> dict[int, tuple[str, str]]:
    return {oid: (schema, name) for oid, schema, name in rows(connection, DUMPED_TABLES)}


def _begin_with_locks(
    connection: "Connection", server: Server, tables: dict[int, tuple[str, str]], timeout_seconds: float
) -> bool:
    """Whether all tables could be locked; not when one of them has gone meanwhile."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    connection.execute("begin isolation level repeatable read, read only")
    if not tables:
        return True
    names = SQL(", ").join(SQL("only {}").format(Identifier(schema, name)) for schema, name in tables.values())
    try:
        connection.execute(SQL("lock table {} in access share mode").format(names))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.WrongObjectType):
        connection.execute("rollback")
        return False
    except psycopg.errors.LockNotAvailable:
        connection.execute("rollback")
        raise LockHeld(
            f"A table of {server.database!r} stayed locked for {timeout_seconds:g} s: {_blockers(connection, tables)}.",
            hint="Let that session finish or end it, or raise lock_timeout_seconds.",
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        connection.execute("rollback")
        raise DumpFailed(
            f"The login may not read everything: {error.diag.message_primary}.",
            hint="GRANT pg_read_all_data TO the login, or dump as the owner of the tables.",
        ) from None
    return True


def _blockers(connection: "Connection", tables: dict[int, tuple[str, str]]) -> str:
    """The sessions whose lock excludes a reader, with what they run."""
    found = rows(
        connection,
        """select distinct a.pid, coalesce(a.usename, '?'),
                  coalesce(nullif(a.application_name, ''), 'no application name'),
                  a.state, left(regexp_replace(a.query, '\\s+', ' ', 'g'), 120), l.relation
           from pg_locks l join pg_stat_activity a using (pid)
           where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.relation = any(%s) and l.granted
             and l.database = (select oid from pg_database where datname = current_database())""",
        (list(tables),),
    )
    if not found:
        return "its blocker is gone by now"
    return "; ".join(
        f"pid {pid} ({user}, {application}, {state}) holds {'.'.join(tables[relation])} with: {query}"
        for pid, user, application, state, query, relation in found[:5]
    )


@contextmanager
def join_snapshot(server: Server, snapshot: Snapshot) -> Iterator["Connection"]:
    """A session of its own that sees the snapshot, to count in while pg_dump runs."""
    with server.connect(application_name="opsctl facts", lasting=True) as connection:
        connection.execute(PINNED)
        connection.execute("begin isolation level repeatable read, read only")
        connection.execute(f"set transaction snapshot '{snapshot.id}'")
        yield connection


def count_in_snapshot(connection: "Connection", snapshot: Snapshot, table_oids: Sequence[int]) -> Facts:
    """The snapshot's facts, completed by the rows of the tables whose data is in the archive.

    ``table_oids`` come from the archive's own table of contents: what is counted is what was dumped.
    """
    level = snapshot.facts.level
    named = rows(
        connection,
        """select nspname, relname from pg_class c join pg_namespace n on n.oid = relnamespace
           where c.oid = any(%s) order by 1, 2""",
        (list(table_oids),),
    )
    tables = [count_table(connection, TableFacts(schema, name), level) for schema, name in named]
    large_objects, large_objects_hash = count_large_objects(connection, level)
    return replace(
        snapshot.facts, tables=tuple(tables), large_objects=large_objects, large_objects_hash=large_objects_hash
    )


def present_facts(connection: "Connection", database: str, level: FactsLevel) -> Facts:
    """The facts of a database as it is now, of every table whose data pg_dump would dump."""
    with_data = (
        f"select d.nspname, d.relname from ({DUMPED_TABLES}) d join pg_class c using (oid) where c.relkind = 'r'"
    )
    tables = [TableFacts(schema, name) for schema, name in rows(connection, with_data)]
    return read_copy(connection, database, read_facts(connection, database, tables, level))
