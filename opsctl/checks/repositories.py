"""The repositories: do they answer, can they be written, is there room, does their clock go right."""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from opsctl.checks.amounts import counted, spoken_bytes
from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.clocks import judge_skew
from opsctl.checks.disks import mounts_of
from opsctl.checks.scope import Scope
from opsctl.errors import RemovalRefused, RepositoryUnreachable
from opsctl.repository import CLOCK_LIMIT, HIDDEN
from opsctl.repository_check import CLOCK_WARNING, ROOM_LIMIT, ROOM_WARNING

if TYPE_CHECKING:
    from opsctl.catalog import Incomplete

NO_LIMIT = "It has no size of its own: what fits is a matter of money."


def repositories(scope: Scope) -> Iterable[Target]:
    return [Target(name, within=mounts_of(scope, name)) for name in scope.config.repositories]


def check_reachable(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    address = scope.repositories[target].storage.address
    try:
        catalog = scope.read_catalog(target)
    except RepositoryUnreachable as error:
        text = error.hint or "Check its address, the network and the credentials."
        return Finding("crit", error.message, code="unreachable", details={"address": address}, remedy=Remedy(text))
    return Finding(
        "ok",
        f"{address} answers and has {counted(len(catalog.backups), 'backup')}.",
        details={"address": address, "backups": len(catalog.backups)},
    )


def check_writable(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    storage = scope.repositories[target].storage
    try:
        storage.try_write()
    except RemovalRefused as error:
        return Finding("warn", error.message, code="not_removable", remedy=Remedy(error.hint or "See docs/s3.md."))
    except RepositoryUnreachable as error:
        text = error.hint or "The user opsctl runs as must be able to write there."
        return Finding("crit", error.message, code="not_writable", remedy=Remedy(text))
    return Finding("ok", f"{storage.address} can be written.")


def check_space(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    storage = scope.repositories[target].storage
    free = storage.free_bytes()
    if free is None:
        return Finding("skip", NO_LIMIT)
    return judge_space(storage.address, free, scope.catalogs[target].next_run_bytes, thresholds)


def judge_space(address: str, free: int, needed: int, thresholds: Thresholds) -> Finding:
    if not needed:
        return Finding("ok", f"{address}: {spoken_bytes(free)} are free; there is no backup yet to compare with.")
    times = free / needed
    status = thresholds.judge(times)
    room = f"{times:.1f} times" if times < 100 else "more than 100 times"
    return Finding(
        status,
        f"{address}: {spoken_bytes(free)} are free, {room} what the last backups took ({spoken_bytes(needed)}).",
        value=round(times, 2),
        code=None if status == "ok" else "no_room",
        details={"free_bytes": free, "needed_bytes": needed},
        remedy=None
        if status == "ok"
        else Remedy("See what a shorter retention would remove, or enlarge the disk.", "opsctl prune --dry-run"),
    )


def check_clock(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    before = scope.clock()
    theirs = scope.repositories[target].storage.now()
    seconds = (scope.clock() - before).total_seconds()
    if theirs is None:
        return Finding("skip", "It is on this machine and has no clock of its own.")
    # Their time is cut to the second.
    return judge_skew(theirs, before - timedelta(seconds=1), seconds + 1, thresholds, whose="the storage's")


def check_orphans(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    found = scope.catalogs[target].incomplete
    now = scope.clock()
    return judge_orphans([each for each in found if each.is_orphan(now)], found)


def judge_orphans(orphans: "list[Incomplete]", incomplete: "list[Incomplete]") -> Finding:
    """What is being written, or was interrupted lately, is nobody's worry yet; damaged and hidden ones are."""
    damaged = [each for each in incomplete if each.reason not in {"interrupted", HIDDEN}]
    hidden = [each for each in incomplete if each.reason == HIDDEN]
    if damaged:
        return Finding(
            "crit",
            f"{counted(len(damaged), 'backup')} cannot be read: {damaged[0].id}: {damaged[0].reason}",
            value=len(damaged),
            code="damaged",
            details={"ids": [each.id for each in damaged]},
            remedy=Remedy("Verify the others; take a new backup if none is left.", "opsctl verify --all"),
        )
    if hidden:
        return Finding(
            "warn",
            f"{counted(len(hidden), 'backup')} deleted by another tool, while the bucket still keeps them:"
            f" {hidden[0].id}.",
            value=len(hidden),
            code="hidden",
            details={"ids": [each.id for each in hidden]},
            remedy=Remedy(
                "Find out who did it. Without their delete markers they are there again; docs/s3.md.", "opsctl list"
            ),
        )
    if orphans:
        total = sum(each.bytes for each in orphans)
        return Finding(
            "warn",
            f"{counted(len(orphans), 'interrupted backup')} left behind, {spoken_bytes(total)}: {orphans[0].id}.",
            value=len(orphans),
            code="orphans",
            details={"ids": [each.id for each in orphans], "bytes": total},
            remedy=Remedy("Prune removes them; then see what interrupted the backups.", "opsctl prune"),
        )
    under_way = len(incomplete)
    text = (
        f"{counted(under_way, 'backup')} being written, or interrupted lately." if under_way else "Nothing left over."
    )
    return Finding("ok", text, value=0, details={"under_way": under_way})


CHECKS = (
    Check(
        id="repository.reachable",
        title="the repository answers",
        probe=check_reachable,
        reads="the list of its backups, and their manifests",
        why="What cannot be listed cannot be restored from.",
        fix="Check its address, the network and the credentials; for a folder, whether its disk is mounted.",
        targets=repositories,
        timeout_seconds=8,
    ),
    Check(
        id="repository.writable",
        title="the repository can be written",
        probe=check_writable,
        reads="whether a few bytes can be written and taken back; nothing of them stays",
        why="Otherwise the next backup fails, at night.",
        fix="Give the user opsctl runs as the right to write there; in a bucket, s3:PutObject.",
        after=("repository.reachable", "disk.space"),
        targets=repositories,
    ),
    Check(
        id="repository.space",
        title="the next backup fits",
        probe=check_space,
        reads="the free space, against what the newest backup of each database took together",
        why="A backup is written before an old one is removed. Less than twice its size leaves no room for growth, less"
        " than 1.2 times and the next one may be the one that does not fit.",
        fix="Shorten the retention and prune, or enlarge the disk.",
        thresholds=Thresholds(warn=ROOM_WARNING, crit=ROOM_LIMIT, falling=True),
        after=("repository.reachable", "disk.space"),
        targets=repositories,
    ),
    Check(
        id="repository.clock",
        title="this machine and the storage agree on the time",
        probe=check_clock,
        reads="the date in the service's answers, against the clock here",
        why="S3 refuses requests that are 15 minutes off; from 5 minutes on opsctl does not prune, because it cannot"
        " tell which backup is the newest.",
        fix="Turn time synchronisation on (systemd-timesyncd, chrony).",
        thresholds=Thresholds(warn=CLOCK_WARNING.total_seconds(), crit=CLOCK_LIMIT.total_seconds()),
        unit="s",
        after=("repository.reachable",),
        targets=repositories,
    ),
    Check(
        id="backup.orphans",
        title="no interrupted backup is left behind",
        probe=check_orphans,
        reads="folders without a manifest, with one that cannot be read, or with one hidden by a delete marker",
        why="They take room, and tell of runs that were killed. What was written to within 48 h may be on its way.",
        fix="`opsctl prune` removes them.",
        after=("repository.reachable",),
        targets=repositories,
    ),
)
