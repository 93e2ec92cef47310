"""Every run is on the record, whatever ends it; and the record never costs a run."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opsctl.cli.output import Outcome
from opsctl.cli.run_report import endings
from opsctl.errors import DoctorExit, HistoryUnavailable, Refused
from opsctl.history import Ending, History, MeasuredRestore

NOWHERE = "postgresql://me@127.0.0.1:1/app"
MONDAY = datetime(2026, 11, 23, 3, tzinfo=UTC)
HERE = {"host": "here", "pid": os.getpid()}


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.db")


def record(history, run_id, *found, at=MONDAY, command="backup", seconds=5):
    history.begin(run_id, command, at=at, **HERE)
    history.end(run_id, found, at=at + timedelta(seconds=seconds))


def done(database="app", outcome="done", **more):
    return Ending(database, outcome, 0 if outcome == "done" else 1, **more)


def check(status, *, because=None, target="app", id="db.connect"):  # noqa: A002
    return {"id": id, "target": target, "status": status, "because": because}


def report(*checks):
    return {"status": "ok", "verdict": {"cause": None, "summary": "…"}, "checks": list(checks)}


def test_run_as_it_was(history):
    """What was told of a run is read back as it was, per database; the newest comes first."""
    record(history, "r1", done("a", bytes=7, stored_bytes=3, backup_id="a-1"), done("b", "failed", message="refused"))
    record(history, "r2", done(None), at=MONDAY + timedelta(hours=1), command="prune")
    newest, a, b = history.runs()
    assert (newest.command, newest.database, newest.duration_seconds) == ("prune", None, 5)
    assert (a.database, a.outcome, a.bytes, a.stored_bytes, a.backup_id) == ("a", "done", 7, 3, "a-1")
    assert (b.database, b.outcome, b.message, b.started_at) == ("b", "failed", "refused", MONDAY)
    assert history.runs(command="backup", database="a") == (a,)
    assert history.runs(outcome="failed") == (b,)
    assert history.runs(since=MONDAY + timedelta(minutes=1)) == (newest,)
    assert history.runs(limit=1) == (newest,)


def test_failure_erases_no_success(history):
    """The last success outlives later failures, each database's for itself; a proof that needs attention is none."""
    record(history, "r1", done("a"), done("b"))
    record(history, "r2", done("a", "failed"), done("b", "attention"), at=MONDAY + timedelta(days=1))
    record(history, "r3", done("a"), command="verify")
    record(history, "r4", done("a", "attention"), command="verify", at=MONDAY + timedelta(days=1))
    assert {key: run.run_id for key, run in history.last_success().items()} == {
        ("backup", "a"): "r1",
        ("backup", "b"): "r2",
        ("verify", "a"): "r3",
    }
    assert {key: run.run_id for key, run in history.latest().items()} == {
        ("backup", "a"): "r2",
        ("backup", "b"): "r2",
        ("verify", "a"): "r4",
    }


def test_growth_is_bounded_and_totals_are_not(tmp_path):
    """Old runs go, what was counted stays, and so does the last success however old it is."""
    history = History(tmp_path / "history.db", kept_runs=10)
    record(history, "first", done())
    for number in range(40):
        record(history, f"r{number}", done(outcome="failed"), at=MONDAY + timedelta(minutes=number + 1))
    assert len(history.runs()) <= 21
    assert history.runs()[-1].run_id == "first"
    assert history.last_success()["backup", "app"].run_id == "first"
    assert history.totals() == {("backup", "app", "done"): 1, ("backup", "app", "failed"): 40}


def test_killed_run_is_lost(tmp_path, history):
    """A run whose process is gone is lost, once; one that lives is not; another host is given two days."""
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    history.begin("killed", "backup", at=MONDAY, host="here", pid=dead.pid, databases=["app"])
    history.begin("alive", "backup", at=MONDAY, **HERE)
    history.begin("elsewhere", "backup", at=MONDAY, host="there", pid=dead.pid)
    dead.kill()
    dead.communicate()
    for hours, elsewhere in ((1, "running"), (49, "lost"), (50, "lost")):
        history.notice_lost(at=MONDAY + timedelta(hours=hours), host="here")
        found = {run.run_id: run.outcome for run in history.runs()}
        assert found == {"killed": "lost", "alive": "running", "elsewhere": elsewhere}
    assert history.totals() == {("backup", "app", "lost"): 1, ("backup", None, "lost"): 1}
    assert history.latest()["backup", "app"].finished_at is None


