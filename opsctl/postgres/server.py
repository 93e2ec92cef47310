"""One PostgreSQL server as one login sees it. The only module that opens connections and maps psycopg's errors."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from opsctl.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    NotPermitted,
    OpsctlError,
    QueryFailed,
    Refused,
)

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composable, Composed

    Connection = psycopg.Connection[tuple[Any, ...]]

MAINTENANCE_DATABASES = ("postgres", "template1")
SECRET_PARAMETERS = ("password", "sslpassword", "oauth_client_secret")

PATIENCE = 20
"""How often a statement is tried again that a timeout has ended before the timeouts are lifted."""

IDLE_SESSION_TIMEOUT_SINCE = 140000

NO_TIMEOUTS = (
    ("statement_timeout", 0),
    ("lock_timeout", 0),
    ("idle_in_transaction_session_timeout", 0),
    ("idle_session_timeout", IDLE_SESSION_TIMEOUT_SINCE),
    ("transaction_timeout", 170000),
)
"""Settings a role may carry that would end a long session, with the first server version that has each."""

DURABLE = """select set_config('synchronous_commit', 'local', false)
    where current_setting('synchronous_commit') = 'off'"""
"""What we commit is on the disk, and with it all that others have loaded before: WAL is written in one order."""

# A sign in libpq's reason → a word for it, and what a person does about it. Order matters: the first that fits.
CONNECT_REASONS = (
    ("could not translate host name", "dns", "Check the host's spelling and DNS."),
    ("failed to resolve host", "dns", "Check the host's spelling and DNS."),
    ("Connection refused", "refused", "Is the server running, and is this its address and port?"),
    ("No such file or directory", "refused", "Is the server running, and is this the folder of its socket?"),
    ("timeout expired", "timeout", "Nothing answers there: check the address, the firewall and the server's load."),
    (
        "password authentication failed",
        "authentication",
        "Check user and password; in a URL the password must be percent-encoded.",
    ),
    (
        "no password supplied",
        "authentication",
        "Put the password into the URL, password_env, password_file, password_command or a .pgpass file.",
    ),
    ("no pg_hba.conf entry", "authentication", "The server's pg_hba.conf does not let this user in from this host."),
    ("does not exist", "not_found", "Check the name; `psql -l` shows the databases of a server, `\\du` its roles."),
    ("starting up", "starting_up", "The server is starting or recovering; try again in a moment."),
    ("not yet accepting connections", "starting_up", "The server is starting or recovering; try again in a moment."),
    ("in recovery mode", "starting_up", "The server is recovering from a crash; try again in a moment."),
    ("shutting down", "shutting_down", "The server is shutting down."),
    ("too many c", "too_many_clients", "All connections are taken: end idle ones, or raise the limit."),
    ("remaining connection slots", "too_many_clients", "All connections are taken: end idle ones, or raise the limit."),
    (
        "not currently accepting connections",
        "not_accepting",
        "ALTER DATABASE … ALLOW_CONNECTIONS true lets clients in again.",
    ),
    ("server does not support SSL", "tls", "The server has no TLS: use sslmode=prefer, or give it a certificate."),
    ("certificate", "tls", "Check sslmode and sslrootcert against the server's certificate."),
)


@dataclass(frozen=True)
class ServerInfo:
    """What the server says of itself and of the login."""

    version: str
    version_num: int
    user: str
    is_superuser: bool
    may_create_databases: bool
    in_recovery: bool
    system_identifier: str | None

    @property
    def major(self) -> int:
        return self.version_num // 10000


class Server:
    """A server, and the one database on it that is looked after.

    ``url`` is a libpq URL; ``database`` and ``password`` win over what is in it, and ``address``, an IP address and a
    port, over its host: that is then only a name, for TLS and for people. No connection is opened before it is needed.
    """

    def __init__(
        self,
        url: str,
        *,
        database: str | None = None,
        password: str | None = None,
        maintenance_database: str | None = None,
        address: tuple[str, int] | None = None,
    ) -> None:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            params = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
        except ProgrammingError as error:
            # libpq's own text may quote a part of the password; only its word on an unknown parameter is safe.
            is_safe = "invalid URI query parameter" in str(error) and "@" not in url.partition("?")[2]
            reason = str(error).strip() if is_safe else "libpq cannot read it"
            raise ConfigurationError(
                f"The database URL is not valid: {reason}.", hint="postgresql://user@host:5432/database"
            ) from None
        if password is not None:
            params["password"] = password
        if database is not None:
            params["dbname"] = database
        if address is not None:
            params |= {"hostaddr": address[0], "port": str(address[1])}
            if not _is_one_name(params.get("host", "")):
                params.pop("host", None)
        self.parameters: Mapping[str, str] = params
        self._defaults = _libpq_defaults()
        self.database = params.get("dbname") or self._defaults.get("dbname") or params.get("user") or "postgres"
        self._maintenance_database = maintenance_database
        self._open: WeakSet[Connection] = WeakSet()

    def __repr__(self) -> str:
        return f"<Server {self.address}>"

    @property
    def address(self) -> str:
        """``host:port`` or the socket's folder; never the user's password."""
        return f"{self.host}:{self.port}"

    @property
    def host(self) -> str:
        """The host's name or address, or the socket's folder."""
        given = self.parameters.get("host") or self.parameters.get("hostaddr")
        return given or self._defaults.get("host") or "localhost"

    @property
    def is_here(self) -> bool:
        """Whether it is on this host, as far as its address tells."""
        return self.host.startswith("/") or self.host in {"localhost", "127.0.0.1", "::1"}

    @property
    def port(self) -> str:
        return self.parameters.get("port") or self._defaults.get("port") or "5432"

    @property
    def password(self) -> str | None:
        return self.parameters.get("password") or self._defaults.get("password")

    def public_conninfo(self, database: str | None = None, *, is_complete: bool = False) -> str:
        """A connection string without anything secret: what may stand in an argument list.

        ``is_complete`` adds what libpq takes from this environment, for a shell that may have another one.
        """
        from psycopg.conninfo import make_conninfo

        public = {key: value for key, value in self.parameters.items() if key not in SECRET_PARAMETERS}
        if is_complete:
            public = {key: self._defaults[key] for key in ("host", "port", "user") if key in self._defaults} | public
        return make_conninfo(**{**public, "dbname": database or self.database})

    def public_conninfo_for_loading(self, database: str, *, in_one_transaction: bool) -> str:
        """The same for a program that loads a dump.

        What the login says of idle sessions ends none that waits: for its turn, or for the next statement of a plain
        dump that comes slowly. The programs lift the other timeouts themselves. Of many transactions none waits for
        the disk or a standby: one that we commit afterwards does, for all of them.
        """
        from psycopg.conninfo import make_conninfo

        given = self.parameters.get("options") or self._defaults.get("options")
        options = [given] if given else []
        if self.info.version_num >= IDLE_SESSION_TIMEOUT_SINCE:
            options.append("-c idle_session_timeout=0")
        if not in_one_transaction:
            options.append("-c synchronous_commit=off")
        return make_conninfo(self.public_conninfo(database), **({"options": " ".join(options)} if options else {}))

    @contextmanager
    def connect(
        self,
        database: str | None = None,
        *,
        application_name: str = "opsctl",
        lasting: bool = False,
        connect_seconds: int | None = None,
    ) -> Iterator["Connection"]:
        """An autocommit session: no timeouts of the login, durable commits, names resolved in pg_catalog only.

        ``lasting`` asks the network to notice a dead peer early; ``connect_seconds`` wins over the URL's timeout.
        Raises DatabaseUnreachable when there is no connection or it is lost, QueryFailed when the server refuses a
        statement.
        """
        import psycopg

        wanted = database or self.database
        params: dict[str, Any] = {"connect_timeout": "10", **self.parameters, "dbname": wanted}
        params |= {"application_name": application_name[:63], "client_encoding": "UTF8"}
        if connect_seconds is not None:
            params["connect_timeout"] = connect_seconds
        if lasting:
            params |= {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        try:
            connection = _opened(params)
        except psycopg.Error as error:
            raise self._unreachable(wanted, error) from None
        self._open.add(connection)
        try:
            with mapped_errors(), connection:
                _prepare(connection)
                yield connection
        finally:
            self._open.discard(connection)
            connection.close()

    def abandon(self) -> None:
        """Break every connection there is, from another thread: whoever waits for a server that hangs waits no more."""
        for connection in list(self._open):
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    def _unreachable(self, database: str, error: Exception) -> DatabaseUnreachable:
        reason = _connect_reason(str(error))
        word, hint = next(((word, hint) for sign, word, hint in CONNECT_REASONS if sign in reason), ("other", None))
        user = self.parameters.get("user") or self._defaults.get("user")
        login = f" as {user}" if user else ""
        message = f"Cannot connect to {database!r} at {self.address}{login}: {reason}."
        return DatabaseUnreachable(message, hint=hint, reason=word)

    @cached_property
    def maintenance_database(self) -> str:
        """The database to be in while another one is locked or renamed: ``postgres``, else ``template1``."""
        candidates = [self._maintenance_database] if self._maintenance_database else list(MAINTENANCE_DATABASES)
        refusals: list[OpsctlError] = []
        for name in candidates:
            try:
                with self.connect(name):
                    return name
            except DatabaseUnreachable as error:
                if error.hint is not None and 'database "' not in error.message:
                    raise  # the host, the password: no other database would do better
                refusals.append(error)
        raise DatabaseUnreachable(
            refusals[0].message, hint="Set maintenance_database to a database this login may connect to."
        )

    @cached_property
    def info(self) -> ServerInfo:
        """Version and rights, asked once, of the maintenance database: the database itself may be gone."""
        with self.connect(self.maintenance_database) as connection:
            row = one(
                connection,
                """select current_setting('server_version'), current_setting('server_version_num')::int, current_user,
                          rolsuper, rolcreatedb or rolsuper, pg_is_in_recovery()
                   from pg_roles where rolname = current_user""",
            )
            identifier = maybe(connection, "select system_identifier::text from pg_control_system()")
        version, number, user, superuser, creates, standby = row
        return ServerInfo(version, number, user, superuser, creates, standby, identifier)

    def now(self) -> datetime:
        """The server's clock."""
        with self.connect(self.maintenance_database) as connection:
            moment: datetime = one(connection, "select clock_timestamp()")[0]
            return moment


