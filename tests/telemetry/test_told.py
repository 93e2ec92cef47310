"""The same trouble is told once, again after a while, and its end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from opsctl.telemetry.told import Known, Memory, News, Trouble, news, remembered

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
DAY = timedelta(hours=24)
FAILED = Trouble("backup/app", "database_unreachable/refused", "backup of app failed", "No connection.")


def look(known, troubles, well, now):
    return news(known, troubles, well, now=now, repeat_after=DAY)


def night(known, trouble, now, *, arrives=True):
    """One run: what is told, and what is known afterwards."""
    troubles, well = ([trouble], ()) if trouble else ([], {"backup/app"})
    told = look(known, troubles, well, now)
    return told, remembered(known, troubles, well, told if arrives else News(), now=now)


def test_a_failure_is_told_once_until_it_is_over():
    known = {}
    told, known = night(known, FAILED, NOW)
    assert told == News(new=(FAILED,))
    told, known = night(known, FAILED, NOW + timedelta(hours=1))
    assert not told
    told, known = night(known, None, NOW + timedelta(hours=2))
    assert [each.subject for each in told.over] == ["backup of app failed"]
    assert known == {}
    told, known = night(known, None, NOW + timedelta(hours=3))
    assert not told
    assert night(known, FAILED, NOW + timedelta(hours=4))[0].new == (FAILED,)


def test_it_is_told_again_after_a_while_with_when_it_began():
    _, known = night({}, FAILED, NOW)
    _, known = night(known, FAILED, NOW + timedelta(hours=23))
    told, known = night(known, FAILED, NOW + timedelta(hours=25))
    assert told == News(again=((FAILED, NOW),))
    assert not night(known, FAILED, NOW + timedelta(hours=26))[0]


def test_another_cause_is_another_trouble():
    _, known = night({}, FAILED, NOW)
    other = replace(FAILED, cause="dump_failed")
    assert night(known, other, NOW + timedelta(hours=1))[0].new == (other,)


def test_what_did_not_arrive_is_told_by_the_next_run():
    """Nobody was reached: neither of the failure nor, later, of its end."""
    told, known = night({}, FAILED, NOW, arrives=False)
    told, known = night(known, FAILED, NOW + timedelta(hours=1))
    assert told.new == (FAILED,)
    assert known["backup/app"].since == "2026-11-24T03:00:00.000Z"
    told, known = night(known, None, NOW + timedelta(hours=2), arrives=False)
    assert told.over
    assert night(known, None, NOW + timedelta(hours=3))[0].over == told.over


def test_a_failure_nobody_was_told_of_ends_without_a_word():
    _, known = night({}, FAILED, NOW, arrives=False)
    told, known = night(known, None, NOW + timedelta(hours=1))
    assert not told
    assert known == {}


def test_what_was_not_looked_at_is_not_over():
    """A backup of one database says nothing about another."""
    _, known = night({}, FAILED, NOW)
    assert not look(known, [], {"backup/other"}, NOW)
    assert remembered(known, [], {"backup/other"}, News(), now=NOW) == known


@given(st.lists(st.tuples(st.sampled_from(["ok", "a", "b"]), st.booleans(), st.integers(1, 30)), max_size=30))
def test_every_failure_and_every_end_is_told_and_nothing_twice(nights):
    """Over any nights: who listens knows at every moment where something arrived whether it works, and why not."""
    known, now, believed = {}, NOW, "ok"
    for what, arrives, hours in nights:
        now += timedelta(hours=hours)
        trouble = None if what == "ok" else replace(FAILED, cause=what)
        told, known = night(known, trouble, now, arrives=arrives)
        if told.new:
            assert told.new[0].cause == what != believed
        if told.over:
            assert believed != what == "ok"
        if arrives:
            believed = what
        assert bool(known) == (believed != "ok" or what != "ok")


def test_memory_outlives_runs_and_a_torn_file(tmp_path):
    """What was told is known to the next run; a file that cannot be read makes it told once more, no error."""
    path = tmp_path / "state" / "told.json"
    Memory(path).remember([], {"backup/app"}, News(), now=NOW)
    assert not path.exists()
    Memory(path).remember([FAILED], (), News(new=(FAILED,)), now=NOW)
    at = "2026-11-24T03:00:00.000Z"
    assert Memory(path).read() == {"backup/app": Known(FAILED.cause, FAILED.subject, at, FAILED.cause, at)}
    for torn in ('{"backup/app": {"cau', "[1]", '{"a": {"x": 1}}', '{"a": 1}'):
        path.write_text(torn)
        assert Memory(path).read() == {}
