"""`opsctl doctor` and `opsctl explain` as programs: exit codes, formats, errors, captures."""

import json
import os
import pty
import re
import select
import signal
from contextlib import suppress
from xml.etree import ElementTree as ET

import pytest

pytestmark = pytest.mark.end_to_end

UNREACHABLE = "postgresql://u:hunter2<&@127.0.0.1:1/x".replace("<&", "%3C%26")
CLEAR = "\x1b[H\x1b[2J"
TOML = '[databases.main]\nurl_env = "DATABASE_URL"\n[doctor.thresholds]\n"db.connect" = { warn = 0 }\n'


def test_exit_codes_and_fail_on(run_opsctl, database):
    """0 ok, 1 warn, 2 crit; with --fail-on crit a warning alone ends with 0, and only then ok is true."""
    assert run_opsctl("doctor", "db.connect", url=database.url).returncode == 0
    assert run_opsctl("doctor", "--quiet", "db.connect", url=database.url).stdout == ""
    (run_opsctl.work / "opsctl.toml").write_text(TOML)
    warned = run_opsctl("doctor", "db.connect", "--json", url=database.url)
    forgiven = run_opsctl("doctor", "db.connect", "--fail-on", "crit", "--format", "json", url=database.url)
    failed = run_opsctl("doctor", "db.connect", "--fail-on", "crit", url=UNREACHABLE)

    assert (warned.returncode, warned.json["ok"], warned.json["result"]["status"]) == (1, False, "warn")
    assert (forgiven.returncode, forgiven.json["ok"], forgiven.json["result"]["status"]) == (0, True, "warn")
    assert failed.returncode == 2
    assert "CRIT" in failed.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "toml", "code"),
    [
        (["--bogus"], "", "usage"),
        (["nosuch"], "", "usage"),
        (["--format", "yaml"], "", "usage"),
        (["--input", "nowhere.json"], "", "usage"),
        ([], "[databases.a]\nulr = 'x'\n", "configuration"),
        ([], '[doctor]\ndisabled = ["db.nosuch"]\n', "configuration"),
        ([], '[doctor.thresholds]\n"db.connect" = { warn = "x" }\n', "configuration"),
    ],
)
def test_its_own_failures_are_unknown_in_every_format(run_opsctl, arguments, toml, code):
    """A mistake of the caller is 3, never 1 or 2, which would be a verdict; Nagios reads it on stdout."""
    (run_opsctl.work / "opsctl.toml").write_text(toml)
    as_json = run_opsctl("doctor", *arguments, "--json")
    assert (as_json.returncode, as_json.json["exit_code"], as_json.json["error"]["code"]) == (3, 3, code), as_json
    if "--format" not in arguments:
        nagios = run_opsctl("doctor", *arguments, "--format=nagios")
        assert nagios.returncode == 3
        assert nagios.stdout.startswith("OPSCTL UNKNOWN - ")
        assert nagios.stdout.count("\n") == 1


def test_formats(run_opsctl, database):
    """Each format is what its readers parse, secrets masked before anything is escaped."""
    down = {name: run_opsctl("doctor", "db", "--format", name, url=UNREACHABLE) for name in ("nagios", "junit")}
    suite = ET.fromstring(down["junit"].stdout).find("testsuite")  # noqa: S314  # our own
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    assert int(suite.get("skipped")) == int(suite.get("tests")) - 1
    assert suite.find("testcase/failure").get("type") == "refused"
    assert down["nagios"].stdout.startswith("OPSCTL CRITICAL - db.connect (x): ")

    up = run_opsctl("doctor", "db", "--format", "nagios", url=database.url)
    summary, _, measured = up.stdout.partition(" | ")
    assert summary.startswith("OPSCTL OK - ")
    for each in measured.split():
        label, _, value = each.rpartition("=")
        number, *limits = value.split(";")
        assert label[0] == label[-1] == "'"
        assert float(number.rstrip("s%Bc")) >= 0
        assert all(float(limit.rstrip(":")) >= 0 for limit in limits if limit)
    lines = run_opsctl("doctor", "db", "--format", "prometheus", url=database.url).stdout.splitlines()
    assert f'opsctl_check_state{{check="db.connect",target="{database.name}"}} 0.0' in lines


