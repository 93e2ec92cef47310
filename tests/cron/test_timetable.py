"""When run-scheduled begins what, while clocks do what they like."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.cron.jobs import Job
from opsctl.cron.timetable import SET_BACK, Timetable
from opsctl.schedule import Schedule

NIGHTLY = Job("backup", Schedule("0 3 * * *", "Europe/Berlin"))
OFTEN = Job("doctor", Schedule("*/5 * * * *"))
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def at(text):
    return datetime.fromisoformat(text)


def begun(timetable, now):
    return [(job.command, moment) for job, moment in timetable.due(now)]


@settings(max_examples=50)
@given(st.lists(st.floats(-7200, 7200), max_size=60))
def test_no_moment_is_served_twice_or_early(steps):
    """Whatever the clock does, up to three hours back: every run is for a moment of its own that has come."""
    timetable, now, furthest, served = Timetable([NIGHTLY, OFTEN], {}, now=NOW), NOW, NOW, []
    for step in steps:
        now = max(now + timedelta(seconds=step), furthest - SET_BACK)
        furthest = max(now, furthest)
        for job, moment in timetable.due(now):
            assert moment <= now
            served.append((job.command, moment))

    for command in ("backup", "doctor"):
        moments = [moment for name, moment in served if name == command]
        assert moments == sorted(set(moments))


def test_a_clock_that_jumps_ahead_brings_one_run():
    """A machine that slept for a week has missed seven nights: it takes one backup, the last one's."""
    timetable = Timetable([NIGHTLY], {}, now=NOW)

    assert begun(timetable, NOW + timedelta(days=7)) == [("backup", at("2026-12-01T02:00Z"))]
    assert begun(timetable, NOW + timedelta(days=7, seconds=1)) == []


def test_a_clock_that_was_wrong_by_a_year_stops_nothing():
    """Set back by days, the schedule goes on from the new time; by an hour, what was served is not served again."""
    timetable = Timetable([NIGHTLY], {}, now=NOW + timedelta(days=365))

    assert begun(timetable, NOW) == []
    assert begun(timetable, at("2026-11-25T02:00:01Z")) == [("backup", at("2026-11-25T02:00Z"))]
    assert begun(timetable, at("2026-11-25T01:30Z")) == []
    assert begun(timetable, at("2026-11-25T02:00:01Z")) == []


def test_summer_time_moves_nothing_and_repeats_nothing():
    """Through both changes of the clocks there is one run for each night."""
    night = Job("backup", Schedule("30 2 * * *", "Europe/Berlin"))
    for begin, count in (("2026-03-27T12:00Z", 4), ("2026-10-23T12:00Z", 4)):
        timetable, now = Timetable([night], {}, now=at(begin)), at(begin)
        served = []
        while now < at(begin) + timedelta(days=4):
            now += timedelta(minutes=7)
            served += begun(timetable, now)
        assert len(served) == len(set(served)) == count


def test_a_missed_run_is_caught_up_once():
    """If the history says that a run did not begin; not for a new host, and what doctor missed is history."""
    last = {"backup": at("2026-11-23T02:00Z"), "doctor": at("2026-11-23T02:00Z")}
    timetable = Timetable([NIGHTLY, OFTEN], last, now=NOW)

    assert begun(timetable, NOW) == [("backup", at("2026-11-24T02:00Z"))]
    assert begun(timetable, NOW) == []
    assert begun(Timetable([NIGHTLY, OFTEN], {}, now=NOW), NOW) == []
    assert begun(Timetable([NIGHTLY], {"backup": at("2026-11-24T02:00:03Z")}, now=NOW), NOW) == []


def test_the_delay_of_this_host():
    """With jitter a run begins later than its minute, and still counts as that minute's."""
    late = Job("backup", NIGHTLY.schedule, jitter_seconds=600, delay_seconds=300)
    timetable = Timetable([late], {}, now=NOW)

    assert timetable.next_at(late) == at("2026-11-25T02:05Z")
    assert begun(timetable, at("2026-11-25T02:04:59Z")) == []
    assert begun(timetable, at("2026-11-25T02:05Z")) == [("backup", at("2026-11-25T02:00Z"))]
