"""`opsctl run-scheduled`: the program, with a run that was missed; signals, health, one at a time."""

import json
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from opsctl.history import FILE, Ending, History

CONFIG = """\
[databases.app]
url_env = "DATABASE_URL"
[repositories.local]
url = "b"
[schedule]
backup = "{minute} {hour} * * *"
"""


pytestmark = pytest.mark.acceptance


@pytest.fixture
def missed(run_opsctl):
    """A history whose last backup began the day before yesterday, and a schedule whose last moment was an hour ago."""
    ago = datetime.now(UTC) - timedelta(hours=1)
    (run_opsctl.work / "opsctl.toml").write_text(CONFIG.format(minute=ago.minute, hour=ago.hour))
    run_opsctl.state.mkdir(exist_ok=True)
    history, then = History(run_opsctl.state / FILE), datetime.now(UTC) - timedelta(days=2)
    history.begin("then", "backup", at=then, host="h", pid=1, databases=["app"])
    history.end("then", [Ending("app", "done", 0)], at=then)
    return history


def lines_until(process, event):
    found = []
    for line in process.stderr:
        found.append(json.loads(line))
        if found[-1]["event"] == event:
            return found
    pytest.fail(f"no {event} in {found}")


def test_a_missed_run_is_caught_up_and_a_signal_ends_it_in_order(run_opsctl, missed, saas):
    """One backup by a child of its own, counted as scheduled; then SIGTERM ends it with 0, and it is no more alive."""
    process = run_opsctl.start("run-scheduled", "--json", url=saas.url)
    lines = lines_until(process, "schedule.ended")
    ended = lines[-1]
    run = missed.runs(command="backup", limit=1)[0]
    alive = run_opsctl("run-scheduled", "--health", "--quiet")
    second = run_opsctl("run-scheduled", "--json", url=saas.url)
    process.send_signal(signal.SIGTERM)
    document = json.loads(process.communicate(timeout=30)[0])
    ended_since = run_opsctl("run-scheduled", "--health", "--json")

    assert (ended["status"], ended["outcome"], ended["child_run_id"]) == (0, "done", run.run_id)
    assert [line["run_id"] for line in lines if line["event"] == "run.finished"] == [run.run_id]
    assert run.pid != process.pid
    assert (alive.returncode, alive.stdout, alive.stderr) == (0, "", "")
    assert (second.returncode, str(process.pid) in second.json["error"]["message"]) == (11, True)
    assert (ended_since.returncode, ended_since.json["error"]["code"]) == (1, "failed")
    assert (process.returncode, document["ok"], document["result"]) == (0, True, {"runs": 1, "failed": 0})


def test_a_run_under_way_gets_the_signal_and_is_waited_for(run_opsctl, missed, saas):
    """A backup that waits for a lock is ended by SIGTERM like by its own, cleaned up and on the record."""
    with saas.connect(autocommit=False) as blocker:
        blocker.execute("lock table users in access exclusive mode")
        process = run_opsctl.start("run-scheduled", url=saas.url)
        lines_until(process, "schedule.began")
        while not missed.runs(command="backup", outcome="running"):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        lines = [json.loads(line) for line in process.communicate(timeout=60)[1].splitlines()]

    events = [line["event"] for line in lines]
    assert process.returncode == 0
    assert events.index("schedule.ending") < events.index("run.failed") < events.index("schedule.ended")
    assert missed.runs(command="backup", limit=1)[0].outcome == "interrupted"
    assert list((run_opsctl.work / "b").rglob("manifest.json")) == []
