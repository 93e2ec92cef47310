"""Which backups stay, and why. Pure: the clock is an argument, and nothing is removed here.

The counted rules are those of ``restic forget`` over natural UTC hours, days, ISO weeks, months and years. Around
them stand guarantees no policy can override: see :func:`plan_prune`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING

from opsctl.catalog import Backup, StoredBackup
from opsctl.errors import ConfigurationError
from opsctl.manifest import EVIDENCE_LEVELS, EvidenceLevel

if TYPE_CHECKING:
    from opsctl.settings import RepositorySettings, RetentionSettings

RULES: dict[str, Callable[[int, datetime], str]] = {
    "last": lambda rank, _: str(rank),
    "hourly": lambda _, moment: f"{moment:%Y-%m-%dT%H}",
    "daily": lambda _, moment: f"{moment:%Y-%m-%d}",
    "weekly": lambda _, moment: f"{moment:%G-W%V}",
    "monthly": lambda _, moment: f"{moment:%Y-%m}",
    "yearly": lambda _, moment: f"{moment:%Y}",
}
"""Each counted rule, and the bucket it puts the backup of that rank (1 is the newest) and moment into."""

PROTECTED_LEVELS = EVIDENCE_LEVELS[EVIDENCE_LEVELS.index("restored") :]
"""The levels whose newest proof is never removed: those that took a restore to earn."""

DAYS = {"y": 365, "m": 30, "w": 7, "d": 1}


@dataclass(frozen=True)
class Policy:
    """How many backups each rule keeps; ``None`` and zero both mean that the rule is not there."""

    keep_last: int | None = None
    keep_hourly: int | None = None
    keep_daily: int | None = None
    keep_weekly: int | None = None
    keep_monthly: int | None = None
    keep_yearly: int | None = None
    keep_within: timedelta | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < type(value)(0):
                raise ValueError(f"{name} must not be negative")

    @property
    def is_empty(self) -> bool:
        return not any(vars(self).values())

    @property
    def certain_span(self) -> timedelta:
        """How old a backup that is taken every night is sure to become before these rules let it go."""
        counted = (timedelta(days=self.count("daily")), timedelta(hours=self.count("hourly")))
        return max(*counted, self.keep_within or timedelta(0))

    def count(self, rule: str) -> int:
        """How many backups a rule of :data:`RULES` may keep."""
        return getattr(self, f"keep_{rule}") or 0


def lock_span(settings: "RepositorySettings", policy: Policy, *, where: str) -> timedelta | None:
    """How long a repository's backups are locked: no longer than its retention is sure to keep them.

    Raises ConfigurationError.
    """
    if settings.object_lock == "off":
        return None
    span = timedelta(days=settings.object_lock_days or 0) or policy.certain_span
    if not span:
        raise ConfigurationError(
            f"{where}: the retention does not say for how long.",
            hint="Set object_lock_days, or keep_daily, keep_hourly or keep_within in its retention.",
        )
    return span


@dataclass(frozen=True)
class Candidate:
    """What retention needs to know of a backup.

    ``proven`` is the strongest level a passing verification of this copy has proven, ``proven_anywhere`` that of any
    copy; ``failed`` says that the newest verification failed, ``server`` is the system identifier of the server the
    backup was taken from.
    """

    id: str
    created_at: datetime
    pinned: bool = False
    proven: EvidenceLevel | None = None
    proven_anywhere: EvidenceLevel | None = None
    failed: bool = False
    server: str | None = None


def policy_of(settings: "RetentionSettings") -> Policy:
    """The policy that a configuration asks for."""
    values = settings.model_dump()
    within = values.pop("keep_within")
    return Policy(**values, keep_within=parse_duration(within) if within else None)


def candidate(backup: StoredBackup | Backup, copies: Iterable[StoredBackup] = ()) -> Candidate:
    """A backup as retention sees it, ``copies`` of it elsewhere included.

    A pin is for the backup, wherever it was set, and what was proven of one copy is true of the same bytes in another
    place: else a copy that one repository prunes would be copied there again. That these bytes are still the same is
    proven by a verification of this copy alone, so that counts by itself as well.
    """
    everywhere = [backup, *copies]
    proofs = [each.proven.level for each in everywhere if each.proven and not backup.failed]
    return Candidate(
        id=backup.manifest.id,
        created_at=backup.manifest.created_at,
        pinned=any(each.pinned for each in everywhere),
        proven=backup.proven.level if backup.proven else None,
        proven_anywhere=max(proofs, key=EVIDENCE_LEVELS.index, default=None),
        failed=backup.failed,
        server=backup.manifest.system_identifier,
    )


@dataclass(frozen=True)
class Decision:
    id: str
    keep: bool
    reasons: tuple[str, ...]


Kept = tuple[Candidate, str]


def plan_prune(backups: Iterable[Candidate], policy: Policy, *, now: datetime) -> list[Decision]:
    """Decide about every backup of one database in one repository, newest first; each server's apart.

    A backup is good when its newest verification did not fail and it is not dated after ``now``. Only good ones count
    for the policy's rules, and ``keep_within`` looks back from the newest of them, so that a schedule that died loses
    nothing. Kept whatever the policy: the newest good backup, for every level a restore has to earn the newest good
    one proven to it or beyond, pinned ones, and those dated in the future. One that failed verification goes only
    when a newer good one exists. A policy without any rule keeps everything.

    Planning again over what was kept keeps all of it. A rule counts its buckets from the newest, and the newest backup
    of each counted bucket was kept. The oldest backup is kept while buckets are missing; where it was not, there were
    enough of them, and there still are.
    """
    newest_first = sorted(backups, key=lambda backup: (backup.created_at, backup.id), reverse=True)
    if len({backup.id for backup in newest_first}) < len(newest_first):
        raise ValueError("a backup is listed twice; repositories are pruned one by one")
    if policy.is_empty:
        return [Decision(backup.id, keep=True, reasons=("no policy",)) for backup in newest_first]
    servers: defaultdict[str | None, list[Candidate]] = defaultdict(list)
    for backup in newest_first:
        servers[backup.server].append(backup)
    decided = {decision.id: decision for of_server in servers.values() for decision in _decide(of_server, policy, now)}
    return [decided[backup.id] for backup in newest_first]


def _decide(newest_first: Sequence[Candidate], policy: Policy, now: datetime) -> Iterator[Decision]:
    good = [backup for backup in newest_first if not backup.failed and backup.created_at <= now]
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    kept = chain(_counted(good, policy), _within(good, policy), _proofs(good), _exempt(newest_first, good, now))
    for backup, reason in kept:
        reasons[backup.id].append(reason)
    for backup in newest_first:
        if backup.id in reasons:
            yield Decision(backup.id, keep=True, reasons=tuple(reasons[backup.id]))
        else:
            why = "failed verification, a newer good one exists" if backup.failed else "kept by no rule"
            yield Decision(backup.id, keep=False, reasons=(why,))


def _counted(good: Sequence[Candidate], policy: Policy) -> Iterator[Kept]:
    """Each rule on its own: the newest backup of each bucket while the count lasts, and the oldest if it does."""
    for rule, bucket_of in RULES.items():
        left, last_bucket = policy.count(rule), None
        for rank, backup in enumerate(good, start=1):
            if left == 0:
                break
            bucket = bucket_of(rank, backup.created_at.astimezone(UTC))
            if bucket != last_bucket:
                yield backup, f"{rule} {bucket}"
                left, last_bucket = left - 1, bucket
            elif rank == len(good):
                yield backup, f"oldest {rule}"


def _within(good: Sequence[Candidate], policy: Policy) -> Iterator[Kept]:
    if policy.keep_within:
        reason = f"within {_format_duration(policy.keep_within)}"
        for backup in good:
            if good[0].created_at - backup.created_at < policy.keep_within:
                yield backup, reason


def _proofs(good: Sequence[Candidate]) -> Iterator[Kept]:
    """The newest good backup, and the newest one for every level worth protecting: the strongest alone grows old."""
    if good:
        yield good[0], "newest good"
    for level in PROTECTED_LEVELS:
        enough = EVIDENCE_LEVELS[EVIDENCE_LEVELS.index(level) :]
        words = f"newest proven {level}" + (" or better" if len(enough) > 1 else "")
        here = next((backup for backup in good if backup.proven in enough), None)
        anywhere = next((backup for backup in good if backup.proven_anywhere in enough), None)
        if here:
            yield here, words
        if anywhere and anywhere is not here:
            yield anywhere, f"{words}, in another repository"


def _exempt(newest_first: Sequence[Candidate], good: Sequence[Candidate], now: datetime) -> Iterator[Kept]:
    """Those that stay without counting for anything."""
    for backup in newest_first:
        if backup.pinned:
            yield backup, "pinned"
        if backup.created_at > now:
            yield backup, "dated in the future"
        elif backup.failed and not (good and good[0].created_at > backup.created_at):
            yield backup, "failed verification, no newer good one exists"


def parse_duration(text: str) -> timedelta:
    """``1y5m7d2h`` as restic writes it, and weeks: a year is 365 days, a month 30. Raises ValueError."""
    parts = re.findall(r"([0-9]+)([ymwdh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write it like 30d, 2w or 1y5m7d2h (y, m, w, d, h)")
    amounts = {unit: number for number, unit in parts}
    if len(amounts) < len(parts):
        raise ValueError(f"{text!r} names a unit twice")
    try:
        days = sum(int(amounts.get(unit, 0)) * length for unit, length in DAYS.items())
        return timedelta(days=days, hours=int(amounts.get("h", 0)))
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{text[:20]!r} is too long a duration") from error


def _format_duration(duration: timedelta) -> str:
    hours, rest = divmod(duration - timedelta(days=duration.days), timedelta(hours=1))
    amounts = ((duration.days, "d"), (hours, "h"), (rest.seconds, "s"))
    return "".join(f"{amount}{unit}" for amount, unit in amounts if amount)
