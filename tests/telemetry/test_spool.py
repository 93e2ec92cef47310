"""What cannot be sent is kept for a later run, within bounds."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.telemetry.spool import Fate, Spool

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "sentry"


def delivered(spool, *, now=NOW, fates=()):
    """What a delivery sends; ``fates`` are what becomes of the first ones, the others are sent."""
    sent = []
    left = list(fates)

    def send(data):
        sent.append(data)
        return left.pop(0) if left else Fate.SENT

    spool.deliver(send, now=now)
    return sent


def test_oldest_is_sent_first_and_once(folder):
    """In the order they were put, and what is sent is gone."""
    spool = Spool(folder)
    for number in (2, 0, 1):
        spool.put(b"%d" % number, now=NOW + timedelta(seconds=number))
    assert delivered(spool) == [b"0", b"1", b"2"]
    assert delivered(spool) == []


def test_only_the_owner_reads_it(folder):
    """0600 in 0700: an envelope tells much about a server."""
    Spool(folder).put(b"x", now=NOW)
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_sent_stays_and_what_is_refused_goes(folder):
    """A server that is down ends the delivery; one that refuses a letter would refuse it for ever."""
    spool = Spool(folder)
    for number in range(4):
        spool.put(b"%d" % number, now=NOW + timedelta(seconds=number))
    assert delivered(spool, fates=[Fate.SENT, Fate.REFUSED, Fate.UNSENT]) == [b"0", b"1", b"2"]
    assert delivered(spool) == [b"2", b"3"]


def test_what_is_past_its_use_is_dropped(folder):
    spool = Spool(folder)
    spool.put(b"late", now=NOW, until=NOW + timedelta(minutes=5))
    spool.put(b"in time", now=NOW, until=NOW + timedelta(hours=5))
    assert delivered(spool, now=NOW + timedelta(hours=1)) == [b"in time"]
    assert spool.waiting() == []


def test_two_runs_do_not_send_the_same(folder):
    """While one run delivers, another one finds nothing to do."""
    spool, other = Spool(folder), Spool(folder)
    spool.put(b"x", now=NOW)
    seen = []

    def send(data):
        seen.append((data, delivered(other)))
        return Fate.SENT

    spool.deliver(send, now=NOW)
    assert seen == [(b"x", [])]


def test_nothing_spooled_makes_no_folder(folder):
    """A run that has nothing to keep writes nothing."""
    assert delivered(Spool(folder)) == []
    assert not folder.exists()


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=15),
    most_files=st.integers(1, 5),
    most_bytes=st.integers(30, 60),
)
def test_never_more_than_its_bounds_and_the_latest_stay(tmp_path_factory, sizes, most_files, most_bytes):
    """However much is put, what is kept are the latest ones that fit."""
    spool = Spool(tmp_path_factory.mktemp("spool"), most_files=most_files, most_bytes=most_bytes)
    for number, size in enumerate(sizes):
        spool.put(bytes([number]) * size, now=NOW + timedelta(seconds=number))
    kept = delivered(spool)
    assert 1 <= len(kept) <= most_files
    assert sum(map(len, kept)) <= most_bytes
    assert [each[0] for each in kept] == list(range(len(sizes)))[-len(kept) :]