def _opened(params: dict[str, Any]) -> "Connection":
    """A connection that speaks UTF-8, or the database's own bytes where the server cannot convert those."""
    import psycopg

    try:
        return _session_class().connect(**params, autocommit=True)
    except psycopg.OperationalError as error:
        if "conversion between UTF8 and" not in str(error):
            raise
    return _session_class().connect(**{**params, "client_encoding": "SQL_ASCII"}, autocommit=True)


@cache
def _session_class() -> "type[Connection]":
    import psycopg
    from psycopg.sql import Composable

    class Session(psycopg.Connection[tuple[Any, ...]]):
        """Statements are UTF-8 under SQL_ASCII too, where psycopg by itself takes ASCII only."""

        def execute(self, query: Any, params: Any = None, **options: Any) -> "psycopg.Cursor[tuple[Any, ...]]":
            if self.info.encoding == "ascii" and not isinstance(query, bytes):
                query = query.as_bytes(None) if isinstance(query, Composable) else query.encode()
            return super().execute(query, params, **options)

    return Session


def _is_one_name(host: str) -> bool:
    return bool(host) and not host.startswith("/") and "," not in host


def _libpq_defaults() -> dict[str, str]:
    """What libpq itself takes for parameters that are not given: the ``PG*`` variables, then its own defaults."""
    from psycopg.pq import Conninfo

    options = Conninfo.get_defaults()
    return {option.keyword.decode(): option.val.decode() for option in options if option.val}


