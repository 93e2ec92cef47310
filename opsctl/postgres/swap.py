"""Staging databases, the swap in one transaction, and the databases put aside.

Names: ``<database>__opsctl_<8 hex>`` is a staging database, ``<database>__before_<time>`` one put aside.
PostgreSQL cuts names at 63 bytes without a word, so a long name is shortened here, with a part of its hash to stay
apart.
"""

import csv
import hashlib
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from opsctl.errors import RestoreFailed
from opsctl.manifest import DatabaseProperties, Setting
from opsctl.postgres.server import Server, one, rows

if TYPE_CHECKING:
    from psycopg.sql import Composed, Identifier

    from opsctl.postgres.server import Connection

NAME_BYTES = 63
STAGING_SUFFIX = "__opsctl_[0-9a-f]{8}"
PREVIOUS_SUFFIX = r"__before_\d{8}T\d{6}Z"
SUFFIX_BYTES = len("__before_20260101T000000Z")
SWAP_SECONDS = 15
"""What bounds the swap's transaction. The rename itself waits up to 5 seconds for the other sessions to leave."""

TERMINATE_EVERY_SECONDS = 0.02
LIST_SETTINGS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
"""Settings whose value is a list of quoted names: each name is quoted apart (pg_dump's variable_is_guc_list_quote)."""


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


def is_ours(name: str) -> bool:
    """Whether a database is one that opsctl made: a staging database, or one put aside."""
    return re.search(f"({STAGING_SUFFIX}|{PREVIOUS_SUFFIX})$", name) is not None


def find_previous(connection: "Connection", database: str) -> list[str]:
    """The databases that swaps of ``database`` put aside, newest first."""
    return sorted(_matching(connection, database, PREVIOUS_SUFFIX), reverse=True)


def find_staging(connection: "Connection", database: str) -> list[str]:
    """Staging databases of ``database``; to whoever holds its lock they are leftovers."""
    return _matching(connection, database, STAGING_SUFFIX)


def _matching(connection: "Connection", database: str, suffix: str) -> list[str]:
    pattern = re.compile(re.escape(cut(database)) + suffix)
    return [name for (name,) in rows(connection, "select datname from pg_database") if pattern.fullmatch(name)]


def create_staging(connection: "Connection", name: str, properties: DatabaseProperties) -> None:
    """An empty database with the encoding, locale and owner of the backup, closed to everybody but its owner."""
    from psycopg.sql import SQL, Identifier, Literal

    options = [
        SQL("template template0"),
        SQL("encoding {}").format(Literal(properties.encoding)),
        SQL("lc_collate {}").format(Literal(properties.collate)),
        SQL("lc_ctype {}").format(Literal(properties.ctype)),
        SQL("owner {}").format(Identifier(properties.owner)),
    ]
    version = connection.info.server_version
    if properties.locale_provider != "libc" and version >= 150000:
        options.append(SQL("locale_provider {}").format(SQL(properties.locale_provider)))
        keyword = "builtin_locale" if properties.locale_provider == "builtin" else "icu_locale"
        options.append(SQL(f"{keyword} {{}}").format(Literal(properties.locale)))
    connection.execute(SQL("create database {} {}").format(Identifier(name), SQL(" ").join(options)))
    connection.execute(SQL("revoke connect, temporary on database {} from public").format(Identifier(name)))


def drop_database(connection: "Connection", name: str) -> None:
    """Drop a database and end its sessions; none of that name is fine."""
    from psycopg.sql import SQL, Identifier

    connection.execute(SQL("drop database if exists {} with (force)").format(Identifier(name)))


def apply_properties(connection: "Connection", name: str, properties: DatabaseProperties) -> list[str]:
    """Give a database its comment, connection limit and settings; what the login may not set is returned, named."""
    from psycopg.sql import SQL, Identifier, Literal

    database = Identifier(name)
    refused = []
    statements: list[tuple[str, Composed]] = [
        ("comment", SQL("comment on database {} is {}").format(database, Literal(properties.comment))),
        (
            "connection limit",
            SQL("alter database {} connection limit {}").format(database, Literal(properties.connection_limit)),
        ),
    ]
    for setting in properties.settings:
        of_role = f" of role {setting.role}" if setting.role else ""
        statements.append((f"setting {setting.name}{of_role}", _set_statement(database, setting)))
    for what, statement in statements:
        reason = _refusal(connection, statement)
        if reason:
            refused.append(f"{what} was not carried over: {reason}")
    return refused


def _set_statement(database: "Identifier", setting: Setting) -> "Composed":
    from psycopg.sql import SQL, Identifier, Literal

    values = [setting.value]
    if setting.name in LIST_SETTINGS:
        values = next(csv.reader([setting.value], skipinitialspace=True), [""])
    name = SQL(".").join(Identifier(part) for part in setting.name.split("."))
    value = SQL(", ").join(Literal(each) for each in values)
    if setting.role is None:
        return SQL("alter database {} set {} to {}").format(database, name, value)
    return SQL("alter role {} in database {} set {} to {}").format(Identifier(setting.role), database, name, value)


def _refusal(connection: "Connection", statement: "Composed") -> str | None:
    import psycopg

    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.Error as error:
        return error.diag.message_primary or str(error)
    return None


def grants(connection: "Connection", name: str, properties: DatabaseProperties) -> list["Composed"]:
    """The statements that give database ``name`` the recorded grants, for the swap's transaction."""
    from psycopg.sql import SQL, Identifier

    database = Identifier(name)
    if properties.acl is None:
        return [SQL("grant connect, temporary on database {} to public").format(database)]
    statements: list[Composed] = [SQL("revoke all on database {} from public").format(database)]
    granted = rows(
        connection,
        """select case when grantee = 0 then null else pg_get_userbyid(grantee) end, privilege_type, is_grantable
           from aclexplode(%s::aclitem[])""",
        (list(properties.acl),),
    )
    for grantee, privilege, grantable in granted:
        to = SQL("public") if grantee is None else Identifier(grantee)
        option = SQL(" with grant option") if grantable else SQL("")
        statements.append(SQL("grant {} on database {} to {}{}").format(SQL(privilege), database, to, option))
    return statements


@dataclass(frozen=True)
class Swap:
    """Put ``incoming`` in the place of ``live``, which becomes ``previous`` (or was not there: ``None``)."""

    live: str
    incoming: str
    previous: str | None
    statements: Sequence["Composed"] = ()


def execute_swap(server: Server, swap: Swap) -> float:
    """One bounded transaction; returns the seconds in which clients could not connect.

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
            return _commit_swap(connection, swap, server, oids[swap.incoming])


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
    primary = getattr(getattr(error, "diag", None), "message_primary", None) or str(error).strip()
    return RestoreFailed(
        f"The swap did not happen: {primary}.",
        hint="The live database is as it was. Stop what holds it open, and repeat.",
    )


def _is_swapped(server: Server, live: str, incoming_oid: int) -> bool:
    with server.connect(server.maintenance_database) as connection:
        return rows(connection, "select oid from pg_database where datname = %s", (live,)) == [(incoming_oid,)]


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
