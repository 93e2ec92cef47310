"""When things should happen: five cron fields in a time zone. Pure: the clock is an argument.

Times are expected as cron means them: what falls into the hour that summer time skips runs right after it, what falls
into the hour that comes twice runs once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

SCHEDULED = ("backup", "drill", "doctor", "sync", "prune")
"""The commands that [schedule] may give a time."""

FIELD = re.compile(r"(\*|\w+(-\w+)?)(/\d+)?(,(\*|\w+(-\w+)?)(/\d+)?)*")
"""What crontab(5) knows; the library would also take ``L`` and ``#``, which no cron does."""

NOT_CRON = re.compile(r"\dL|\bLW?\b", re.IGNORECASE)
FOLD = timedelta(hours=3)
"""Longer than any clock is put back: from so far beyond a moment the steps to it are in order."""


SAMPLE = 50
"""So many runs in a row show the shortest distance between two."""


@dataclass(frozen=True)
class Fields:
    """The minutes, hours … of an expression; Sunday is 0. None where every day of the month, month or week will do.

    ``is_any_day``: a day of the month or one of the week is enough, as cron has it when both are named.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None
    is_any_day: bool


@dataclass(frozen=True)
class Schedule:
    """``expression`` (minute, hour, day of the month, month, day of the week) by the clocks of ``timezone``.

    ``zone`` are the clocks themselves where they have no name. Raises ValueError, in words for the configuration, when
    it is none or never comes.
    """

    expression: str
    timezone: str = "UTC"
    zone: tzinfo | None = None

    def __post_init__(self) -> None:
        fields = self.expression.split()
        if len(fields) != 5 or not all(FIELD.fullmatch(field) and not NOT_CRON.search(field) for field in fields):
            raise ValueError('must be five cron fields, for example "0 3 * * *" for every day at 03:00')
        if next(self._steps(datetime(2000, 1, 1, tzinfo=self.clocks)), None) is None:
            raise ValueError("never comes")

    @property
    def clocks(self) -> tzinfo:
        return self.zone or time_zone(self.timezone)

    @property
    def fields(self) -> Fields:
        from cronsim import CronSim

        read = CronSim(self.expression, datetime(2000, 1, 1, tzinfo=UTC))
        weekdays = {day % 7 for day in read.weekdays if isinstance(day, int)}
        return Fields(
            tuple(sorted(read.minutes)),
            tuple(sorted(read.hours)),
            None if len(read.days) == 31 else tuple(sorted(read.days)),
            None if len(read.months) == 12 else tuple(sorted(read.months)),
            None if len(weekdays) == 7 else tuple(sorted(weekdays)),
            is_any_day=not read.day_and,
        )

    @cached_property
    def shortest(self) -> timedelta:
        """The shortest distance between two runs; the same whenever it is asked for."""
        from cronsim import CronSim

        moments = islice(CronSim(self.expression, datetime(2024, 1, 1, tzinfo=UTC)), SAMPLE)
        return min((later - earlier for earlier, later in pairwise(moments)), default=timedelta(days=1))

    def last_run(self, now: datetime) -> datetime | None:
        """The latest moment of the schedule that is not after ``now``."""
        start = (now + FOLD).astimezone(self.clocks)
        return next((moment for moment in self._steps(start, reverse=True) if moment <= now), None)

    def next_run(self, now: datetime) -> datetime | None:
        """The first moment of the schedule after ``now``."""
        start = (now - FOLD).astimezone(self.clocks)
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
