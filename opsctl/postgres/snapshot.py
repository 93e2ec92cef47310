"""The server's state at one moment, shared by the dump and the facts.

The tables are locked in ACCESS SHARE before the snapshot is taken: an exported snapshot alone does not protect against
TRUNCATE and table rewrites. Locking is a utility statement, so the snapshot comes into being after it, with the export.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from opsctl.errors import DumpFailed, LockHeld
from opsctl.manifest import SequenceFacts
from opsctl.postgres.facts import PINNED, FactsLevel, Table, list_tables, read_sequences
from opsctl.postgres.server import Server, one, rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

ATTEMPTS = 10
"""How often, at least, the list of tables is taken anew when tables come and go in between."""

TURN_SECONDS = 0.4
"""How long all locks together may take at first: well below deadlock_timeout, which is a second by default."""

PATIENCE_GROWTH = 1.1
"""Each turn lasts a little longer than the last one: locking very many tables takes its time too."""


@dataclass(frozen=True)
class Snapshot:
    """An exported snapshot; it lives as long as the session that holds it."""

    id: str
    connection: "Connection"
    level: FactsLevel
    database: str
    encoding: str
    sequences: tuple[SequenceFacts, ...]
    """As they stood before the dump: they follow no snapshot."""
    database_oid: int
    database_bytes: int
    without_data: tuple[Table, ...]
    warnings: tuple[str, ...]


@contextmanager
def open_snapshot(
    server: Server, *, level: FactsLevel, lock_timeout_seconds: float, exclude_tables: Sequence[str] = ()
) -> Iterator[Snapshot]:
    """Lock all tables and export a snapshot; the session ends with the context.

    ``exclude_tables`` are names or patterns of tables whose data will stay out (``audit``, ``public.log_*``).
    Raises LockHeld with the blocking sessions and their queries when a table's lock is not had in time.
    """
    with server.connect(application_name="opsctl snapshot", lasting=True) as connection:
        connection.execute(PINNED)
        connection.execute("select set_config('lock_timeout', %s, false)", (f"{int(lock_timeout_seconds * 1000)}ms",))
        snapshot_id, wanted = _locked(connection, server, lock_timeout_seconds)
        oid, size, encoding = one(
            connection,
            "select oid, pg_database_size(oid), pg_encoding_to_char(encoding)"
            " from pg_database where datname = current_database()",
        )
        excluded, warnings = _excluded(connection, wanted, exclude_tables)
        yield Snapshot(
            id=snapshot_id,
            connection=connection,
            level=level,
            database=server.database,
            encoding=encoding,
            sequences=tuple(read_sequences(connection)),
            database_oid=oid,
            database_bytes=size,
            without_data=tuple(excluded),
            warnings=tuple(warnings),
        )
        connection.execute("rollback")


def _excluded(connection: "Connection", tables: list[Table], patterns: Sequence[str]) -> tuple[list[Table], list[str]]:
    """The tables the patterns mean, with the partitions of those; and a warning for each that means none."""
    chosen: set[int] = set()
    warnings = []
    for pattern in patterns:
        found = {t.oid for t in tables if fnmatchcase(f"{t.schema}.{t.name}" if "." in pattern else t.name, pattern)}
        chosen |= found
        if not found:
            warnings.append(f"exclude_tables: {pattern!r} means no table")
    partitions = rows(
        connection,
        """with recursive part(oid) as (
               select unnest(%s::oid[]) union
               select inhrelid from pg_inherits join part on inhparent = part.oid join pg_class c on c.oid = inhrelid
               where c.relispartition)
           select oid from part""",
        (list(chosen),),
    )
    chosen |= {oid for (oid,) in partitions}
    return [table for table in tables if table.oid in chosen], warnings


def _locked(connection: "Connection", server: Server, timeout_seconds: float) -> tuple[str, list[Table]]:
    """The exported snapshot of a transaction that holds a lock on every table, and those tables.

    All locks or none: whoever waits for one table while holding another could be in a deadlock with an application,
    whose transaction PostgreSQL might end. So a turn is shorter than the wait after which deadlocks are looked for.
    """
    deadline = time.monotonic() + timeout_seconds
    patience = TURN_SECONDS
    attempts = 0
    while True:
        attempts += 1
        tables = list_tables(connection, kinds="rp")
        left = deadline - time.monotonic()
        outcome = _begin_with_locks(connection, tables, max(0.01, min(patience, left)))
        if outcome == "locked":
            snapshot_id = one(connection, "select pg_export_snapshot()")[0]
            if {table.oid for table in list_tables(connection, kinds="rp")} <= {table.oid for table in tables}:
                return snapshot_id, tables
            connection.execute("rollback")
        elif outcome == "busy":
            patience *= PATIENCE_GROWTH
        if time.monotonic() < deadline:
            continue
        if outcome == "busy":
            holders = _blockers(connection, tables)
            raise LockHeld(
                f"A table of {server.database!r} stayed locked for {timeout_seconds:g} s: {holders}.",
                hint="Let that session finish or end it, or raise lock_timeout_seconds.",
            )
        if attempts >= ATTEMPTS:
            raise DumpFailed(
                f"Tables appear and disappear faster than they can be locked ({attempts} attempts).",
                hint="Stop what creates and drops them for a moment; temporary tables do not matter.",
            )


def _begin_with_locks(
    connection: "Connection", tables: list[Table], seconds: float
) -> Literal["locked", "busy", "gone"]:
    """Begin a transaction with all tables locked, or none when one is locked for longer or has gone meanwhile."""
    import psycopg

    connection.execute("begin isolation level repeatable read, read only")
    if not tables:
        return "locked"
    names = b", ".join(b"only " + table.quoted for table in tables)
    try:
        connection.execute(f"set local statement_timeout = '{int(seconds * 1000)}ms'")
        connection.execute(b"lock table %b in access share mode" % names)
        connection.execute("set local statement_timeout = 0")
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.WrongObjectType):
        connection.execute("rollback")
        return "gone"
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        connection.execute("rollback")
        return "busy"
    except psycopg.errors.InsufficientPrivilege as error:
        connection.execute("rollback")
        raise DumpFailed(
            f"The login may not read everything: {error.diag.message_primary}.",
            hint="GRANT pg_read_all_data TO the login, or dump as the owner of the tables.",
        ) from None
    return "locked"


def _blockers(connection: "Connection", tables: list[Table]) -> str:
    """The sessions whose lock excludes a reader, with what they run."""
    names = {table.oid: f"{table.schema}.{table.name}" for table in tables}
    found = rows(
        connection,
        """select distinct a.pid, coalesce(a.usename, '?'),
                  coalesce(nullif(a.application_name, ''), 'no application name'),
                  a.state, left(regexp_replace(a.query, '\\s+', ' ', 'g'), 120), l.relation
           from pg_locks l join pg_stat_activity a using (pid)
           where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.relation = any(%s) and l.granted
             and l.database = (select oid from pg_database where datname = current_database())""",
        (list(names),),
    )
    if not found:
        return "its blocker is gone by now"
    return "; ".join(
        f"pid {pid} ({user}, {application}, {state}) holds {names[relation]} with: {query}"
        for pid, user, application, state, query, relation in found[:5]
    )
