"""Staging databases, the swap in one transaction, and the databases put aside.

Names: ``<database>__opsctl_<8 hex>`` is a staging database, ``<database>__before_<time>`` one put aside.
PostgreSQL cuts names at 63 bytes without a word, so a long name is shortened here, with a part of its hash to stay
apart.
"""

import hashlib
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from opsctl.errors import OpsctlError, QueryFailed, RestoreFailed
from opsctl.postgres.databases import drop_database
from opsctl.postgres.lock import is_locked
from opsctl.postgres.server import Server, mapped_errors, one, rows

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from opsctl.postgres.server import Connection

NAME_BYTES = 63
STAGING_SUFFIX = "__opsctl_[0-9a-f]{8}"
PREVIOUS_SUFFIX = r"__before_\d{8}T\d{6}Z"
SUFFIX_BYTES = len("__before_20260101T000000Z")
SWAP_SECONDS = 15
"""What bounds the swap's transaction. The rename itself waits up to 5 seconds for the other sessions to leave."""

TERMINATE_EVERY_SECONDS = 0.02


def cut(database: str) -> str:
    """The database's name, short enough for every suffix; unchanged when it is short already."""
    raw = database.encode()
    room = NAME_BYTES - SUFFIX_BYTES
    if len(raw) <= room:
        return database
    mark = f"~{hashlib.sha256(raw).hexdigest()[:6]}"
    return raw[: room - len(mark)].decode("utf-8", "ignore") + mark


def staging_name(database: str, random_hex: str) -> str:
    return f"{cut(database)}__opsctl_{random_hex}"


def previous_name(database: str, moment: datetime, taken: Sequence[str] = ()) -> str:
    """The name of what is put aside at ``moment``: later than all names ``taken``, because undo takes the latest."""
    prefix, form = f"{cut(database)}__before_", "%Y%m%dT%H%M%SZ"
    at = moment.astimezone(UTC)
    if taken:
        latest = datetime.strptime(max(taken).removeprefix(prefix), form).replace(tzinfo=UTC)
        at = max(at, latest + timedelta(seconds=1))
    return f"{prefix}{at:{form}}"