def list_databases(server: Server) -> list[str]:
    """The databases of a server that hold somebody's data: no templates, none closed to everybody."""
    query = "select datname from pg_database where datallowconn and not datistemplate order by datname"
    with server.connect(server.maintenance_database) as connection:
        return [row[0] for row in rows(connection, query)]


def _prepare(connection: "Connection") -> None:
    """Make the session ours; before anything is set, make sure that it is a session and not a pooler's."""
    (pid,) = _patiently(connection, "select pg_backend_pid()").fetchone() or (None,)
    if pid != connection.info.backend_pid:
        raise Refused(
            "A connection pooler (PgBouncer or the like) stands between opsctl and the server: settings and locks"
            " would reach other clients' sessions.",
            hint="Set direct_url to the server's own address; url stays as it is.",
        )
    for kind in ("text", "name", "varchar", "bpchar"):
        connection.adapters.register_loader(kind, _text_loader())
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        connection.execute("set client_encoding = 'SQL_ASCII'")  # else the server insists on valid UTF-8
    version = connection.info.server_version
    settings = [f"set {name} = 0" for name, since in NO_TIMEOUTS if version >= since]
    _patiently(connection, "; ".join(["set search_path = pg_catalog", *settings, DURABLE]))


def _patiently(connection: "Connection", statement: str) -> "psycopg.Cursor[tuple[Any, ...]]":
    """Run what comes before the timeouts are lifted: on a busy machine a short one of the login may end even that."""
    from psycopg.errors import QueryCanceled

    for _ in range(PATIENCE):
        with suppress(QueryCanceled):
            return connection.execute(statement)
    return connection.execute(statement)


