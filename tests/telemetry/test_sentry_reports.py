"""What leaves for Sentry, how, and what becomes of it when Sentry is not there. See test_sentry.py for whole runs."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from opsctl.errors import DumpFailed
from opsctl.schedule import Schedule
from opsctl.telemetry.recent import Recent
from opsctl.telemetry.redact import Redactor
from opsctl.telemetry.sentry import Monitor, Sentry, Span
from opsctl.telemetry.spool import Spool

CANARY = "hunter2-canary"
NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
TRACE = "0123456789abcdef0123456789abcdef"
NIGHTLY = Monitor("opsctl-backup", Schedule("0 3 * * *", "Europe/Berlin"), 10, 360)


@pytest.fixture
def report_to(tmp_path):
    """``report_to(dsn)``: one run's reports, with the spool of this test."""

    def make(dsn, *, now=NOW):
        log = Recent()
        log(None, "warning", {"event": "backup.warning", "level": "warning", "message": "odd", "table": f"t_{CANARY}"})
        return Sentry(
            dsn,
            environment=None,
            redactor=Redactor([CANARY]),
            spool=Spool(tmp_path / "sentry"),
            clock=lambda: now,
            trace_id=TRACE,
            tags={"command": "backup"},
            log=log,
        )

    return make


def fail():
    raise DumpFailed(f"pg_dump failed for {CANARY}", hint=f"Look at {CANARY}.") from OSError(f"no {CANARY}")


def failure():
    """As one is raised: with a cause, and with a stack."""
    with pytest.raises(DumpFailed) as raised:
        fail()
    return raised.value


def report_everything(sentry):
    """Every kind of envelope there is, with a secret wherever a text may stand."""
    sentry.check_in(NIGHTLY, "in_progress", started_at=NOW)
    sentry.failure(failure(), fingerprint=["opsctl", CANARY], tags={"where": CANARY}, details={"hint": [CANARY]})
    sentry.message(f"check {CANARY}", level="warning", fingerprint=["x"], details={"deep": {"er": {CANARY: CANARY}}})
    spans = [Span(f"Backing up {CANARY}", NOW, NOW + timedelta(seconds=1))]
    finished = NOW + timedelta(seconds=2)
    sentry.trace(f"opsctl {CANARY}", started_at=NOW, finished_at=finished, is_ok=False, spans=spans, rate=1)
    sentry.check_in(NIGHTLY, "error", started_at=NOW, seconds=2.0)


def spooled(tmp_path):
    return [path.read_bytes() for path in Spool(tmp_path / "sentry").waiting()]


def test_no_kind_of_envelope_holds_a_secret(report_to, recorder, tmp_path):
    """Exception and cause, breadcrumbs, tags, details, spans, check-ins: on the wire, and in the spool."""
    sentry = report_to(recorder.dsn)
    report_everything(sentry)
    assert sentry.finish(30)
    assert [name for each in recorder.received for name, _ in each.items] == [
        "check_in", "event", "event", "transaction", "check_in",
    ]  # fmt: skip
    (crumb,) = recorder.items("event")[0]["breadcrumbs"]["values"]
    assert crumb["data"] == {"table": "t_***"}
    recorder.status = 500
    report_everything(again := report_to(recorder.dsn))
    again.finish(30)
    kept = spooled(tmp_path)
    assert len(kept) == 4
    for body in (*kept, *(each.body for each in recorder.received)):
        assert CANARY.encode() not in body
        assert b"0123canary4567" not in body
    assert b"***" in b"".join(kept)


def test_check_ins_say_when_the_next_one_is_due(report_to, recorder):
    """One id from begin to end, and what Sentry needs to know to miss a run."""
    sentry = report_to(recorder.dsn)
    sentry.check_in(NIGHTLY, "in_progress", started_at=NOW)
    sentry.check_in(NIGHTLY, "ok", started_at=NOW, seconds=61.5)
    sentry.finish(30)
    began, ended = recorder.items("check_in")
    assert began["check_in_id"] == ended["check_in_id"]
    assert (began["status"], ended["status"], ended["duration"]) == ("in_progress", "ok", 61.5)
    assert began["monitor_slug"] == "opsctl-backup"
    assert began["monitor_config"] == ended["monitor_config"]
    assert {
        "schedule": {"type": "crontab", "value": "0 3 * * *"},
        "timezone": "Europe/Berlin",
        "checkin_margin": 10,
        "max_runtime": 360,
    }.items() <= began["monitor_config"].items()


