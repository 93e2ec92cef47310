"""One run at a time per database: an advisory lock on the server, and a file lock on this host.

The advisory lock works across hosts and goes with its holder. It lives in the maintenance database, because advisory
locks are per database and because a session inside a database stops it from being renamed. The file lock names the
holder exactly (process, host, start) for runs of the same host. Where it cannot be made, because the state folder is
full or read-only, the server's lock is enough: it is the one that keeps runs apart.
"""

import fcntl
import json
import os
import re
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.errors import LockHeld
from opsctl.postgres.server import Server, one, rows
from opsctl.times import format_time

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

LOCK_CLASS = int.from_bytes(b"opsc")
"""First half of the advisory lock's key; the second is the database's name as CRC-32."""


class DatabaseLock:
    """A lock that is held; ``is_held`` asks the server again."""

    def __init__(self, connection: "Connection", database: str) -> None:
        self._connection = connection
        self._key = (LOCK_CLASS, _signed_crc(database))

    def is_held(self) -> bool:
        """Whether the session with the advisory lock still lives and holds it."""
        import psycopg

        held = "select count(*) from pg_locks where locktype = 'advisory' and granted and pid = pg_backend_pid()"
        try:
            return bool(one(self._connection, held)[0])
        except psycopg.Error:
            return False


@contextmanager
def database_lock(
    server: Server, database: str, *, command: str, state_path: Path, now: datetime
) -> Iterator[DatabaseLock]:
    """Hold the lock of ``database``, which need not exist; LockHeld names whoever holds it already."""
    holder = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "started_at": format_time(now)}
    name = f"opsctl {command} {holder['host']}:{holder['pid']}"
    with (
        _file_lock(state_path, server, database, holder),
        server.connect(server.maintenance_database, application_name=name, lasting=True) as connection,
    ):
        lock = DatabaseLock(connection, database)
        if not one(connection, "select pg_try_advisory_lock(%s, %s)", lock._key)[0]:  # noqa: SLF001
            raise LockHeld(
                f"Another opsctl run holds the lock of {database!r}: {_holder_on_server(connection, database)}.",
                hint="Wait for it to end; the lock goes with it.",
            )
        yield lock


@contextmanager
def _file_lock(state_path: Path, server: Server, database: str, holder: dict[str, object]) -> Iterator[None]:
    path = state_path / "locks" / f"{_file_name(server, database)}.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld(
                f"Another opsctl run holds the lock of {database!r}: {_holder_in_file(path)}.",
                hint="Wait for it to end; the lock goes with it.",
            ) from None
        _write(descriptor, json.dumps(holder).encode())
        yield
        _write(descriptor, b"")
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    with suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)


def _file_name(server: Server, database: str) -> str:
    """One file per server and database: the same name on two servers are two databases."""
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", database)[:60]
    return f"{readable}-{zlib.crc32(f'{server.address}/{database}'.encode()):08x}"


def _holder_in_file(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"{holder['command']}, pid {holder['pid']} on {holder['host']}, since {holder['started_at']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its holder is just starting"


def _holder_on_server(connection: "Connection", database: str) -> str:
    found = rows(
        connection,
        """select a.application_name, coalesce(host(a.client_addr), 'a local socket'), a.backend_start
           from pg_locks l join pg_stat_activity a using (pid)
           where l.locktype = 'advisory' and l.granted and l.classid = %s and l.objid::bigint = %s""",
        (LOCK_CLASS, zlib.crc32(database.encode())),
    )
    if not found:
        return "a session this login may not see"
    name, address, started_at = found[0]
    return f"{name or 'a session of another role'}, from {address}, since {format_time(started_at)}"


def is_locked(connection: "Connection", database: str) -> bool:
    """Whether a session of this server holds the lock of ``database``."""
    query = """select count(*) from pg_locks
               where locktype = 'advisory' and granted and classid = %s and objid::bigint = %s"""
    return bool(one(connection, query, (LOCK_CLASS, zlib.crc32(database.encode())))[0])


def _signed_crc(text: str) -> int:
    """CRC-32 as PostgreSQL's signed ``int``."""
    value = zlib.crc32(text.encode())
    return value - (1 << 32) if value >= 1 << 31 else value
