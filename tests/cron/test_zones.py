"""A schedule of one zone, run by a cron that knows only another: each moment is run once, soon, and nothing else is."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opsctl.cron.zones import machine_zone, translated
from opsctl.schedule import Schedule

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns")
EXPRESSIONS = (
    *("0 3 * * *", "30 2 * * *", "0 */6 * * *", "15 1 * * 1-5", "0 4 1 * *", "30 1,2 * * SUN", "10 23 13 * 5"),
    *("*/30 2 * * *", "0,45 1 28-31 * *", "59 23 * 3,10 *"),
)
CHANGES = (
    *("2026-03-08T07:00Z", "2026-11-01T06:00Z", "2026-03-29T01:00Z", "2026-10-25T01:00Z"),
    *("2026-04-04T15:00Z", "2026-10-03T15:30Z", "2026-06-30T00:00Z", "2026-12-31T00:00Z"),
)
"""When clocks are changed somewhere, and two quiet days."""


def moments(schedule, begin, end):
    moment = schedule.next_run(begin)
    while moment and moment <= end:
        yield moment
        moment = schedule.next_run(moment)


@settings(max_examples=25)
@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES),
    st.sampled_from(ZONES),
    st.sampled_from(CHANGES),
    st.integers(-24, 24),
)
def test_every_moment_is_run_once(expression, zone, machine, change, hours):
    """Each moment has one call of cron that is due, at it or soon after; also on days when clocks are changed."""
    # Where clocks are changed by half an hour, the library leaves out a moment of such an expression, once a year.
    assume("*/" not in expression or zone != "Australia/Lord_Howe")
    schedule = Schedule(expression, zone)
    translation = translated(schedule, ZoneInfo(machine), year=2026)
    begin = datetime.fromisoformat(change) + timedelta(hours=hours - 36)
    end, slack = begin + timedelta(days=3), timedelta(hours=2)

    calls = list(moments(translation.schedule, begin, end))
    if not translation.is_exact:
        calls = [call for call in calls if translation.is_due(schedule, call)]
    served = [schedule.last_run(call) for call in calls]
    wanted = set(moments(schedule, begin - slack, end))

    assert len(set(served)) == len(served)
    assert all(moment <= call <= moment + slack for moment, call in zip(served, calls, strict=True))
    assert set(served) <= wanted
    assert all(moment <= begin or moment > end - slack for moment in wanted - set(served))


@pytest.mark.parametrize(
    ("expression", "zone", "machine", "translation", "is_exact"),
    [
        ("0 3 * * *", "Europe/Berlin", "Europe/Paris", "0 3 * * *", True),  # the same clocks under another name
        ("*/5 * * * *", "Europe/Berlin", "UTC", "*/5 * * * *", True),  # every hour is every hour
        ("30 2 * * *", "Asia/Kolkata", "UTC", "0 21 * * *", True),  # no summer time: shifted, all year
        ("0 3 * * *", "Europe/Berlin", "UTC", "0 1,2 * * *", False),
        (
            "0 3 * * *",
            "America/St_Johns",
            "America/New_York",
            "30 0,1,2 * * *",
            False,
        ),  # an hour apart, one night a year
        ("0 3 * * 0", "UTC", "America/New_York", "0 22,23 * * *", False),  # it may be Saturday there
    ],
)
def test_what_cron_is_told(expression, zone, machine, translation, is_exact):
    """The schedule's own words wherever they say the same; a guard only where one line cannot say it."""
    found = translated(Schedule(expression, zone), ZoneInfo(machine), year=2026)

    assert (found.schedule.expression, found.is_exact) == (translation, is_exact)


def test_a_call_that_cron_makes_late_is_for_its_own_moment():
    """A machine that is busy for minutes, or a run that waits for its jitter, does not make a call another one's."""
    schedule = Schedule("30 2 * * *", "Europe/Berlin")
    translation = translated(schedule, UTC, year=2026)

    def is_due(text):
        return translation.is_due(schedule, datetime.fromisoformat(text))

    assert translation.schedule.expression == "30 0,1 * * *"
    assert [is_due(f"2026-07-01T{time}Z") for time in ("00:30:01", "00:44:59", "01:30:02")] == [True, True, False]
    assert [is_due(f"2026-12-01T{time}Z") for time in ("00:30:01", "01:30:02")] == [False, True]
    # 02:30 does not exist on that day: it is run in the next call, not left out.
    assert [is_due(f"2026-03-29T{time}Z") for time in ("00:30:01", "01:30:02")] == [False, True]


def test_the_machines_clocks(tmp_path):
    """They are in a file without a name; where there is none, or it is none, cron goes by UTC."""
    (tmp_path / "localtime").symlink_to("/usr/share/zoneinfo/Europe/Berlin")
    (tmp_path / "broken").write_text("Europe/Berlin")
    summer = datetime(2026, 7, 1, tzinfo=UTC)

    assert summer.astimezone(machine_zone(tmp_path / "localtime")).utcoffset() == timedelta(hours=2)
    assert machine_zone(tmp_path / "none") is UTC
    assert machine_zone(tmp_path / "broken") is UTC
