"""The sessions of a server: are there too many, does one stand in the way of others."""

from typing import TYPE_CHECKING

from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, PER_SERVER, rollback_prepared, servers, terminate
from opsctl.checks.scope import Scope

if TYPE_CHECKING:
    from opsctl.postgres.activity import Blocked, Blocker, Connections

SESSION_GRANT = "pg_monitor, granted to the login: GRANT pg_monitor TO …"


def check_connections(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.activity import read_connections

    return judge_connections(read_connections(scope.session(target)), thresholds)


def judge_connections(found: "Connections", thresholds: Thresholds) -> Finding:
    percent = 100 * found.used / max(found.available, 1)
    status = thresholds.judge(percent)
    return Finding(
        status,
        f"{found.used} of {found.available} connections are in use ({percent:.0f} %).",
        value=round(percent, 1),
        code=None if status == "ok" else "connections",
        details={"used": found.used, "available": found.available, "idle_in_transaction": found.idle_in_transaction},
    )


def check_blocked(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.activity import read_blocked

    return judge_blocked(read_blocked(scope.session(target)), thresholds)


def judge_blocked(found: "Blocked", thresholds: Thresholds) -> Finding:
    """Sessions that wait for a lock, and the one at the root of it."""
    if not found.waiting:
        return Finding("ok", "No session waits for another.", value=0)
    status = thresholds.judge(found.longest_seconds)
    waiting = f"{found.waiting} session{'s wait' if found.waiting > 1 else ' waits'}"
    root = found.roots[0] if found.roots else None
    return Finding(
        status,
        f"{waiting} for a lock, the longest for {spoken(found.longest_seconds)}; {_described(root)}.",
        value=round(found.longest_seconds, 1),
        code=None if status == "ok" else "blocked",
        details={"waiting": found.waiting, "roots": [_as_details(each) for each in found.roots]},
        remedy=_unblock(root) if status != "ok" else None,
    )


def _described(root: "Blocker | None") -> str:
    if root is None:
        return "they wait for each other"
    if root.gid is not None:
        return f"the prepared transaction {root.gid!r} (user {root.user}, database {root.database}) holds it"
    age = "" if root.transaction_seconds is None else f", its transaction {spoken(root.transaction_seconds)} old"
    return f"pid {root.pid} ({root.application_name or root.user or 'unnamed'}, {root.state}{age}) holds it"


def _as_details(root: "Blocker") -> dict[str, object]:
    return {
        "pid": root.pid,
        "application_name": root.application_name,
        "user": root.user,
        "database": root.database,
        "state": root.state,
        "transaction_seconds": root.transaction_seconds,
        "query": root.query,
        "gid": root.gid,
    }


def _unblock(root: "Blocker | None") -> Remedy:
    if root is None:
        return Remedy("The server ends a deadlock by itself after deadlock_timeout; look again.")
    if root.gid is not None:
        return Remedy(
            "Commit it if its transaction manager says so; else roll it back, as its owner or a superuser.",
            rollback_prepared(root.gid, root.database),
        )
    what = "End that session; what it has not committed is rolled back. Then find out why it kept its transaction open."
    return Remedy(what, terminate(root.pid))


def spoken(seconds: float) -> str:
    """A duration for a sentence, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


CHECKS = (
    Check(
        id="db.blocked",
        title="no session waits for another",
        probe=check_blocked,
        reads="pg_stat_activity and pg_blocking_pids(): who waits for a lock, and who holds it in the end",
        why="Requests that need that row or table hang, and soon all of them do. Short waits are normal: 30 s is longer"
        f" than an application waits, 2 min longer than a user does. {PER_SERVER}",
        fix="End the session at the root with pg_terminate_backend, or let it commit.",
        grant=SESSION_GRANT,
        thresholds=Thresholds(warn=30, crit=120),
        unit="s",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.connections",
        title="connections are left",
        probe=check_connections,
        reads="pg_stat_activity against max_connections without the reserved ones",
        why="When they are used up every new request fails. 80 % leaves time to act, at 95 % one deployment is enough."
        f" {PER_SERVER}",
        fix="Find what holds them (state and application_name in pg_stat_activity), lower the applications' pools,"
        " put a pooler in between, or raise max_connections.",
        thresholds=Thresholds(warn=80, crit=95),
        unit="%",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
