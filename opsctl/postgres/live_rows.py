"""The rows of a database in use, counted for a comparison: briefly, and waiting for nobody."""

import time
from typing import TYPE_CHECKING

from opsctl.postgres.facts import LOCK_MILLISECONDS, PINNED, count_table, list_tables
from opsctl.postgres.server import rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

TABLE_SECONDS = 5
"""How long one table may be counted."""

ALL_SECONDS = 10
"""How long all of them together may be."""


def count_live(
    connection: "Connection", *, table_seconds: float = TABLE_SECONDS, all_seconds: float = ALL_SECONDS
) -> dict[tuple[str, str], int | None]:
    """Rows by (schema, table), small tables first; ``None`` where there was no time, the table is locked, or no right.

    Each table is counted at its own moment; one that goes meanwhile has no entry.
    """
    import psycopg

    connection.execute(PINNED)
    connection.execute(f"set lock_timeout = '{LOCK_MILLISECONDS}ms'; set default_transaction_read_only = on")
    pages = dict(rows(connection, "select oid, relpages from pg_class where relkind = 'r'"))
    end = time.monotonic() + all_seconds
    counted: dict[tuple[str, str], int | None] = {}
    for table in sorted(list_tables(connection), key=lambda table: pages.get(table.oid, 0)):
        counted[table.schema, table.name] = None
        left = min(table_seconds, end - time.monotonic())
        if left <= 0:
            continue
        try:
            with connection.transaction():  # the limit ends with it: what is asked next has its own time
                connection.execute(f"set local statement_timeout = {max(1, int(left * 1000))}")
                counted[table.schema, table.name] = count_table(connection, table, "counts").rows
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            del counted[table.schema, table.name]
        except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
            pass
    return counted