@cache
def _text_loader() -> "type[psycopg.adapt.Loader]":
    """Text of a SQL_ASCII database may be any bytes: what is no UTF-8 is shown escaped instead of failing."""
    from psycopg.adapt import Loader

    class LenientText(Loader):
        def load(self, data: "psycopg.abc.Buffer") -> str:
            return bytes(data).decode("utf-8", "backslashreplace")

    return LenientText


def _connect_reason(text: str) -> str:
    """The last word of libpq, without the address it repeats."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    relevant = [line for line in lines if "failed: " in line or "failed to resolve" in line] or lines[-1:] or [text]
    reason = relevant[-1].rpartition("failed: ")[2]
    for word in ("FATAL:", "fatal:", "error:"):
        reason = reason.removeprefix(word).strip()
    return reason.rstrip(".")


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Errors of psycopg as ours: a lost connection is DatabaseUnreachable, a refused statement QueryFailed."""
    import psycopg

    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        raise QueryFailed(f"The server ended a statement: {_primary(error)}.") from error
    except (psycopg.errors.AdminShutdown, psycopg.errors.CrashShutdown) as error:
        raise DatabaseUnreachable(
            f"The server ended the session: {_primary(error)}.", hint="Is the server restarting? Try again."
        ) from error
    except psycopg.OperationalError as error:
        if error.sqlstate is None:
            raise DatabaseUnreachable(
                f"The connection to the server was lost: {_primary(error)}.",
                hint="Is the server restarting? Try again.",
            ) from error
        raise QueryFailed(
            f"The server refused a statement: {_primary(error)}.", hint=error.diag.message_hint
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotPermitted(
            f"The login may not do that: {_primary(error)}.",
            hint=error.diag.message_hint or "Grant the right, or use a login that has it.",
        ) from error
    except psycopg.Error as error:
        raise QueryFailed(
            f"The server refused a statement: {_primary(error)}.", hint=error.diag.message_hint
        ) from error


def _primary(error: Exception) -> str:
    diagnosis = getattr(error, "diag", None)
    text = getattr(diagnosis, "message_primary", None) or str(error).strip().partition("\n")[0]
    return str(text).rstrip(".")


def rows(
    connection: "Connection", query: "str | bytes | Composable", parameters: Sequence[Any] | Mapping[str, Any] = ()
) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return connection.execute(query, parameters or None).fetchall()  # type: ignore[arg-type]


def one(
    connection: "Connection", query: "str | bytes | Composable", parameters: Sequence[Any] | Mapping[str, Any] = ()
) -> tuple[Any, ...]:
    """The one row of a query that always has one."""
    return rows(connection, query, parameters)[0]


def attempt(connection: "Connection", statement: "str | Composed", *, undo: bool = False) -> str | None:
    """Run a statement in a transaction of its own; why the server refused it, or ``None``. ``undo`` only tries."""
    import psycopg

    try:
        with connection.transaction(force_rollback=undo):
            connection.execute(statement.encode() if isinstance(statement, str) else statement)
    except psycopg.Error as error:
        return error.diag.message_primary or str(error)
    return None


def maybe(connection: "Connection", query: str, parameters: Sequence[Any] = ()) -> Any:
    """The value of a query, or ``None`` when there is no row or this login may not ask."""
    import psycopg

    try:
        with connection.transaction():
            found = rows(connection, query, parameters)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction):
        return None
    return found[0][0] if found else None
