"""Whether a database can be reached at all: what every other check of it depends on."""

import shlex
import time
from collections.abc import Hashable, Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from opsctl.checks.check import Check, Finding, Remedy, ServerCommand, Target, Thresholds
from opsctl.checks.scope import Scope
from opsctl.errors import ConfigurationError, DatabaseUnreachable, Refused

if TYPE_CHECKING:
    from opsctl.config import Config

LANE = "database"
NOT_CONFIGURED = "No database is configured."
PER_SERVER = "Looked at once for a server, in its first database."
LISTEN_SECONDS = 1.0
ROUND_TRIPS = 5

ENGINE = "engine"
"""What runs the services is one target, which they and the databases among them are within."""

HUNG = "Something listens there but does not answer: the server hangs, or its machine is out of memory or disk."
RESERVED = (
    "End sessions that do nothing, or raise max_connections. From PostgreSQL 16 on, reserved_connections and"
    " pg_use_reserved_connections keep a seat for the login of opsctl."
)


def databases(scope: Scope) -> Iterable[Target]:
    """Each within the service whose container it is in, if it is in one."""
    homes = {name: home_of(scope, name) for name in scope.databases}
    return [Target(name, within=(ENGINE, f"service:{home}") if home else ()) for name, home in homes.items()]


def home_of(scope: Scope, database: str) -> str | None:
    """The service whose container a database is in."""
    settings = scope.config.databases.get(scope.config.section_of(database) or "")
    return settings.service if settings else None


def servers(scope: Scope) -> Iterable[Target]:
    """The first database of each server: for what is true of a server as a whole, and told once."""
    first: dict[Hashable, str] = {}
    for name in scope.databases:
        first.setdefault(_server_of(scope.config, name), name)
    return [Target(name) for name in first.values()]


def _server_of(config: "Config", database: str) -> Hashable:
    """Where a database is, without asking anybody; one whose URL cannot be had counts as a server of its own."""
    from opsctl.postgres.server import Server

    try:
        service = config.database(database).service
        return (service, config.database_port(database)) if service else Server(config.database_url(database)).address
    except ConfigurationError:
        return (database,)


def check_latency(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.server import mapped_errors, one

    session, seconds = scope.session(target), []
    with mapped_errors():
        for _ in range(ROUND_TRIPS):
            started = time.monotonic()
            one(session, "select 1")
            seconds.append(time.monotonic() - started)
    return judge_latency(seconds, thresholds)


def judge_latency(seconds: Sequence[float], thresholds: Thresholds) -> Finding:
    """The median of some round trips: one that was late says nothing."""
    usual = median(seconds)
    status = thresholds.judge(usual)
    return Finding(
        status,
        f"A statement takes {usual * 1000:.1f} ms there and back.",
        value=round(usual, 4),
        code=None if status == "ok" else "latency",
        details={"fastest_seconds": round(min(seconds), 4), "slowest_seconds": round(max(seconds), 4)},
        remedy=None if status == "ok" else Remedy("Look at the network in between, and at the server's load."),
    )


def psql(*statements: str, database: str | None = None) -> ServerCommand:
    """The command that runs them one after the other, each in a transaction of its own, up to one that fails."""
    words = ["-v ON_ERROR_STOP=1"] if len(statements) > 1 else []
    for each in statements:
        words += ["-c", shlex.quote(each) if set(each) & set('"$`\\!') else f'"{each}"']
    return ServerCommand("psql", " ".join(words), database)


def terminate(pid: int) -> ServerCommand:
    return psql(f"select pg_terminate_backend({pid})")


def rollback_prepared(gid: str, database: str) -> ServerCommand:
    """Only in its own database can a prepared transaction be ended."""
    quoted = gid.replace("'", "''")
    return psql(f"rollback prepared '{quoted}'", database=database)


def check_connect(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    """Name, address, login, first answer: the first rung that breaks is the finding."""
    from opsctl.postgres import session  # noqa: F401  # what is loaded first is not the server's delay

    try:
        server = scope.server(target)
    except DatabaseUnreachable as error:  # the container it is in does not run, or Docker does not answer
        return Finding("crit", error.message, code=error.reason, remedy=Remedy(error.hint or "Start its container."))
    started = time.monotonic()
    try:
        connection = scope.session(target)
    except Refused as error:
        return Finding("unknown", error.message, code="pooler", remedy=Remedy(str(error.hint)))
    except DatabaseUnreachable as error:
        return _unreachable(scope, target, error)
    seconds = time.monotonic() - started
    version = connection.info.parameter_status("server_version") or ""
    status = thresholds.judge(seconds)
    return Finding(
        status,
        f"PostgreSQL {version.partition(' ')[0]} at {server.address} answered after {seconds * 1000:.0f} ms.",
        value=round(seconds, 3),
        code=None if status == "ok" else "slow",
        details={"address": server.address, "server_version": version},
        remedy=None if status == "ok" else Remedy("Look at the server's load, the network and name resolution."),
    )


def _unreachable(scope: Scope, target: str, error: DatabaseUnreachable) -> Finding:
    from opsctl.postgres.session import takes_connections

    server, code, message, hint = scope.server(target), error.reason, error.message, error.hint
    if code == "timeout" and takes_connections(server, seconds=LISTEN_SECONDS):
        code, message, hint = (
            "hung",
            f"{message} {HUNG}",
            "Look at the server's machine; restart the server if it hangs.",
        )
    if code == "too_many_clients":
        hint = RESERVED
    return Finding(
        "crit",
        message,
        code=code,
        details={"address": server.address},
        remedy=Remedy(hint or "Look at the server's log."),
    )


CHECKS = (
    Check(
        id="db.connect",
        title="the database answers",
        probe=check_connect,
        reads="resolves the host, connects, logs in and waits for the first answer, as an application would",
        why="Without a connection nothing else about the database can be known. An application waits for its connection"
        " too: 1 s is what a person notices.",
        fix="The finding says which rung broke: name resolution, the network, the login, or the server itself.",
        thresholds=Thresholds(warn=1),
        unit="s",
        targets=databases,
        not_configured=NOT_CONFIGURED,
        after=("docker",),
        explained_by=("service",),
        lane=LANE,
        timeout_seconds=7,
    ),
    Check(
        id="db.latency",
        title="the database answers fast",
        probe=check_latency,
        reads=f"the median of {ROUND_TRIPS} round trips of SELECT 1 in the session that is open already",
        why="A page that makes 30 statements waits 30 times. In one data centre it takes under 1 ms: 100 ms are another"
        " continent or a server at its limit, at 1 s nothing works any more.",
        fix="Look at the network in between, and at the server's load.",
        thresholds=Thresholds(warn=0.1, crit=1),
        unit="s",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
