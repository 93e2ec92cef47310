"""Statistics for the planner: pg_restore leaves them to others, and without them the first queries are slow."""

from collections import deque
from concurrent.futures import wait
from contextlib import suppress
from typing import TYPE_CHECKING

from opsctl.background import in_background
from opsctl.errors import OpsctlError
from opsctl.postgres.server import Server, rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection


def gather_statistics(server: Server, database: str, *, sessions: int) -> list[str]:
    """ANALYZE everything; what was refused is returned, named: a foreign partition's server may be out of reach."""
    with server.connect(database) as connection:
        if sessions > 1 and _analyzed_by_several(server, database, _apart(connection), sessions):
            return []
        refusal = _analyze(connection, b"")
        if refusal is None:
            return []
        tables = rows(
            connection,
            """select textsend(quoted), quoted from pg_class c join pg_namespace n on n.oid = relnamespace,
                      format('%I.%I', nspname, relname) as quoted
               where relkind in ('r', 'm', 'p') and relpersistence <> 't' order by c.oid""",
        )
        refusals = ((name, _analyze(connection, quoted)) for quoted, name in tables)
        return [f"{name} has no statistics: {reason}" for name, reason in refusals if reason is not None]


def _analyze(connection: "Connection", table: bytes) -> str | None:
    """Gather the statistics of a table, or of all; why the server refused it. Raises where the connection is gone."""
    import psycopg

    try:
        connection.execute(b"analyze " + table)
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise
        return error.diag.message_primary or str(error)
    return None


def _apart(connection: "Connection") -> list[bytes]:
    """Tables that can be analyzed at the same time, the largest first; a partitioned one brings its partitions."""
    found = rows(
        connection,
        """select textsend(format('%I.%I', nspname, relname))
           from pg_class c join pg_namespace n on n.oid = relnamespace
           where relkind in ('r', 'm', 'p') and relpersistence <> 't' and not relispartition
           order by relkind = 'p' desc, pg_relation_size(c.oid) desc, c.oid""",
    )
    return [quoted for (quoted,) in found]


def _analyzed_by_several(server: Server, database: str, tables: list[bytes], sessions: int) -> bool:
    """Whether every table got its statistics; the server may have refused one, or the sessions."""
    left = deque(tables)

    def work() -> bool:
        with server.connect(database) as connection:
            while left:
                with suppress(IndexError):
                    if _analyze(connection, left.popleft()) is not None:
                        left.clear()
                        return False
        return True

    working = [in_background(work) for _ in range(min(sessions, len(tables)))]
    try:
        wait(working)
        return all(each.result() for each in working)
    except OpsctlError:
        return False
    finally:
        left.clear()
