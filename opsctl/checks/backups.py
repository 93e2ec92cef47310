"""The backups of each database: is the newest one new, whole, proven, and wherever it should be."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING

from opsctl import sync
from opsctl.catalog import Backup, merged
from opsctl.checks.amounts import counted, spoken_bytes
from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.databases import NOT_CONFIGURED
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken
from opsctl.freshness import COMPARED, TOLERANCE, expected_interval, good_ones
from opsctl.manifest import EVIDENCE_LEVELS, Manifest
from opsctl.retention import policy_of
from opsctl.schedule import Schedule
from opsctl.unusual import FEWEST, compared, is_too_fast, typical

if TYPE_CHECKING:
    from opsctl.settings import UnusualSettings

RESTORED = EVIDENCE_LEVELS[EVIDENCE_LEVELS.index("restored") :]


def backed_up(scope: Scope) -> Iterable[Target]:
    """The databases, each in its repositories."""
    return [Target(name, within=tuple(scope.config.repositories_of(name))) for name in scope.databases]


def backups_of(scope: Scope, database: str) -> list[Backup]:
    """The backups of a database in the repositories that answered, newest first."""
    names = scope.config.repositories_of(database)
    whole = merged({name: scope.catalogs[name] for name in names if name in scope.catalogs}, {})
    return [each for each in whole.backups if each.database == database]


def check_age(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    backups, now = backups_of(scope, target), scope.clock()
    expected = expected_interval(backup_schedule(scope), good_ones(backups, now), now)
    return judge_age(target, backups, expected, thresholds, now=now)


def backup_schedule(scope: Scope) -> Schedule | None:
    return scope.config.schedule.of("backup")


def judge_age(
    database: str, backups: Sequence[Backup], expected: timedelta, thresholds: Thresholds, *, now: datetime
) -> Finding:
    """In multiples of the interval. A backup dated in the future is never the newest, and never fine."""
    future = [each for each in backups if each.created_at > now + TOLERANCE]
    good = good_ones(backups, now)
    take_one = Remedy("Take one now, and see why the last ones were not taken.", f"opsctl backup {database}")
    details: dict[str, object] = {
        "newest": good[0].id if good else None,
        "age_seconds": (now - good[0].created_at).total_seconds() if good else None,
        "expected_seconds": expected.total_seconds(),
        "future": [each.id for each in future],
    }
    if not good:
        text = "There is no backup that is known to be good." if backups else "There is no backup yet."
        first = Remedy("Take one now.", f"opsctl backup {database}")
        return Finding("crit", text, code="none", details=details, remedy=take_one if backups else first)
    age = max(now - good[0].created_at, timedelta(0))
    value = round(age / expected, 2)
    status = thresholds.judge(value)
    text = f"The newest backup is {spoken(age.total_seconds())} old; one is expected every {_every(expected)}."
    if status == "crit" or not future:
        return Finding(status, text, value, details, None if status == "ok" else take_one)
    ahead = spoken((future[0].created_at - now).total_seconds())
    return Finding(
        "crit",
        f"{counted(len(future), 'backup')} dated in the future, the last by {ahead}: {future[0].id}. {text}",
        value,
        details,
        Remedy(
            "The clock was wrong when it was taken, or is now. Set it right, then take a new backup.", "timedatectl"
        ),
        code="future",
    )


def _every(interval: timedelta) -> str:
    return spoken(interval.total_seconds())


def check_size(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    limits = scope.config.database(target).unusual
    return judge_size(*_comparable(scope, target, limits), thresholds, limits)


def check_duration(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    limits = scope.config.database(target).unusual
    return judge_duration(*_comparable(scope, target, limits), thresholds, limits)


def _comparable(scope: Scope, database: str, limits: "UnusualSettings") -> tuple[list[Manifest], list[Manifest]]:
    """The good backups of a database, newest first, and those that the newest one is compared with."""
    good = [each.manifest for each in good_ones(backups_of(scope, database), scope.clock())]
    return good, compared(good[0], good[1:], limits) if good else []


def judge_size(
    good: Sequence[Manifest], usual: Sequence[Manifest], thresholds: Thresholds, limits: "UnusualSettings"
) -> Finding:
    """The newest dump against the median of those before it."""
    if not usual:
        return _too_few(len(good))
    normal, newest = median(each.dump.bytes for each in usual), good[0].dump.bytes
    percent = 100 * newest / max(normal, 1)
    status = thresholds.judge(percent) if normal >= limits.smallest_bytes else "ok"
    return Finding(
        status,
        f"The newest dump has {spoken_bytes(newest)}, usual are {spoken_bytes(normal)}.",
        value=round(percent, 1),
        code=None if status == "ok" else "shrunk",
        details={"newest": good[0].id, "newest_bytes": newest, "usual_bytes": normal},
        remedy=None if status == "ok" else _compare(good[0], typical(usual)),
    )


def judge_duration(
    good: Sequence[Manifest], usual: Sequence[Manifest], thresholds: Thresholds, limits: "UnusualSettings"
) -> Finding:
    """Slow by the thresholds. Fast only when the dump is smaller, too: a faster disk is no alarm."""
    if not usual:
        return _too_few(len(good))
    newest, normal = good[0], median(each.duration_seconds for each in usual)
    percent = 100 * newest.duration_seconds / max(normal, 0.001)
    is_fast = is_too_fast(newest, usual, limits)
    is_long = max(normal, newest.duration_seconds) >= limits.shortest_seconds
    status = "crit" if is_fast else thresholds.judge(percent) if is_long else "ok"
    code = "too_fast" if is_fast else "slow"
    slow = Remedy("Look at the server's load and the repositories' speed while it runs.", "opsctl show latest")
    return Finding(
        status,
        f"The newest backup took {spoken(newest.duration_seconds)}, usual are {spoken(normal)}.",
        value=round(percent, 1),
        code=None if status == "ok" else code,
        details={"newest": newest.id, "newest_seconds": newest.duration_seconds, "usual_seconds": normal},
        remedy=None if status == "ok" else _compare(newest, typical(usual)) if is_fast else slow,
    )


def _too_few(there: int) -> Finding:
    return Finding("ok", f"There {'is' if there == 1 else 'are'} {counted(there, 'backup')}: too few to compare.")


def _compare(newest: Manifest, before: Manifest) -> Remedy:
    text = (
        "Compare the rows per table with an earlier backup; was something dropped, or excluded? Keep the earlier one."
    )
    return Remedy(text, f"opsctl pin {before.id}; opsctl diff {before.id} {newest.id}")


def check_evidence(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    now = scope.clock()
    backups = [each for each in backups_of(scope, target) if each.created_at <= now + TOLERANCE]
    return judge_evidence(target, backups, thresholds, now=now)


def judge_evidence(database: str, backups: Sequence[Backup], thresholds: Thresholds, *, now: datetime) -> Finding:
    """How old the newest backup is that a restore has proven; that the newest one is not damaged."""
    if not backups:
        return Finding("skip", "There is no backup yet, see backup.age.")
    damaged = [copy for copy in backups[0].copies if copy.failed]
    if damaged:
        where = ", ".join(copy.repository for copy in damaged)
        return Finding(
            "crit",
            f"The newest backup failed its verification in {where}: {backups[0].id}.",
            code="failed",
            details={"newest": backups[0].id},
            remedy=Remedy("Take a new one, and find out what damages files there.", f"opsctl backup {database}"),
        )
    proven = next((each for each in backups if each.proven and each.proven.level in RESTORED), None)
    # Nobody could have proven more than there was: without any proof it is the oldest backup that counts.
    since = (proven or backups[-1]).created_at
    seconds = max(0.0, (now - since).total_seconds())
    status = thresholds.judge(seconds)
    level = proven.proven.level if proven and proven.proven else None
    text = (
        f"The newest backup that a restore has proven ({level}) is {spoken(seconds)} old."
        if proven
        else f"No backup has been proven by a restore, for {spoken(seconds)}."
    )
    return Finding(
        status,
        text,
        value=round(seconds),
        code=None if status == "ok" else "unproven",
        details={"proven": proven.id if proven else None, "level": level},
        remedy=None
        if status == "ok"
        else Remedy(
            "Restore the newest one into a throwaway server, now and regularly.", f"opsctl drill latest:{database}"
        ),
    )


def check_copies(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    names = scope.config.repositories_of(target)
    catalogs = {name: scope.catalogs[name] for name in names if name in scope.catalogs}
    if len(names) < 2:
        return Finding("ok", f"There is one repository, {names[0]}: one fire takes all of its backups.")
    policies = {name: policy_of(scope.config.repositories[name].retention) for name in catalogs}
    now = scope.clock()
    missing = sync.plan(catalogs, policies, {target: list(catalogs)}, now=now)
    return judge_copies([each for each in missing if not each.is_under_way(now)])


def judge_copies(missing: Sequence[sync.Missing]) -> Finding:
    """Whether every repository has what the others have and its own retention would keep."""
    if not missing:
        return Finding("ok", "Every repository has the backups it should.", value=0)
    newest, names = missing[0].backup, sorted({each.to for each in missing})
    what = f"the backup {newest.id}" if len(missing) == 1 else f"{len(missing)} backups, the newest {newest.id}"
    return Finding(
        "warn",
        f"In {', '.join(names)} is missing: {what}.",
        value=len(missing),
        code="missing",
        details={"newest": newest.id, "missing_in": names},
        remedy=Remedy("Copy what is missing from a repository that has it.", f"opsctl sync {newest.database}"),
    )


AFTER_ONE = ("repository.reachable",)

CHECKS = (
    Check(
        id="backup.age",
        title="the newest backup is new enough",
        probe=check_age,
        reads="when the newest good backup was taken, against the interval: that of [schedule], else the usual distance"
        " of the last backups, else 24 h",
        why="A schedule that died is noticed by nothing else. The value is the age in intervals: late by a quarter is"
        " a warning, two missed are critical. A backup dated in the future counts for nothing and is critical: it would"
        " be taken for the newest one for ever.",
        fix="Take a backup now, then see why the last ones were not taken.",
        thresholds=Thresholds(warn=1.25, crit=2),
        after_one=AFTER_ONE,
        targets=backed_up,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="backup.size",
        title="the newest dump is no smaller than usual",
        probe=check_size,
        reads=f"the bytes of the newest dump, in percent of the median of the {COMPARED} before it, of the same server",
        why="A dump of an emptied database succeeds. Half is more than any cleaning up takes away at once. Silent while"
        f" there are fewer than {FEWEST} to compare with, and below 1 MiB.",
        fix="Keep the earlier ones (`opsctl pin`), then compare their rows per table with `opsctl diff`.",
        thresholds=Thresholds(crit=50, falling=True),
        unit="%",
        after_one=AFTER_ONE,
        targets=backed_up,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="backup.duration",
        title="the newest backup took as long as usual",
        probe=check_duration,
        reads=f"how long the newest backup took, in percent of the median of the {COMPARED} before it",
        why="One that takes three times as long will run into the day soon. One that takes less than 20 % and is"
        " smaller as well is critical: something is missing. Silent below one minute. [databases.NAME.unusual] has"
        " other limits for one database.",
        fix="Look at the server's load and the repositories' speed while a backup runs.",
        thresholds=Thresholds(warn=300),
        unit="%",
        after=("backup.size",),
        after_one=AFTER_ONE,
        targets=backed_up,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="backup.evidence",
        title="a restore has proven a recent backup",
        probe=check_evidence,
        reads="what is recorded about verifications and restores of the backups",
        why="A backup that nobody has restored is a hope. 30 days is how much of it one can live with. A newest backup"
        " that failed its verification is critical.",
        fix="Drill the newest backup, regularly ([schedule] drill): `opsctl drill`.",
        thresholds=Thresholds(warn=30 * 86400),
        unit="s",
        after_one=AFTER_ONE,
        targets=backed_up,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="backup.copies",
        title="every repository has the backups it should",
        probe=check_copies,
        reads="the backups of the database in each of its repositories: what others have, and its own retention would"
        " keep; what is being written there is on its way",
        why="The second repository is for the day the first one is gone.",
        fix="Copy what is missing with opsctl sync, then see why it did not get there by itself.",
        after_one=AFTER_ONE,
        targets=backed_up,
        not_configured=NOT_CONFIGURED,
    ),
)
