"""When things should happen: five cron fields in a time zone. Pure: the clock is an argument.

Times are expected as cron means them: what falls into the hour that summer time skips runs right after it, what falls
into the hour that comes twice runs once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

FIELD = re.compile(r"(\*|\w+(-\w+)?)(/\d+)?(,(\*|\w+(-\w+)?)(/\d+)?)*")
"""What crontab(5) knows; the library would also take ``L`` and ``#``, which no cron does."""

NOT_CRON = re.compile(r"\dL|\bLW?\b", re.IGNORECASE)
FOLD = timedelta(hours=3)
"""Longer than any clock is put back: from so far beyond a moment the steps to it are in order."""


@dataclass(frozen=True)
class Schedule:
    """``expression`` (minute, hour, day of the month, month, day of the week) by the clocks of ``timezone``.

    Raises ValueError, in words for the configuration, when it is none or never comes.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        fields = self.expression.split()
        if len(fields) != 5 or not all(FIELD.fullmatch(field) and not NOT_CRON.search(field) for field in fields):
            raise ValueError('must be five cron fields, for example "0 3 * * *" for every day at 03:00')
        zone = time_zone(self.timezone)
        if next(self._steps(datetime(2000, 1, 1, tzinfo=zone)), None) is None:
            raise ValueError("never comes")

    def last_run(self, now: datetime) -> datetime | None:
        """The latest moment of the schedule that is not after ``now``."""
        start = (now + FOLD).astimezone(time_zone(self.timezone))
        return next((moment for moment in self._steps(start, reverse=True) if moment <= now), None)

    def next_run(self, now: datetime) -> datetime | None:
        """The first moment of the schedule after ``now``."""
        start = (now - FOLD).astimezone(time_zone(self.timezone))
        return next((moment for moment in self._steps(start) if moment > now), None)

    def interval(self, now: datetime) -> timedelta | None:
        """How long it may be between two runs around ``now``: the longer gap of those before and after the last run.

        So the Monday after a weekend without runs is no alarm.
        """
        last, following = self.last_run(now), self.next_run(now)
        before = self.last_run(last - timedelta(seconds=1)) if last else None
        moments = [moment for moment in (before, last, following) if moment]
        return max((later - earlier for earlier, later in pairwise(moments)), default=None)

    def _steps(self, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        from cronsim import CronSim, CronSimError

        try:
            steps = CronSim(self.expression, start, reverse=reverse)
        except CronSimError as error:
            raise ValueError(f"is no cron expression ({str(error)[:1].lower()}{str(error)[1:]})") from error
        return (moment.astimezone(UTC) for moment in steps)


def time_zone(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises ValueError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is no time zone this machine knows, like Europe/Berlin (Debian: apt-get install tzdata)"
        ) from error
