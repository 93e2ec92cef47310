"""Whole runs of the program, and who hears of them."""

import json
import os
import pty
import signal
import time

import pytest

UUID = "2f9c1f6e-7d0a-4b6e-9a1d-canary000001"
REFUSING = "postgresql://me@127.0.0.1:1/app"
EVERY_DAY = "0 3 * * *"


@pytest.fixture
def sentry(new_recorder):
    return new_recorder()


@pytest.fixture
def heart(new_recorder):
    return new_recorder()


@pytest.fixture
def people(new_recorder):
    return new_recorder()


@pytest.fixture
def configure(run_opsctl, sentry, heart, people):
    """``configure(url)``: everybody is told; the database is the one at ``url``."""

    def write(url, more="", **places):
        at = {"sentry": sentry.address, "heart": heart.address, "people": people.address, **places}
        (run_opsctl.work / "opsctl.toml").write_text(
            f'[databases.app]\nurl = "{url}"\n[repositories.local]\nurl = "backups"\n'
            f'[schedule]\nbackup = "{EVERY_DAY}"\ndoctor = "*/5 * * * *"\n'
            f'[sentry]\ndsn = "http://0123canary4567@{at["sentry"]}/7"\n'
            f'[heartbeats]\nbackup = "http://{at["heart"]}/{UUID}"\ndoctor = "http://{at["heart"]}/doctor"\n'
            f'[notify]\nurls = ["json://{at["people"]}/canaryhook12"]\n{more}'
        )

    return write


def statuses(sentry):
    return [(each["monitor_slug"], each["status"]) for each in sentry.items("check_in")]


def pings(heart):
    return [path.partition("?")[0] for path in heart.paths]


def titles(people):
    """What people were told, without the host's name."""
    return [each.json["title"].partition(": ")[2] for each in people.received]


def test_the_nights_of_a_scheduled_backup(run_opsctl, saas, configure, sentry, heart, people):
    """One that works, two that fail in the same way, one that works again: who hears what, and how often."""
    configure(saas.url)
    assert run_opsctl("backup", "--quiet").returncode == 0
    assert statuses(sentry) == [("opsctl-backup", "in_progress"), ("opsctl-backup", "ok")]
    assert pings(heart) == [f"/{UUID}/start", f"/{UUID}"]
    assert b"run.finished" in heart.received[1].body  # although --quiet prints nothing
    assert people.received == []
    assert sentry.items("event") == []

    configure(REFUSING)
    for _ in range(2):
        run = run_opsctl("backup", "--json")
        assert run.returncode == 12
        assert len(run.stderr.splitlines()) == 1
    assert statuses(sentry)[2:] == [("opsctl-backup", "in_progress"), ("opsctl-backup", "error")] * 2
    assert pings(heart)[2:] == [f"/{UUID}/start", f"/{UUID}/12"] * 2
    assert "Connection refused" in heart.received[-1].body.decode()
    fingerprints = [each["fingerprint"] for each in sentry.items("event")]
    assert fingerprints == [["opsctl", "backup", "database_unreachable/refused", "app"]] * 2
    assert titles(people) == ["backup of app failed"]
    assert run.json["error"]["hint"] in people.received[0].json["message"]

    configure(saas.url)
    assert run_opsctl("backup").returncode == 0
    assert titles(people)[1:] == ["over: backup of app failed"]
    assert people.received[1].json["type"] == "success"
    assert run_opsctl("backup").returncode == 0
    assert len(people.received) == 2


@pytest.mark.acceptance
def test_a_black_hole_everywhere_changes_nothing(run_opsctl, saas, configure, hole, sentry):
    """The backup is taken, the result printed, the exit code its own; what Sentry missed, the next run sends."""
    configure(saas.url, sentry=hole, heart=hole, people=hole)
    run = run_opsctl("backup", "--json")
    assert run.returncode == 0
    assert run.json["result"]["backups"][0]["status"] == "stored"
    assert [json.loads(line)["event"] for line in run.stderr.splitlines()] == ["run.finished"]
    configure(REFUSING, sentry=hole, heart=hole, people="127.0.0.1:1")
    run = run_opsctl("backup", "--json")
    assert run.returncode == 12
    (end, unheard) = (json.loads(line) for line in run.stderr.splitlines())
    assert (end["event"], unheard["event"], unheard["level"]) == ("run.failed", "notify.failed", "warning")
    assert "canaryhook12" not in run.stderr
    configure(saas.url, heart=hole)
    assert run_opsctl("backup").returncode == 0
    assert len(sentry.items("event")) == 1
    assert sorted(status for _, status in statuses(sentry)) == ["error", "in_progress", "ok", "ok"]