def test_traces_are_a_sample_and_belong_to_the_events(report_to, recorder):
    """Phases of a run as spans under the trace its events name; with a rate of 0 nothing."""
    sentry = report_to(recorder.dsn)
    finished = NOW + timedelta(seconds=5)
    sentry.trace("opsctl backup", started_at=NOW, finished_at=finished, is_ok=True, spans=[], rate=0)
    assert not sentry._is_used
    spans = [Span("Backing up app", NOW, finished)]
    sentry.failure(failure(), fingerprint=["x"])
    sentry.trace("opsctl backup", started_at=NOW, finished_at=finished, is_ok=False, spans=spans, rate=1)
    sentry.finish(30)
    (event,), (transaction,) = recorder.items("event"), recorder.items("transaction")
    trace = transaction["contexts"]["trace"]
    assert (trace["trace_id"], trace["status"]) == (TRACE, "internal_error")
    assert event["contexts"]["trace"]["trace_id"] == TRACE
    (span,) = transaction["spans"]
    assert span["parent_span_id"] == trace["span_id"]
    assert (span["description"], span["timestamp"] - span["start_timestamp"]) == ("Backing up app", 5)


def test_what_could_not_be_sent_is_sent_by_the_next_run(report_to, recorder, tmp_path):
    """With its own id and time, and the time it is sent at: else Sentry would move it by the difference."""
    down = report_to("http://0123canary4567@127.0.0.1:1/7")
    down.failure(failure(), fingerprint=["night"])
    assert down.finish(30)  # tried and kept: nothing is left to wait for
    (kept,) = spooled(tmp_path)
    event = json.loads(kept.split(b"\n")[2])
    later = NOW + timedelta(hours=3)
    up = report_to(recorder.dsn, now=later)
    up.message("now", level="info", fingerprint=["x"])
    up.send_spooled()
    assert up.finish(30)
    assert [each["fingerprint"] for each in recorder.items("event")] == [["x"], ["night"]]
    assert recorder.items("event")[1] == event
    assert json.loads(recorder.received[1].body.split(b"\n")[0]) == {
        "event_id": event["event_id"],
        "sent_at": "2026-11-24T06:00:00.000Z",
    }
    assert spooled(tmp_path) == []


@pytest.mark.parametrize(("status", "kept"), [(500, 1), (429, 1), (403, 1), (302, 1), (400, 0), (413, 0)])
def test_what_is_worth_another_try(report_to, recorder, tmp_path, status, kept):
    """A server in trouble, a limit and a wrong DSN go by; an envelope that is not accepted never will be."""
    recorder.status, recorder.location = status, f"http://{recorder.address}/elsewhere"
    sentry = report_to(recorder.dsn)
    sentry.failure(failure(), fingerprint=["x"])
    sentry.finish(30)
    assert len(spooled(tmp_path)) == kept
    assert recorder.paths == ["/api/7/envelope/"]  # no redirect was followed


def test_nothing_is_lost_to_a_server_that_never_answers(report_to, recorder, hole, tmp_path):
    """What is under way when the time is up is kept, once; a check-in that says `begun` says nothing any more."""
    stalled = report_to(f"http://key@{hole}/7")
    report_everything(stalled)
    assert not stalled.finish(0.3)
    assert len(spooled(tmp_path)) == 4
    nothing_new = report_to(recorder.dsn)
    nothing_new.send_spooled()
    nothing_new.finish(30)
    kinds = sorted(name for each in recorder.received for name, _ in each.items)
    assert kinds == ["check_in", "event", "event", "transaction"]
    assert [each["status"] for each in recorder.items("check_in")] == ["error"]


def test_a_check_in_does_not_count_for_the_next_night(report_to, recorder):
    """Sentry takes a check-in for one of the moment it arrives: yesterday's must not stand in for today's."""
    for moment in (NOW, NOW + timedelta(hours=26)):
        down = report_to("http://key@127.0.0.1:1/7", now=moment)
        down.check_in(NIGHTLY, "ok", started_at=moment, seconds=float(moment.day))
        down.finish(30)
    up = report_to(recorder.dsn, now=NOW + timedelta(hours=27))
    up.send_spooled()
    up.finish(30)
    assert [each["duration"] for each in recorder.items("check_in")] == [25.0]


@pytest.mark.parametrize("dsn", ["not a dsn", "http://127.0.0.1/7", "ftp://key@127.0.0.1/7"])
def test_a_dsn_that_is_none(report_to, dsn):
    """It is said as a ValueError, which the one who reports swallows; waiting for it is harmless."""
    sentry = report_to(dsn)
    with pytest.raises(ValueError, match=r"."):
        sentry.message("x", level="info", fingerprint=["x"])
