"""How old the oldest transaction is that somebody may still need to see, and how near the counters are to their end."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from opsctl.postgres.server import mapped_errors, rows
from opsctl.postgres.session import require_statistics

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

Cause = Literal["query", "idle", "prepared", "slot", "walsender"]

# Vacuum's own horizon holds back nobody. A walsender without a slot has its standby's (hot_standby_feedback).
HOLDERS = """
    select case when backend_type = 'walsender' then 'walsender'
                when state like 'idle%' then 'idle' else 'query' end,
           coalesce(nullif(application_name, ''), usename, backend_type), coalesce(datname, ''), pid,
           greatest(age(backend_xid), age(backend_xmin))
    from pg_stat_activity
    where coalesce(backend_xid, backend_xmin) is not null and backend_type <> 'autovacuum worker'
      and pid <> pg_backend_pid()
    union all
    select 'prepared', gid, database, null, age(transaction) from pg_prepared_xacts
    union all
    select 'slot', slot_name, coalesce(database, ''), active_pid, greatest(age(xmin), age(catalog_xmin))
    from pg_replication_slots where coalesce(xmin, catalog_xmin) is not null
    order by 5 desc"""

AGES = """
    select datname, age(datfrozenxid), mxid_age(datminmxid), datallowconn from pg_database
    order by greatest(age(datfrozenxid), mxid_age(datminmxid)) desc, datname"""


@dataclass(frozen=True)
class Holder:
    """Who may still need row versions that ``age`` transactions have outdated since.

    ``name`` is an application, a prepared transaction's gid or a slot; ``pid`` its session, where there is one.
    """

    cause: Cause
    name: str
    database: str
    pid: int | None
    age: int


@dataclass(frozen=True)
class DatabaseAge:
    """The transactions and multixacts since the oldest that a database has not frozen."""

    database: str
    xids: int
    mxids: int
    allows_connections: bool

    @property
    def age(self) -> int:
        return max(self.xids, self.mxids)


@mapped_errors()
def read_holders(connection: "Connection") -> list[Holder]:
    """Everything that holds the horizon back, the oldest first. Raises NotPermitted."""
    require_statistics(connection)
    return [Holder(*row) for row in rows(connection, HOLDERS)]


@mapped_errors()
def read_ages(connection: "Connection") -> list[DatabaseAge]:
    """All databases of the server, the oldest first."""
    return [DatabaseAge(*row) for row in rows(connection, AGES)]
