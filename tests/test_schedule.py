"""When a run was last expected, and when the next one is: over weekends, through summer time, in any zone."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.schedule import Schedule

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
EXPRESSIONS = ("0 3 * * *", "30 2 * * *", "*/5 * * * *", "0 */6 * * *", "15 1 * * 1-5", "0 4 1 * *", "30 1,2 * * SUN")
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS)
def test_now_lies_between_the_last_run_and_the_next(expression, zone, now):
    """Whatever the zone does to its clocks: nothing lies between the two, and each is found from the other."""
    schedule = Schedule(expression, zone)
    last, following = schedule.last_run(now), schedule.next_run(now)

    assert last <= now < following
    assert schedule.next_run(last) == following
    assert schedule.last_run(following - timedelta(seconds=1)) == last
    assert schedule.last_run(following) == following
    assert schedule.interval(now) >= following - last


@pytest.mark.parametrize(
    ("expression", "now", "last", "following"),
    [
        # 02:30 does not exist on March 29, 2026 in Berlin: cron runs it at 03:00, which is 01:00 UTC.
        ("30 2 * * *", "2026-03-29T05:00Z", "2026-03-29T01:00Z", "2026-03-30T00:30Z"),
        # On October 25, 2026 it comes twice: once is enough.
        ("30 2 * * *", "2026-10-25T01:15Z", "2026-10-25T00:30Z", "2026-10-26T01:30Z"),
        ("30 2 * * *", "2026-10-25T01:45Z", "2026-10-25T00:30Z", "2026-10-26T01:30Z"),
        ("0 3 * * *", "2026-07-01T00:59:59Z", "2026-06-30T01:00Z", "2026-07-01T01:00Z"),
        ("0 3 * * *", "2026-07-01T01:00Z", "2026-07-01T01:00Z", "2026-07-02T01:00Z"),
        ("0 3 29 2 *", "2026-07-01T01:00Z", "2024-02-29T02:00Z", "2028-02-29T02:00Z"),
    ],
)
def test_summer_time_is_cron_s(expression, now, last, following):
    """A run in the hour that is skipped comes right after it; one in the hour that comes twice comes once."""
    schedule, moment = Schedule(expression, "Europe/Berlin"), datetime.fromisoformat(now)

    assert schedule.last_run(moment) == datetime.fromisoformat(last)
    assert schedule.next_run(moment) == datetime.fromisoformat(following)


def test_the_interval_is_the_longer_gap_around_the_last_run():
    """Nobody is alarmed on a Monday because there is no run on a Sunday."""
    weekdays = Schedule("0 3 * * 1-5")

    assert weekdays.interval(datetime(2026, 11, 22, 12, tzinfo=UTC)) == timedelta(days=3)  # a Sunday
    assert weekdays.interval(datetime(2026, 11, 23, 12, tzinfo=UTC)) == timedelta(days=3)  # the Monday
    assert weekdays.interval(datetime(2026, 11, 25, 12, tzinfo=UTC)) == timedelta(days=1)
    assert Schedule("0 3 * * *", "Europe/Berlin").interval(datetime(2026, 10, 25, 6, tzinfo=UTC)) == timedelta(hours=25)


@pytest.mark.parametrize(
    ("expression", "zone", "message"),
    [
        ("", "UTC", "five cron fields"),
        ("@daily", "UTC", "five cron fields"),
        ("0 0 3 * * *", "UTC", "five cron fields"),
        ("0 3 L * *", "UTC", "five cron fields"),
        ("0 3 * * 5L", "UTC", "five cron fields"),
        ("0 3 * * 1#2", "UTC", "five cron fields"),
        ("61 3 * * *", "UTC", "bad minute"),
        ("0 3 * * MOO", "UTC", "bad day-of-week"),
        ("0 3 30 2 *", "UTC", "bad day-of-month"),
        ("0 3 * * *", "Europe/Atlantis", "time zone"),
        ("0 3 * * *", "../etc/passwd", "time zone"),
    ],
)
def test_what_no_cron_would_run_is_refused(expression, zone, message):
    """In words for the configuration's author."""
    with pytest.raises(ValueError, match=message):
        Schedule(expression, zone)
