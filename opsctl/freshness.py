"""Which backups count, and how far apart they should be. Pure; the same for the checks and for the metrics."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median

from opsctl.catalog import Backup
from opsctl.schedule import Schedule
from opsctl.unusual import FEWEST

DAY = timedelta(hours=24)
TOLERANCE = timedelta(seconds=60)
"""How far in the future a backup may be dated: clocks of two hosts differ a little."""

COMPARED = 7
"""How many backups a size, a duration or a distance is compared with."""


def good_ones(backups: Sequence[Backup], now: datetime) -> list[Backup]:
    """Those that count, newest first: not known to be damaged, not dated in the future."""
    return [each for each in backups if not each.failed and each.created_at <= now + TOLERANCE]


def expected_interval(schedule: Schedule | None, backups: Sequence[Backup], now: datetime) -> timedelta:
    """How long it is between two backups: by the schedule, else as it was lately, else a day."""
    if schedule is not None:
        return schedule.interval(now) or DAY
    newest = [each.created_at for each in backups[: COMPARED + 1]]
    gaps = [(later - earlier).total_seconds() for later, earlier in pairwise(newest)]
    return max(timedelta(hours=1), timedelta(seconds=median(gaps))) if len(gaps) >= FEWEST else DAY
