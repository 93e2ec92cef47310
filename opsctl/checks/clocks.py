"""The clock here against others: the database server's, the storage's."""

import time
from datetime import datetime

from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, databases
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken


def check_database_clock(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.server import mapped_errors, one

    session = scope.session(target)
    before, started = scope.clock(), time.monotonic()
    with mapped_errors():
        (theirs,) = one(session, "select clock_timestamp()")
    return judge_skew(theirs, before, time.monotonic() - started, thresholds, whose="the database server's")


def judge_skew(theirs: datetime, before: datetime, seconds: float, thresholds: Thresholds, *, whose: str) -> Finding:
    """``theirs`` was read some time in the ``seconds`` after ``before``: what that explains is no skew."""
    ahead = (theirs - before).total_seconds()
    skew = max(0.0, -ahead, ahead - seconds)
    status = thresholds.judge(skew)
    direction = "behind" if ahead > 0 else "ahead of"
    remedy = Remedy("Turn time synchronisation on, on both machines.", "timedatectl set-ntp true")
    return Finding(
        status,
        f"This machine's clock agrees with {whose}."
        if status == "ok"
        else f"This machine's clock is {spoken(skew)} {direction} {whose}.",
        value=round(skew, 1),
        code=None if status == "ok" else "clock_skew",
        details={"theirs": theirs.isoformat(), "ours": before.isoformat()},
        remedy=None if status == "ok" else remedy,
    )


DATABASE_CHECKS = (
    Check(
        id="db.clock",
        title="this machine and the server agree on the time",
        probe=check_database_clock,
        reads="clock_timestamp() of the server, against the clock here",
        why="Backups are named and kept by the clock here, the data's times come from the clock there. 2 s is more than"
        " any synchronised clock is off; from 60 s on nobody can put the logs of the two side by side.",
        fix="Turn time synchronisation on, on both machines.",
        thresholds=Thresholds(warn=2, crit=60),
        unit="s",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