def test_a_run_that_is_ended_says_so(run_opsctl, saas, configure, sentry, heart, people):
    """SIGTERM in the middle of a dump: no schedule waits for a run that is gone."""
    configure(saas.url)
    with saas.connect(autocommit=False) as blocker:
        blocker.execute("lock table users in access exclusive mode")
        process = run_opsctl.start("backup", "--json")
        deadline = time.monotonic() + 60
        while f"/{UUID}/start" not in pings(heart) or not saas.execute(
            "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert statuses(sentry) == [("opsctl-backup", "in_progress"), ("opsctl-backup", "error")]
    assert pings(heart) == [f"/{UUID}/start", f"/{UUID}/143"]
    assert titles(people) == ["backup failed"]


def test_who_watches_needs_no_message(run_opsctl, configure, sentry, heart, people):
    """On a terminal a failure is seen: nobody is told, and the schedule has neither failed nor run."""
    configure(REFUSING)
    controller, terminal = pty.openpty()
    run = run_opsctl("backup", stderr=terminal)
    os.close(terminal)
    os.close(controller)
    assert run.returncode == 12
    assert (heart.received, people.received, statuses(sentry)) == ([], [], [])
    assert len(sentry.items("event")) == 1


def test_doctor_tells_of_changes(run_opsctl, saas, configure, sentry, people, heart):
    """An event and a message when a check's state changes, none while it stays; a verdict is no failure of doctor."""
    check = '[[checks]]\nid = "queue"\nkind = "sql"\ndatabase = "app"\nsql = "select {}"\nwarn = 10\ncrit = 20\n'
    for value in (5, 30, 30, 15):
        configure(saas.url, check.format(value))
        assert run_opsctl("doctor", "own.queue").returncode in {0, 1, 2}
    events = [(each["level"], each["tags"]["before"]) for each in sentry.items("event")]
    assert events == [("error", "ok"), ("warning", "crit")]
    assert len({tuple(each["fingerprint"]) for each in sentry.items("event")}) == 1
    assert titles(people) == ["own.queue (app) is crit", "over: own.queue (app) is crit"]
    assert pings(heart) == [f"/doctor{word}" for end in ("", "/2", "/2", "") for word in ("/start", end)]
    saved = run_opsctl("doctor", "own.queue", "--json").stdout
    before = len(heart.received), len(people.received), len(sentry.received)
    run_opsctl("doctor", "--input", "-", "--json", input=saved.replace('"crit": 20', '"crit": 1'))
    assert (len(heart.received), len(people.received)) == before[:2]


def test_traces_when_asked_for(run_opsctl, saas, configure, sentry):
    """traces_sample_rate = 1: every run is a transaction with its phases."""
    configure(saas.url)
    path = run_opsctl.work / "opsctl.toml"
    path.write_text(path.read_text().replace("[sentry]\n", "[sentry]\ntraces_sample_rate = 1\n"))
    assert run_opsctl("backup").returncode == 0
    (transaction,) = sentry.items("transaction")
    assert transaction["transaction"] == "opsctl backup"
    assert [span["description"] for span in transaction["spans"]] == ["Backing up app"]


def test_everybody_can_be_tried(run_opsctl, configure, sentry, heart, people, hole):
    """`notify test`: who got it, who did not and why; nothing of the addresses is shown, and no monitor changes."""
    configure(REFUSING)
    run = run_opsctl("notify", "test", "--json")
    assert run.returncode == 0
    assert [(each["kind"], each["name"], each["status"]) for each in run.json["result"]["targets"]] == [
        ("sentry", "sentry", "sent"),
        ("heartbeat", "backup", "sent"),
        ("heartbeat", "doctor", "sent"),
        ("notify", "json", "sent"),
    ]
    assert sorted(pings(heart)) == [f"/{UUID}/log", "/doctor/log"]
    assert statuses(sentry) == []
    assert people.received[0].json["type"] == "info"
    sentry.status, people.status, heart.status = 403, 500, 404
    run = run_opsctl("notify", "test")
    assert run.returncode == 3
    assert run.stdout.count("failed") == 4
    assert "it answered 403" in run.stdout
    for secret in (UUID, "0123canary4567", "canaryhook12"):
        assert secret not in run.stdout + run.stderr
    assert run_opsctl("notify", "test", env={"OPSCTL_CONFIG": os.devnull}).returncode == 10
