"""The age of what vacuum may not clean up, and how far the transaction counters are from their end."""

from typing import TYPE_CHECKING

from opsctl.checks.check import Check, Finding, Remedy, ServerCommand, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, PER_SERVER, psql, rollback_prepared, servers, terminate
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import SESSION_GRANT
from opsctl.checks.transactions import ROLLED_BACK, WHO_MAY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opsctl.postgres.horizons import DatabaseAge, Holder

EXAMPLES = 5


def check_xmin(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.horizons import read_holders

    return judge_xmin(read_holders(scope.session(target)), thresholds)


def judge_xmin(found: "Sequence[Holder]", thresholds: Thresholds) -> Finding:
    """Who holds the horizon furthest back, and how many transactions that is."""
    if not found:
        return Finding("ok", "Nothing holds the xmin horizon back.", value=0)
    first = max(found, key=lambda each: each.age)
    status = thresholds.judge(first.age)
    oldest: dict[str, int] = {}
    for each in found:
        oldest[each.cause] = max(each.age, oldest.get(each.cause, 0))
    return Finding(
        status,
        f"{_described(first)} holds the xmin horizon {first.age:,} transactions back.",
        value=first.age,
        code=None if status == "ok" else f"xmin_{first.cause}",
        details={"cause": first.cause, "name": first.name, "pid": first.pid, "oldest": oldest},
        remedy=None if status == "ok" else _release(first),
    )


def _described(holder: "Holder") -> str:
    where = f", database {holder.database}" if holder.database else ""
    if holder.cause == "prepared":
        return f"The prepared transaction {holder.name!r} (database {holder.database})"
    if holder.cause == "slot":
        return f"The replication slot {holder.name!r}{f' (database {holder.database})' if holder.database else ''}"
    if holder.cause == "walsender":
        return f"The standby {holder.name!r} (pid {holder.pid})"
    doing = "idle in its transaction" if holder.cause == "idle" else "with a query"
    return f"pid {holder.pid} ({holder.name}{where}), {doing},"


def _release(holder: "Holder") -> Remedy:
    if holder.cause == "prepared":
        return Remedy(
            "Commit it, if its transaction manager has committed elsewhere; else roll it back.",
            rollback_prepared(holder.name, holder.database),
        )
    if holder.cause == "slot" and holder.pid is None:
        quoted = holder.name.replace("'", "''")
        return Remedy(
            "Start its consumer. If that will never come back, drop the slot; a new consumer begins from a new copy.",
            psql(f"select pg_drop_replication_slot('{quoted}')"),
        )
    if holder.cause in {"slot", "walsender"}:
        return Remedy(
            "Find the long transaction on the standby or in the subscriber behind it and end it there; or turn"
            " hot_standby_feedback off on the standby."
        )
    return Remedy(f"End that session. {ROLLED_BACK} {WHO_MAY}", terminate(holder.pid or 0))


def check_wraparound(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.horizons import read_ages

    return judge_wraparound(read_ages(scope.session(target)), thresholds)


def judge_wraparound(found: "Sequence[DatabaseAge]", thresholds: Thresholds) -> Finding:
    """The database that is nearest to the end of either counter."""
    first = max(found, key=lambda each: each.age)
    status = thresholds.judge(first.age)
    kind, of = ("transactions", first.xids) if first.xids >= first.mxids else ("multixacts", first.mxids)
    percent = 100 * first.age / 2**31
    return Finding(
        status,
        f"The oldest database is {first.database}: {of:,} {kind} since it was frozen, {percent:.0f} % of the way to the"
        " wraparound.",
        value=first.age,
        code=None if status == "ok" else "wraparound",
        details={
            "oldest": [{"database": each.database, "xids": each.xids, "mxids": each.mxids} for each in found[:EXAMPLES]]
        },
        remedy=None if status == "ok" else _freeze(first),
    )


def _freeze(oldest: "DatabaseAge") -> Remedy:
    if not oldest.allows_connections:
        return Remedy(
            "Nobody can connect to that database: autovacuum must freeze it. Make sure that it works:"
            " db.xmin says what holds it back, the server's log whether it fails.",
            psql("select pid, datname, query, xact_start from pg_stat_activity where backend_type ~ 'autovacuum'"),
        )
    return Remedy(
        "First end what holds the horizon back (db.xmin): vacuum freezes nothing newer. Then freeze that database, as"
        " a superuser or its owner.",
        ServerCommand("vacuumdb", "--freeze", oldest.database),
    )


CHECKS = (
    Check(
        id="db.xmin",
        title="nothing holds the xmin horizon back",
        probe=check_xmin,
        reads="the oldest xmin of pg_stat_activity (queries, idle transactions, WAL senders), pg_prepared_xacts and"
        " pg_replication_slots, in transactions",
        why="Vacuum removes no row that was deleted or changed since, in any database: tables and indexes grow, and"
        " nothing newer is frozen. Counted in transactions, because an old snapshot costs nothing where nothing"
        f" changes: 10 million are a day at 100 a second; at 100 million the wraparound comes into view. {PER_SERVER}",
        fix="The finding names the cause: a session to end, a prepared transaction to roll back, a slot to drop.",
        grant=SESSION_GRANT,
        thresholds=Thresholds(warn=10_000_000, crit=100_000_000),
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.wraparound",
        title="the transaction counters are far from their end",
        probe=check_wraparound,
        reads="age(datfrozenxid) and mxid_age(datminmxid) of every database in pg_database",
        why="3 million before 2^31 (2,147 million) the server takes no more writes. Autovacuum freezes at 200 million"
        " (multixacts: 400 million) by default: at 500 million it has failed for long, at 1,200 million days may be"
        f" left. Raise the limits if you have raised autovacuum_freeze_max_age. {PER_SERVER}",
        fix="End what holds the horizon back (db.xmin), then vacuumdb --freeze the database the finding names.",
        thresholds=Thresholds(warn=500_000_000, crit=1_200_000_000),
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