def test_pid_of_another_process_is_no_sign_of_life(history, tmp_path):
    """Pids are given again: who has the number now is not the run that had it."""
    import sqlite3

    history.begin("old", "backup", at=MONDAY, **HERE)
    with sqlite3.connect(tmp_path / "history.db") as connection:
        connection.execute("update runs set process = process || '0'")
    connection.close()
    history.notice_lost(at=MONDAY, host="here")
    assert history.runs()[0].outcome == "lost"


def test_checks_and_when_they_changed(history):
    """A check is remembered with when its state began; a change is said once; being skipped is none."""
    assert history.checks() is None
    first = history.record_checks(report(check("ok"), check("crit", id="disk")), at=MONDAY, is_whole=True)
    assert [(change.state.id, change.before) for change in first] == [("db.connect", None), ("disk", None)]
    later = MONDAY + timedelta(minutes=5)
    assert not history.record_checks(report(check("ok")), at=later, is_whole=False)
    assert not history.record_checks(report(check("skip", because="docker")), at=later, is_whole=False)
    states = {state.id: state for state in history.checks().states}
    assert (states["db.connect"].status, states["db.connect"].since) == ("ok", MONDAY)
    assert states["db.connect"].entry["status"] == "skip"
    assert history.checks().at == MONDAY
    (change,) = history.record_checks(report(check("crit")), at=later, is_whole=True)
    assert (change.before, change.state.status, change.state.since) == ("ok", "crit", later)
    assert [state.id for state in history.checks().states] == ["db.connect"]  # the disk is gone
    assert history.record_checks(report(check("skip")), at=later, is_whole=True) == ()
    assert history.checks().states == ()


def test_last_restore_of_a_database_into_a_server(history, tmp_path):
    """The newest one of each; also in a file that was made before they were kept."""
    record(history, "r1", done())
    with sqlite3.connect(tmp_path / "history.db") as connection:
        connection.executescript("drop table restores; pragma user_version = 1")
    newest = MeasuredRestore("app-2", 700, 2.5, MONDAY)
    for server, measured in (
        ("a", replace(newest, backup_id="app-1")),
        ("b", replace(newest, seconds=9)),
        ("a", newest),
    ):
        history.record_restore("app", server, measured)
    assert history.last_restore("app", "a") == newest
    assert (history.last_restore("app", "c"), history.last_restore("other", "a")) == (None, None)
    assert [run.run_id for run in history.runs()] == ["r1"]


def test_damaged_file_is_put_aside(history, tmp_path):
    """Whatever is in the file, one run says so, the next begins a new one, and what was there is kept."""
    record(history, "r1", done())
    file = tmp_path / "history.db"
    file.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    with pytest.raises(HistoryUnavailable):
        history.runs()
    with pytest.raises(HistoryUnavailable, match="damaged"):
        history.begin("r2", "backup", at=MONDAY, **HERE)
    record(history, "r3", done())
    assert [run.run_id for run in history.runs()] == ["r3"]
    assert (tmp_path / "history.db.damaged").stat().st_size > 8000


@pytest.mark.parametrize("group", [0o000, 0o050, 0o070])
def test_group_of_the_folder_may_do_with_the_file_what_it_may_there(tmp_path, group):
    """Whoever may read the state folder may read the history; others never may."""
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o700 | group | 0o005)
    record(History(folder / "history.db"), "r1", done())
    assert (folder / "history.db").stat().st_mode & 0o777 == 0o600 | group & 0o060


