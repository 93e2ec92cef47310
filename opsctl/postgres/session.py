"""A session to look around in: it reads only, waits for nobody, and no statement of it takes long."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from opsctl.errors import NotPermitted
from opsctl.postgres.server import Server, mapped_errors, one

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

STATEMENT_SECONDS = 4
CAREFUL = f"""set statement_timeout = '{STATEMENT_SECONDS}s'; set lock_timeout = '50ms';
              set default_transaction_read_only = on"""


@contextmanager
def examining(server: Server, *, connect_seconds: int) -> Iterator["Connection"]:
    """Such a session with the server's database; DatabaseUnreachable says in ``reason`` why there is none."""
    with server.connect(connect_seconds=connect_seconds) as connection:
        connection.execute(CAREFUL)
        yield connection


def require_statistics(connection: "Connection") -> None:
    """NotPermitted unless this login sees what other sessions do: else they look idle and everything fine."""
    if not one(connection, "select pg_has_role('pg_read_all_stats', 'usage')")[0]:
        raise NotPermitted(
            "This login does not see what the sessions of other users do.", hint="GRANT pg_monitor TO it."
        )


def read_value(connection: "Connection", query: str, *, seconds: float) -> Any:
    """The first value of a query's first row; None where there is no row. One statement, which cannot write."""
    with mapped_errors(), connection.transaction(force_rollback=True):
        connection.execute("set transaction read only")
        connection.execute("set local search_path to default")  # names mean what they mean to the login
        connection.execute(f"set local statement_timeout = {int(seconds * 1000)}")
        # Prepared: the server then takes one statement only, so that none ends the transaction.
        cursor = connection.execute(query.encode(), prepare=True)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def takes_connections(server: Server, *, seconds: float) -> bool:
    """Whether something listens at the server's address, PostgreSQL's answer or not: a hung server still listens."""
    with suppress(OSError, ValueError):
        if server.host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(seconds)
                probe.connect(f"{server.host}/.s.PGSQL.{server.port}")
                return True
        with socket.create_connection((server.parameters.get("hostaddr") or server.host, server.port), seconds):
            return True
    return False