def put_aside_at(name: str) -> datetime:
    """When a database was put aside, from its name."""
    return datetime.strptime(name[-len("20260101T000000Z") :], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def is_ours(name: str) -> bool:
    """Whether a database is one that opsctl made: a staging database, or one put aside."""
    return re.search(f"({STAGING_SUFFIX}|{PREVIOUS_SUFFIX})$", name) is not None


def find_previous(connection: "Connection", database: str) -> list[str]:
    """The databases that swaps of ``database`` put aside, newest first."""
    return sorted(_matching(connection, database, PREVIOUS_SUFFIX), reverse=True)


def find_staging(connection: "Connection", database: str) -> list[str]:
    """Staging databases of ``database``; to whoever holds its lock they are leftovers."""
    return _matching(connection, database, STAGING_SUFFIX)


def remove_leftovers(server: Server, database: str) -> list[str]:
    """Drop what interrupted restores of ``database`` left behind; to be called by whoever holds its lock.

    The names of what was dropped; on a standby, and where the login may not drop it, nothing is.
    """
    if server.info.in_recovery:
        return []
    dropped = []
    with server.connect(server.maintenance_database) as connection:
        for name in find_staging(connection, database):
            with suppress(QueryFailed), mapped_errors():
                drop_database(connection, name)
                dropped.append(name)
    return dropped


@dataclass(frozen=True)
class Leftovers:
    """The staging databases of a database. While its lock is held they are somebody's work, else they are left over."""

    names: tuple[str, ...]
    bytes: int
    lock_is_held: bool


def find_leftovers(connection: "Connection", database: str) -> Leftovers:
    with mapped_errors():
        names = find_staging(connection, database)
        sizes = "select coalesce(sum(pg_database_size(oid)), 0)::bigint from pg_database where datname = any(%s)"
        total = one(connection, sizes, (names,))[0] if names else 0
        return Leftovers(tuple(sorted(names)), int(total), is_locked(connection, database))


def _matching(connection: "Connection", database: str, suffix: str) -> list[str]:
    pattern = re.compile(re.escape(cut(database)) + suffix)
    return [name for (name,) in rows(connection, "select datname from pg_database") if pattern.fullmatch(name)]


@dataclass(frozen=True)
class Swap:
    """Put ``incoming`` in the place of ``live``, which becomes ``previous`` (or was not there: ``None``)."""

    live: str
    incoming: str
    previous: str | None
    statements: Sequence["Composed"] = ()


@dataclass(frozen=True)
class Swapped:
    """A swap that happened; ``outage_seconds`` is how long clients could not connect."""

    outage_seconds: float
    incoming_oid: int
    old_oid: int | None


def execute_swap(server: Server, swap: Swap) -> Swapped:
    """Swap in one bounded transaction.

    The rename takes the lock that makes new logins wait, then waits for the other sessions to leave while a second
    session ends them. Nothing is barred or durable before its commit. Signals wait until it is over. Raises
    RestoreFailed when it did not happen; then everything is as before.
    """
    with server.connect(server.maintenance_database, application_name="opsctl swap", lasting=True) as connection:
        oids = dict(rows(connection, "select datname, oid from pg_database"))
        targets = [oids[name] for name in (swap.live, swap.incoming) if name in oids]
        with (
            server.connect(server.maintenance_database, application_name="opsctl terminate") as other,
            _signals_wait(),
            _terminating(other, targets),
        ):
            outage = _commit_swap(connection, swap, server, oids[swap.incoming])
            return Swapped(outage, oids[swap.incoming], oids.get(swap.live))


def _commit_swap(connection: "Connection", swap: Swap, server: Server, incoming_oid: int) -> float:
    import psycopg
    from psycopg.sql import SQL, Identifier

    live, incoming = Identifier(swap.live), Identifier(swap.incoming)
    started = time.monotonic()
    try:
        with connection.transaction():
            connection.execute(f"set local statement_timeout = '{SWAP_SECONDS}s'")
            if swap.previous is not None:
                previous = Identifier(swap.previous)
                connection.execute(SQL("alter database {} rename to {}").format(live, previous))
                connection.execute(SQL("alter database {} with allow_connections false").format(previous))
            for statement in swap.statements:
                connection.execute(statement)
            connection.execute(SQL("alter database {} with allow_connections true").format(incoming))
            connection.execute(SQL("alter database {} rename to {}").format(incoming, live))
    except psycopg.OperationalError as error:
        if error.sqlstate is None and _is_swapped(server, swap.live, incoming_oid):
            return time.monotonic() - started  # the commit arrived, its answer did not
        raise _not_swapped(error) from error
    except psycopg.Error as error:
        raise _not_swapped(error) from error
    return time.monotonic() - started


def _not_swapped(error: Exception) -> RestoreFailed:
    diagnosis = getattr(error, "diag", None)
    said = [getattr(diagnosis, name, None) for name in ("message_primary", "message_detail")]
    reason = ". ".join(each.rstrip(".") for each in said if each) or str(error).strip().rstrip(".")
    return RestoreFailed(
        f"The swap did not happen: {reason}.",
        hint="The live database is as it was. Stop what holds it open, and repeat.",
    )


def _is_swapped(server: Server, live: str, incoming_oid: int) -> bool:
    try:
        with server.connect(server.maintenance_database) as connection:
            return rows(connection, "select oid from pg_database where datname = %s", (live,)) == [(incoming_oid,)]
    except OpsctlError as error:
        raise RestoreFailed(
            f"The server was lost in the swap: {live} is the old database or the restored one. {error.message}",
            hint="When it answers again, look; `opsctl restore` and `opsctl restore --undo` go both ways.",
        ) from error


STANDBY_SECONDS = 10


def end_standby_sessions(replica: Server, *, live: str, incoming_oid: int, old_oid: int) -> str | None:
    """End the sessions of a standby that still read the old database, once the swap has arrived there.

    What went wrong, or ``None``. A session opened before the swap would otherwise go on reading the old data.
    """
    deadline = time.monotonic() + STANDBY_SECONDS
    try:
        with replica.connect(replica.maintenance_database) as connection:
            while rows(connection, "select oid from pg_database where datname = %s", (live,)) != [(incoming_oid,)]:
                if time.monotonic() > deadline:
                    return f"the standby {replica.address} has not replayed the swap after {STANDBY_SECONDS} s"
                time.sleep(0.1)
            while left := rows(connection, "select count(*) from pg_stat_activity where datid = %s", (old_oid,))[0][0]:
                if time.monotonic() > deadline:
                    break
                _terminate(connection, [old_oid])
                time.sleep(0.05)  # a session ends when it gets to it
    except OpsctlError as error:
        return f"the standby {replica.address}: {error.message}"
    return f"{left} sessions of the standby {replica.address} still read the old database" if left else None


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP take effect after the swap: it is over in a moment, one way or the other.

    Handlers, not a signal mask: the kernel hands a masked signal to another thread, and Python then runs the handler
    in the main thread all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda received, _frame: arrived.append(received)) for number in held}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


@contextmanager
def _terminating(connection: "Connection", database_oids: Sequence[int]) -> Iterator[None]:
    """End every session of these databases, again and again, as long as the context lasts."""
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            _terminate(connection, database_oids)
            done.wait(TERMINATE_EVERY_SECONDS)

    thread = threading.Thread(target=run, name="terminate", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _terminate(connection: "Connection", database_oids: Sequence[int]) -> None:
    import psycopg

    query = "select pid from pg_stat_activity where datid = any(%s) and pid <> pg_backend_pid()"
    try:
        for (pid,) in rows(connection, query, (list(database_oids),)):
            try:
                one(connection, "select pg_terminate_backend(%s)", (pid,))
            except psycopg.errors.InsufficientPrivilege:
                continue  # another's session: the rename waits for it, and says so when it does not leave
    except psycopg.OperationalError:
        return  # the server is gone: the swap's own session reports it