def test_endings_of_several_databases():
    """Of two databases each has its ending; a verdict of doctor is no failure of doctor; a refusal is a refusal."""
    items = [
        {"database": "a", "id": "a-1", "bytes": 9, "stored_bytes": 4, "error": None, "repositories": [{"error": None}]},
        {"database": "b", "id": None, "bytes": None, "stored_bytes": None, "repositories": []}
        | {"error": {"code": "dump_failed", "message": "no"}},
    ]
    a, b = endings("backup", Outcome({"backups": items}, exit_code=DoctorExit.UNKNOWN, fields={"database": "a,b"}))
    assert (a.outcome, b.outcome, b.error_code, b.message) == ("done", "failed", "dump_failed", "no")
    (doctor,) = endings("doctor", Outcome({}, exit_code=DoctorExit.CRIT))
    assert (doctor.outcome, doctor.exit_code, doctor.database) == ("done", 2, None)
    (refused,) = endings("restore", Outcome(None, error=Refused("no"), fields={"database": "a"}))
    assert (refused.outcome, refused.database, refused.error_code) == ("refused", "a", "refused")


# The program


def test_history_of_the_program(run_opsctl, saas):
    """Successes, failures and usage errors are there with their sizes and messages; what only reads is not."""
    backup = run_opsctl("backup", "--json", url=saas.url).json
    run_opsctl("list", url=saas.url)
    run_opsctl("restore", "latest", "--plan", url=saas.url)
    failed = run_opsctl("backup", "--json", url=NOWHERE).json
    run_opsctl("prune", "--no-such-option", url=saas.url)
    usage, failure, success = run_opsctl("history", "--json", url=saas.url).json["result"]["runs"]
    assert (usage["command"], usage["outcome"], usage["exit_code"]) == ("prune", "refused", 2)
    assert (failure["run_id"], failure["outcome"], failure["database"]) == (failed["run_id"], "failed", "app")
    assert failure["message"] == failed["error"]["message"]
    taken = backup["result"]["backups"][0]
    assert (success["run_id"], success["outcome"]) == (backup["run_id"], "done")
    assert [success[key] for key in ("backup_id", "bytes", "stored_bytes")] == [
        taken[key] for key in ("id", "bytes", "stored_bytes")
    ]
    assert success["started_at"] == backup["started_at"]
    only = run_opsctl("history", "app", "--outcome", "failed", "--since", "1h", "-n", "1", url=saas.url)
    assert failed["error"]["message"] in only.stdout
    assert run_opsctl("history", "--outcome", "bad", url=saas.url).returncode == 2


def test_run_that_was_ended(run_opsctl, saas):
    """SIGTERM leaves an end; SIGKILL leaves none, and the next look calls it lost, with its database."""
    with saas.connect(autocommit=False) as blocker:
        blocker.execute("lock table companies in access exclusive mode")
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = run_opsctl.start("backup", url=saas.url)
            query = "select count(*) from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
            deadline = time.monotonic() + 60
            while not saas.execute(query, saas.name)[0][0] and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(number)
            process.communicate(timeout=60)
    lost, ended = run_opsctl("history", "--json", url=saas.url).json["result"]["runs"]
    assert (lost["outcome"], lost["database"], lost["finished_at"]) == ("lost", saas.name, None)
    assert (ended["outcome"], ended["exit_code"]) == ("interrupted", 143)


@pytest.mark.parametrize("fault", ["damaged", "a folder", "locked", "full", "no folder"])
def test_no_backup_is_lost_to_its_record(run_opsctl, saas, fault):
    """A record that cannot be written costs a warning, never a backup; nor does it hold one up for long."""
    import sqlite3

    run_opsctl.state.mkdir()
    file = run_opsctl.state / "history.db"
    holder, env = None, {}
    if fault == "no folder":
        file.touch()
        env["OPSCTL_STATE_DIR"] = str(file / "state")
    elif fault == "damaged":
        file.write_bytes(b"no database" * 1000)
    elif fault == "a folder":
        file.mkdir()
    elif fault == "full":
        file.symlink_to("/dev/full")
    else:
        History(file).begin("r", "backup", at=MONDAY, **HERE)
        holder = sqlite3.connect(file)
        holder.execute("begin exclusive")
    run = run_opsctl("backup", "--json", url=saas.url, env=env)
    if holder:
        holder.close()
    assert run.returncode == 0, run
    warnings = [line for line in map(json.loads, run.stderr.splitlines()) if line["level"] != "info"]
    events = [line["event"] for line in warnings if line["event"] != "metrics.unseen"]
    assert events == ["history.unwritten"]
    assert Path(run_opsctl.work / "backups").exists()
