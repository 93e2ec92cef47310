"""Transactions that stay open: the locks they hold, the rows nobody can clean up behind them."""

from typing import TYPE_CHECKING

from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, PER_SERVER, rollback_prepared, servers, terminate
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import SESSION_GRANT, spoken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opsctl.postgres.transactions import Limits, OpenTransaction, PreparedTransaction

AT_WORK_SECONDS = 60
"""A session that is idle in its transaction for less is between two statements."""

EXAMPLES = 5
ROLLED_BACK = "What it has not committed is rolled back."
WHO_MAY = "That takes the session's own role, or pg_signal_backend; for a superuser's session a superuser."


def check_idle_in_transaction(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.transactions import read_open_transactions

    return judge_idle_in_transaction(read_open_transactions(scope.session(target)), thresholds)


def judge_idle_in_transaction(found: "Sequence[OpenTransaction]", thresholds: Thresholds) -> Finding:
    """The session that has been doing nothing in its transaction for longest."""
    idle = sorted((each for each in found if _is_idle(each)), key=lambda each: -each.state_seconds)
    if not idle:
        return Finding("ok", "No session is idle in a transaction.", value=0)
    first, status = idle[0], thresholds.judge(idle[0].state_seconds)
    return Finding(
        status,
        f"{_described(first)} has been idle in its transaction for {spoken(first.state_seconds)}{_more(idle)}.",
        value=round(first.state_seconds, 1),
        code=None if status == "ok" else "idle_in_transaction",
        details={"sessions": [_as_details(each) for each in idle[:EXAMPLES]]},
        remedy=None
        if status == "ok"
        else Remedy(
            f"End that session. {ROLLED_BACK} Then find out why the application keeps its transaction open;"
            f" idle_in_transaction_session_timeout ends such sessions by itself. {WHO_MAY}",
            terminate(first.pid),
        ),
    )


def check_long_transactions(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.transactions import read_open_transactions

    return judge_long_transactions(read_open_transactions(scope.session(target)), thresholds)


def judge_long_transactions(found: "Sequence[OpenTransaction]", thresholds: Thresholds) -> Finding:
    """The oldest transaction at work; of one that is idle for long db.idle_in_txn tells."""
    working = [each for each in found if not _is_idle(each)]
    working += [each for each in found if each.state == "idle in transaction" and each.state_seconds < AT_WORK_SECONDS]
    working.sort(key=lambda each: -each.seconds)
    if not working:
        return Finding("ok", "No transaction is at work.", value=0)
    first, status = working[0], thresholds.judge(working[0].seconds)
    return Finding(
        status,
        f"The transaction of {_described(first)}, {first.state}, is {spoken(first.seconds)} old{_more(working)}.",
        value=round(first.seconds, 1),
        code=None if status == "ok" else "long_transaction",
        details={"sessions": [_as_details(each) for each in working[:EXAMPLES]]},
        remedy=None
        if status == "ok"
        else Remedy(f"Let it finish, or end that session. {ROLLED_BACK} {WHO_MAY}", terminate(first.pid)),
    )


def _is_idle(transaction: "OpenTransaction") -> bool:
    return transaction.state.startswith("idle in transaction")


def _described(session: "OpenTransaction") -> str:
    who = session.application_name or "no application name"
    return f"pid {session.pid} ({who}, user {session.user}, database {session.database})"


def _more(found: "Sequence[OpenTransaction]") -> str:
    return f"; {len(found) - 1} more" if len(found) > 1 else ""


def _as_details(session: "OpenTransaction") -> dict[str, object]:
    return {
        "pid": session.pid,
        "application_name": session.application_name,
        "user": session.user,
        "database": session.database,
        "state": session.state,
        "state_seconds": round(session.state_seconds, 1),
        "transaction_seconds": round(session.seconds, 1),
        "query": session.query,
    }


def check_prepared(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.transactions import read_prepared_transactions

    return judge_prepared(read_prepared_transactions(scope.session(target)), thresholds)


def judge_prepared(found: "Sequence[PreparedTransaction]", thresholds: Thresholds) -> Finding:
    """Prepared transactions outlive their session, and the server."""
    if not found:
        return Finding("ok", "No transaction is prepared.", value=0)
    first = max(found, key=lambda each: each.seconds)
    status = thresholds.judge(first.seconds)
    more = f"; {len(found) - 1} more" if len(found) > 1 else ""
    return Finding(
        status,
        f"The transaction {first.gid!r} (user {first.owner}, database {first.database}) was prepared"
        f" {spoken(first.seconds)} ago and has neither been committed nor rolled back{more}.",
        value=round(first.seconds, 1),
        code=None if status == "ok" else "prepared",
        details={
            "count": len(found),
            "oldest": [
                {"gid": each.gid, "owner": each.owner, "database": each.database, "seconds": round(each.seconds, 1)}
                for each in found[:EXAMPLES]
            ],
        },
        remedy=None
        if status == "ok"
        else Remedy(
            "Ask the transaction manager that prepared it, if there is one: COMMIT PREPARED when it has committed"
            " elsewhere. Else roll it back, as its owner or a superuser.",
            rollback_prepared(first.gid, first.database),
        ),
    )


def check_timeouts(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    from opsctl.postgres.transactions import read_limits

    return judge_timeouts(read_limits(scope.session(target)))


def judge_timeouts(found: "Limits") -> Finding:
    """Never an alarm: which of them fit depends on the application."""
    limited = {name: limit for name, limit in found.own.items() if limit}
    words = [f"{name} {spoken(limit / 1000) if limit >= 1000 else f'{limit} ms'}" for name, limit in limited.items()]
    message = (
        f"Transactions of this login are limited by {', '.join(words)}" if words else "No timeout limits this login"
    )
    others = "; ".join(f"{whose}: {', '.join(settings)}" for whose, settings in found.others.items())
    return Finding(
        "ok",
        f"{message}. Set apart from that: {others}." if others else f"{message}, and none is set for another.",
        details={"milliseconds": found.own, "others": {whose: list(each) for whose, each in found.others.items()}},
    )


CHECKS = (
    Check(
        id="db.idle_in_txn",
        title="no session is idle in a transaction for long",
        probe=check_idle_in_transaction,
        reads="pg_stat_activity: sessions idle in a transaction, by how long they have been idle; without those of"
        " pg_dump, pg_restore and opsctl",
        why="It keeps its locks, and vacuum cleans up nothing that has changed since. An application is idle in a"
        f" transaction for milliseconds: after 5 min it has forgotten it, after 30 min others suffer. {PER_SERVER}",
        fix="End the session with pg_terminate_backend; set idle_in_transaction_session_timeout for the application's"
        " role.",
        grant=SESSION_GRANT,
        thresholds=Thresholds(warn=300, crit=1800),
        unit="s",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.long_txn",
        title="no transaction is at work for hours",
        probe=check_long_transactions,
        reads="pg_stat_activity: the oldest transaction of a client that is at work, or idle in it for less than"
        f" {AT_WORK_SECONDS} s; without those of pg_dump, pg_restore and opsctl, and without WAL senders",
        why="Its locks stay, tables that change grow, and indexes built concurrently wait for it. 15 min is longer than"
        f" a request and most jobs, 2 h longer than nearly every report. {PER_SERVER}",
        fix="Let it finish, or end the session with pg_terminate_backend; then split the job.",
        grant=SESSION_GRANT,
        thresholds=Thresholds(warn=900, crit=7200),
        unit="s",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.prepared",
        title="no transaction stays prepared",
        probe=check_prepared,
        reads="pg_prepared_xacts: transactions after PREPARE TRANSACTION, by their age",
        why="It keeps its locks without a session that could be ended, even through a restart, and a restore cannot put"
        " its database aside. A transaction manager commits within a second: 60 s is an accident, after 10 min nobody"
        f" comes back for it. {PER_SERVER}",
        fix="COMMIT PREPARED or ROLLBACK PREPARED in the transaction's own database, as its owner or a superuser."
        " Without a transaction manager set max_prepared_transactions = 0.",
        thresholds=Thresholds(warn=60, crit=600),
        unit="s",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.timeouts",
        title="what limits transactions",
        probe=check_timeouts,
        reads="statement_timeout, idle_in_transaction_session_timeout, lock_timeout and transaction_timeout (17 and"
        " newer) as this login would have them in its database, and the roles and databases that have their own",
        why="Without them a forgotten transaction stays until somebody finds it. PostgreSQL sets none by itself, and"
        f" which fit only the application's authors know: this is never an alarm. {PER_SERVER}",
        fix="ALTER ROLE app SET idle_in_transaction_session_timeout = '5min'; sessions begun later have it.",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
