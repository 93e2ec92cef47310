"""Transactions that are open: in sessions, and prepared ones that no session holds; and what limits them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opsctl.postgres.activity import QUERY_CHARACTERS, without_literals
from opsctl.postgres.server import mapped_errors, rows
from opsctl.postgres.session import require_statistics

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

MEANT_TO_BE_LONG = "^(pg_dump|pg_dumpall|pg_restore|pg_basebackup|opsctl.*)$"
"""Names of programs whose transactions last as long as the database is large."""

OPEN = f"""
    select pid, coalesce(application_name, ''), coalesce(usename, ''), coalesce(datname, ''), coalesce(state, ''),
           extract(epoch from clock_timestamp() - xact_start)::float8,
           extract(epoch from clock_timestamp() - coalesce(state_change, xact_start))::float8,
           coalesce(left(query, {QUERY_CHARACTERS}), '')
    from pg_stat_activity
    where backend_type = 'client backend' and xact_start is not null and pid <> pg_backend_pid()
      and coalesce(application_name, '') !~ '{MEANT_TO_BE_LONG}'
    order by xact_start"""

PREPARED = """
    select gid, owner, database, extract(epoch from clock_timestamp() - prepared)::float8
    from pg_prepared_xacts order by prepared"""

LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout", "transaction_timeout")


@dataclass(frozen=True)
class OpenTransaction:
    """A session in a transaction that is ``seconds`` old; it is in its ``state`` for ``state_seconds``."""

    pid: int
    application_name: str
    user: str
    database: str
    state: str
    seconds: float
    state_seconds: float
    query: str


@dataclass(frozen=True)
class PreparedTransaction:
    """A transaction between PREPARE TRANSACTION and its commit."""

    gid: str
    owner: str
    database: str
    seconds: float


@dataclass(frozen=True)
class Limits:
    """Timeouts in milliseconds, 0 for none, as a new session of this login has them; and whose differ.

    ``others`` has settings (``statement_timeout=30s``) by role or database.
    """

    own: dict[str, int]
    others: dict[str, tuple[str, ...]]


def _open_transaction(row: tuple[Any, ...]) -> OpenTransaction:
    pid, application_name, user, database, state, seconds, state_seconds, query = row
    masked = without_literals(query)
    return OpenTransaction(pid, application_name, user, database, state, seconds, state_seconds, masked)


@mapped_errors()
def read_open_transactions(connection: "Connection") -> list[OpenTransaction]:
    """Those of all databases, the oldest first, but for those of backups and restores. Raises NotPermitted."""
    require_statistics(connection)
    return [_open_transaction(row) for row in rows(connection, OPEN)]


@mapped_errors()
def read_prepared_transactions(connection: "Connection") -> list[PreparedTransaction]:
    """Those of all databases, the oldest first."""
    return [PreparedTransaction(*row) for row in rows(connection, PREPARED)]


@mapped_errors()
def read_limits(connection: "Connection") -> Limits:
    """The timeouts; this session has lifted its own, so what a RESET would bring is read."""
    own = rows(connection, "select name, reset_val::bigint from pg_settings where name = any(%s)", [list(LIMITS)])
    others = rows(
        connection,
        """select coalesce(nullif(concat_ws(' in ', 'role ' || rolname, 'database ' || datname), ''), 'every role'),
                  array_agg(setting order by setting)
           from pg_db_role_setting s left join pg_roles r on r.oid = setrole
                left join pg_database d on d.oid = setdatabase, lateral unnest(setconfig) as setting
           where split_part(setting, '=', 1) = any(%s) group by 1 order by 1""",
        [list(LIMITS)],
    )
    return Limits(dict(own), {whose: tuple(settings) for whose, settings in others})
