"""What the sessions of a server are doing: how many there are, and who waits for whom."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opsctl.postgres.server import mapped_errors, one, rows
from opsctl.postgres.session import require_statistics

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

QUERY_CHARACTERS = 200
LITERAL = re.compile(r"'(?:[^']|'')*(?:'|$)|(\$\w*\$).*?(?:\1|$)", re.DOTALL)
"""Strings in a query: they may be anybody's password or address, and nobody needs them to find the session."""

BLOCKED = f"""
    with waiting as (
        select pid, pg_blocking_pids(pid) as blockers,
               extract(epoch from clock_timestamp() - coalesce(l.waitstart, a.query_start))::float8 as seconds
        from pg_stat_activity a
        left join lateral (select min(waitstart) as waitstart from pg_locks l where l.pid = a.pid and not granted) l
          on true
        where wait_event_type = 'Lock' and cardinality(pg_blocking_pids(pid)) > 0)
    select w.pid, w.blockers, w.seconds, b.pid, coalesce(b.application_name, ''), coalesce(b.usename, ''),
           coalesce(b.datname, ''), coalesce(b.state, ''),
           extract(epoch from clock_timestamp() - coalesce(b.xact_start, b.query_start))::float8,
           coalesce(left(b.query, {QUERY_CHARACTERS}), '')
    from waiting w left join pg_stat_activity b on b.pid = any(w.blockers)"""

ACTIVITY = f"""
    select pid, coalesce(application_name, ''), coalesce(usename, ''), coalesce(datname, ''), coalesce(state, ''),
           extract(epoch from clock_timestamp() - coalesce(xact_start, query_start))::float8,
           coalesce(left(query, {QUERY_CHARACTERS}), ''), coalesce(wait_event_type || ': ' || wait_event, ''),
           coalesce(host(client_addr), '')
    from pg_stat_activity
    where pid <> pg_backend_pid() and backend_type = 'client backend'
    order by state = 'idle', xact_start nulls last, query_start limit %s"""

PREPARED = """
    select 0, '', p.owner, p.database, 'prepared', extract(epoch from clock_timestamp() - p.prepared)::float8, '', p.gid
    from pg_prepared_xacts p
    where exists (
        select from pg_locks own
        join pg_locks held on held.pid is null and held.granted and held.virtualtransaction = own.virtualtransaction
        join pg_locks wanted on wanted.pid = any(%s) and not wanted.granted
         and (wanted.locktype, wanted.database, wanted.relation, wanted.page, wanted.tuple, wanted.transactionid,
              wanted.classid, wanted.objid, wanted.objsubid)
             is not distinct from
             (held.locktype, held.database, held.relation, held.page, held.tuple, held.transactionid,
              held.classid, held.objid, held.objsubid)
        where own.pid is null and own.transactionid = p.transaction and own.granted)
    order by p.prepared"""
"""Prepared transactions that hold what these sessions wait for; their locks name no process."""


@dataclass(frozen=True)
class Connections:
    """Client sessions, and how many a login without privileges could have."""

    used: int
    available: int
    idle_in_transaction: int


@dataclass(frozen=True)
class Blocker:
    """A session others wait for; pid 0 is a prepared transaction, which has a ``gid``."""

    pid: int
    application_name: str
    user: str
    database: str
    state: str
    transaction_seconds: float | None
    query: str
    gid: str | None = None


@dataclass(frozen=True)
class Activity:
    """What one client session does."""

    pid: int
    application_name: str
    user: str
    database: str
    state: str
    transaction_seconds: float | None
    query: str
    waits_for: str
    client: str


@dataclass(frozen=True)
class Blocked:
    """``waiting`` sessions, the longest of them for ``longest_seconds``; the ``roots`` wait for nobody themselves."""

    waiting: int
    longest_seconds: float
    roots: tuple[Blocker, ...]


def without_literals(query: str) -> str:
    """A query's text without the strings in it, on one line."""
    return " ".join(LITERAL.sub("'…'", query).split())


def _blocker(row: tuple[Any, ...]) -> Blocker:
    pid, application_name, user, database, state, seconds, query = row
    return Blocker(pid, application_name, user, database, state, seconds, without_literals(query))


def _activity(row: tuple[Any, ...]) -> Activity:
    pid, application_name, user, database, state, seconds, query, waits_for, client = row
    shown = without_literals(query)
    return Activity(pid, application_name, user, database, state, seconds, shown, waits_for, client)


@mapped_errors()
def read_connections(connection: "Connection") -> Connections:
    used, available, idle = one(
        connection,
        """select count(*) filter (where backend_type = 'client backend'),
                  current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                    - coalesce(current_setting('reserved_connections', true)::int, 0),
                  count(*) filter (where state like 'idle in transaction%')
           from pg_stat_activity where pid <> pg_backend_pid()""",
    )
    return Connections(used, available, idle)


@mapped_errors()
def read_activity(connection: "Connection", limit: int) -> list[Activity]:
    """The client sessions of the whole server, those with the longest transactions first, at most ``limit``."""
    found = rows(connection, ACTIVITY, (limit,))
    return [_activity(row) for row in found]


@mapped_errors()
def read_blocked(connection: "Connection") -> Blocked:
    """Who waits for a lock, and for whom in the end. Raises NotPermitted."""
    require_statistics(connection)
    version = connection.info.server_version
    query = BLOCKED if version >= 140000 else BLOCKED.replace("min(waitstart)", "null::timestamptz")
    found = rows(connection, query)
    waiting = {row[0]: (row[1], row[2]) for row in found}
    of_prepared = [pid for pid, (pids, _) in waiting.items() if 0 in pids]
    prepared = [Blocker(*row) for row in rows(connection, PREPARED, (of_prepared,))] if of_prepared else []
    blockers = {row[3]: _blocker(row[3:]) for row in found if row[3] is not None}
    roots = (*prepared, *(blocker for pid, blocker in sorted(blockers.items()) if pid not in waiting))
    return Blocked(len(waiting), max((seconds for _, seconds in waiting.values()), default=0.0), roots)
