"""What a database has counted since the run before: deadlocks, and blocks that were not in memory."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, databases
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken

if TYPE_CHECKING:
    from opsctl.postgres.counters import Counters

Earlier = tuple[float, Mapping[str, Any]]

MINIMUM_SECONDS = 60
"""A shorter time counts as a minute: one deadlock between two looks of `--watch` is no rate."""

MINIMUM_BLOCKS = 10_000
"""80 MB: a share of less says nothing."""

NO_SAMPLE = "This is the first look; the next one says what has changed since."
RESET = "The statistics were reset since the last look; the next one says what has changed since."


def check_deadlocks(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    now, earlier = _samples(scope, target, "db.deadlocks")
    return judge_deadlocks(now, earlier, thresholds)


def judge_deadlocks(now: "Counters", earlier: Earlier | None, thresholds: Thresholds) -> Finding:
    """Deadlocks a minute since ``earlier``: seconds ago, and the counts of then."""
    grown = _growth(now, earlier)
    if earlier is None or grown is None:
        return Finding("ok", NO_SAMPLE if earlier is None else RESET)
    seconds, count = earlier[0], grown["deadlocks"]
    rate = count / (max(seconds, MINIMUM_SECONDS) / 60)
    status = thresholds.judge(rate)
    happened = f"{count} deadlock{'' if count == 1 else 's'}" if count else "No deadlock"
    return Finding(
        status,
        f"{happened} in the last {spoken(seconds)}" + (f", {rate:.1f} a minute." if count else "."),
        value=round(rate, 2),
        code=None if status == "ok" else "deadlocks",
        details={"deadlocks": count, "seconds": round(seconds, 1)},
    )


def check_cache_hit(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    now, earlier = _samples(scope, target, "db.cache_hit")
    return judge_cache_hit(now, earlier, thresholds)


def judge_cache_hit(now: "Counters", earlier: Earlier | None, thresholds: Thresholds) -> Finding:
    """The share of blocks that were in shared_buffers since ``earlier``."""
    grown = _growth(now, earlier)
    if earlier is None or grown is None:
        return Finding("ok", NO_SAMPLE if earlier is None else RESET)
    blocks = grown["blocks_hit"] + grown["blocks_read"]
    details = {**grown, "seconds": round(earlier[0], 1)}
    if blocks < MINIMUM_BLOCKS:
        return Finding("ok", f"Only {blocks:,} blocks were used in the last {spoken(earlier[0])}.", details=details)
    percent = 100 * grown["blocks_hit"] / blocks
    status = thresholds.judge(percent)
    return Finding(
        status,
        f"{percent:.1f} % of {blocks:,} blocks were in memory in the last {spoken(earlier[0])}.",
        value=round(percent, 2),
        code=None if status == "ok" else "cache_hit",
        details=details,
        remedy=None
        if status == "ok"
        else Remedy(
            "Find the queries that read most (pg_stat_statements, shared_blks_read); look for missing indexes."
        ),
    )


def _samples(scope: Scope, target: str, check: str) -> tuple["Counters", Earlier | None]:
    from opsctl.postgres.counters import read_counters

    now = read_counters(scope.session(target))
    return now, scope.samples.exchange(check, target, asdict(now), now=scope.clock())


def _growth(now: "Counters", earlier: Earlier | None) -> dict[str, int] | None:
    """What each count has grown by; None without an earlier one, or when they began again."""
    if earlier is None:
        return None
    grown = {name: count - int(earlier[1].get(name, 0)) for name, count in asdict(now).items()}
    return grown if min(grown.values()) >= 0 else None


CHECKS = (
    Check(
        id="db.deadlocks",
        title="deadlocks are rare",
        probe=check_deadlocks,
        reads="pg_stat_database.deadlocks, against the run before; the first run only takes the sample",
        why="For each of them the server has ended a transaction that its application must repeat. Some happen in any"
        " busy database; 5 a minute are two pieces of code that take locks in different orders.",
        fix="The server's log has both statements of each deadlock. Let the code lock in one order, and less at once.",
        thresholds=Thresholds(warn=5),
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.cache_hit",
        title="what is used is in memory",
        probe=check_cache_hit,
        reads="blks_hit and blks_read of pg_stat_database, against the run before; the first run only takes the sample",
        why="A block that is not in shared_buffers comes from the system's cache or the disk, 10 to 1000 times slower."
        f" Applications stay above 98 %; less than {MINIMUM_BLOCKS:,} blocks are not judged. Opt-in: a dump or a large"
        " report reads everything once, and would be an alarm every night.",
        fix="Find the queries that read most and the indexes they lack; then raise shared_buffers.",
        thresholds=Thresholds(warn=98, falling=True),
        unit="%",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
        opt_in=True,
    ),
)
