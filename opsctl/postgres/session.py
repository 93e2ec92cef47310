"""A session to look around in: it reads only, waits for nobody, and no statement of it takes long."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from opsctl.errors import NotPermitted
from opsctl.postgres.server import Server, one

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