def test_a_capture_is_judged_again(run_opsctl, database):
    """What --json printed is judged by the thresholds here, rendered in any format, without a database."""
    saved = run_opsctl("doctor", "db", "--json", url=database.url)
    (run_opsctl.work / "saved.json").write_text(saved.stdout)
    (run_opsctl.work / "opsctl.toml").write_text(TOML)
    again = run_opsctl("doctor", "--input", "saved.json", "--json")
    piped = run_opsctl("doctor", "db.connect", "--input", "-", "--format", "nagios", input=saved.stdout)

    assert (saved.returncode, again.returncode, again.json["result"]["verdict"]["cause"]) == (0, 1, "db.connect")
    assert len(again.json["result"]["checks"]) == len(saved.json["result"]["checks"])
    assert piped.returncode == 1
    assert piped.stdout.startswith("OPSCTL WARNING - db.connect")


def test_watch_prints_a_document_a_line(run_opsctl, database):
    """--watch --json is JSON lines, the error that ends it included; SIGTERM ends it with 143."""
    process = run_opsctl.start("doctor", "db.connect", "--watch", "--interval", "1", "--json", url=database.url)
    first = json.loads(process.stdout.readline())
    second = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)

    assert [each["result"]["status"] for each in (first, second)] == ["ok", "ok"]
    assert first["started_at"] < second["started_at"]
    assert process.returncode == 143
    assert [json.loads(line)["exit_code"] for line in rest.splitlines()][-1] == 143


def at_terminal(run_opsctl, *arguments, url, until, env=None):
    """What a run shows on a terminal up to ``until``, with every control sequence; Ctrl-C ends it there."""
    master, slave = pty.openpty()
    process = run_opsctl.start(*arguments, url=url, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = ""
    while until(shown) is False:
        assert select.select([master], [], [], 60)[0], shown
        shown += os.read(master, 65536).decode("utf-8", "replace")
    process.send_signal(signal.SIGINT)
    rest = b""
    with suppress(OSError):  # the other end is closed
        while data := os.read(master, 65536):
            rest += data
    os.close(master)
    return shown, rest.decode("utf-8", "replace"), process.wait(timeout=30)


def test_watch_at_a_terminal(run_opsctl, database):
    """Each look takes the place of the one before, statuses have colours unless NO_COLOR is set; Ctrl-C is 130."""
    watch = ("doctor", "db.connect", "--watch", "--interval", "1")

    def twice(text):
        return text.count("answered after") >= 2

    shown, rest, code = at_terminal(run_opsctl, *watch, url=database.url, until=twice)
    plain, _, _ = at_terminal(run_opsctl, *watch, url=database.url, until=twice, env={"NO_COLOR": "1"})
    down, _, _ = at_terminal(run_opsctl, *watch, url=UNREACHABLE, until=lambda text: "see above" in text)

    assert shown.startswith(CLEAR)
    assert shown.count(CLEAR) == 2
    assert "\x1b[32mOK" in shown
    assert "\x1b[1;31mCRIT" in down
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]m", plain)
    assert code == 130
    assert "Traceback" not in rest


def test_text_says_the_verdict_first_and_fits_80_columns(run_opsctl):
    """First the cause, then a remedy, a line per check, the scenario; only the verdict is wider than 80 columns."""
    lines = run_opsctl("doctor", "db", url=UNREACHABLE).stdout.splitlines()

    assert lines[0].startswith("CRIT  db.connect (x): Cannot connect")
    assert "Is the server running" in "\n".join(lines)
    assert max(len(line) for line in lines[1:]) <= 80
    assert lines[-3].startswith("skip    db.")
    assert lines[-1] == "What to do now:  opsctl runbook run database-does-not-answer"


def test_explain(run_opsctl):
    """All checks as a list, one or a group in full; an unknown one is a usage error with the nearest known."""
    overview = run_opsctl("explain")
    one = run_opsctl("explain", "db.blocked")
    wrong = run_opsctl("explain", "db.blokked", "--json")

    assert "db.connect" in overview.stdout
    assert "pg_blocking_pids" in one.stdout
    assert "≥ 30 s" in one.stdout
    assert len(run_opsctl("explain", "db", "--json").json["result"]["checks"]) > 2
    assert (wrong.returncode, wrong.json["error"]["hint"]) == (2, "Did you mean 'db.blocked'?")
