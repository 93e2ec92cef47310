"""A schedule of one time zone for a cron that knows only the machine's. Pure, but for the machine's clocks.

Debian's cron ignores CRON_TZ, and cronie's changes every line that follows it. So the fields are translated: to one
expression where that says the same all year, else to one that comes at least as often, and whose every call asks
``is_due`` before it runs anything.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from opsctl.schedule import Schedule

LOCALTIME = Path("/etc/localtime")
DAY_MINUTES = 24 * 60
DAY = timedelta(days=1)
STEP = timedelta(minutes=15)
"""Zones that change their clocks in the same night do not do so at once: for an hour they differ by another amount."""


@dataclass(frozen=True)
class Translation:
    """``schedule`` is by the machine's clocks; unless it ``is_exact``, not everything it brings is due."""

    schedule: Schedule
    is_exact: bool

    def is_due(self, original: Schedule, now: datetime) -> bool:
        """Whether the call of the machine's cron at ``now`` is the first since a moment of the original."""
        called = self.schedule.last_run(now)
        before = called and self.schedule.last_run(called - timedelta(seconds=1))
        wanted = called and original.last_run(called)
        return wanted is not None and (before is None or wanted > before)


def machine_zone(path: Path = LOCALTIME) -> tzinfo:
    """The clocks cron goes by."""
    try:
        with path.open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC


def translated(schedule: Schedule, machine: tzinfo, *, year: int) -> Translation:
    """The schedule by the clocks of ``machine``, as they differ in ``year`` and the next one."""
    differences = _differences(schedule.clocks, machine, year)
    if differences == {0}:
        return Translation(Schedule(schedule.expression, zone=machine), is_exact=True)
    fields = schedule.fields
    wanted = [hour * 60 + minute for hour in fields.hours for minute in fields.minutes]
    shifted = {difference: [time + difference for time in wanted] for difference in differences}
    times = {difference: {time % DAY_MINUTES for time in each} for difference, each in shifted.items()}
    minutes = sorted({time % 60 for each in times.values() for time in each})
    hours = sorted({time // 60 for each in times.values() for time in each})
    everything = {hour * 60 + minute for hour in hours for minute in minutes}
    on_another_day = any(not 0 <= time < DAY_MINUTES for each in shifted.values() for time in each)
    minute, hour, day, month, weekday = schedule.expression.split()
    is_every_day = fields.days is None and fields.months is None and fields.weekdays is None
    is_exact = all(each == everything for each in times.values()) and (is_every_day or not on_another_day)
    parts = [
        minute if tuple(minutes) == fields.minutes else ",".join(map(str, minutes)),
        hour if tuple(hours) == fields.hours else ",".join(map(str, hours)),
        *(["*"] * 3 if on_another_day else [day, month, weekday]),
    ]
    return Translation(Schedule(" ".join(parts), zone=machine), is_exact=is_exact)


def _differences(zone: tzinfo, machine: tzinfo, year: int) -> set[int]:
    """How many minutes the machine's clocks are ahead, in the course of two years."""

    def offsets(moment: datetime) -> tuple[timedelta, ...]:
        return tuple(moment.astimezone(each).utcoffset() or timedelta() for each in (machine, zone))

    first = datetime(year, 1, 1, tzinfo=UTC)
    days = [first + DAY * number for number in range(2 * 366)]
    moments = list(days)
    for day in days:
        if offsets(day) != offsets(day + DAY):
            moments += [day + STEP * number for number in range(DAY // STEP)]
    return {round((here - there).total_seconds() / 60) for here, there in map(offsets, moments)}
