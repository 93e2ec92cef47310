"""`opsctl runbook`: the program, at a terminal and without one, on a real server."""

import importlib.util
import json
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from opsctl.cli.app import COMMANDS
from opsctl.cli.session import Options, Session
from opsctl.cli.steps import usage
from opsctl.errors import Refused
from opsctl.runbook.effects import OPSCTL, as_run, opsctl_effect, why_not_observed
from opsctl.runbook.files import SHIPPED, read, shipped
from opsctl.runbook.programs import run_program

ROOT = Path(__file__).parents[2]
NO_PLACE = {"demo", "incident open", "incident export", "incident close", "bundle", "runbook run", "serve", "init"} | {
    "cron run",
    "run-scheduled",
}
"""Commands a step must not hold: they begin or end records of their own, or need a person."""


def _terminal():
    spec = importlib.util.spec_from_file_location("terminal", ROOT / "tests/test_terminal.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.at_terminal


at_terminal = _terminal()

RUNBOOK = """\
## Bot is down
<!--
triggers: own.flag, own
-->

```sh observe
opsctl doctor own.flag
```

```sh change id=mend if=own.flag!=ok verify=own.flag wait=5s
touch flag
```
"""

CHECK = '[[checks]]\nid = "flag"\nkind = "command"\ncommand = "test -e flag"\n'


@pytest.fixture
def work(run_opsctl):
    (run_opsctl.work / "runbook.md").write_text(RUNBOOK)
    (run_opsctl.work / "opsctl.toml").write_text(f'{CHECK}[runbook]\npath = "runbook.md"\n')
    return run_opsctl.work


def timeline(run_opsctl, incident):
    path = run_opsctl.state / "incidents" / f"{incident}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_command_has_its_effect_or_no_place_in_a_step():
    """Whoever adds a command says whether it only looks: nothing new runs unasked."""
    named = {name for name, _, _ in COMMANDS}
    assert named - OPSCTL.keys() == NO_PLACE & named
    assert all(opsctl_effect(name, []) is None for name in NO_PLACE)
    assert usage(["opsctl", "logs", "bot", "--nope"]) == (
        "logs",
        "No such option: --nope (Possible options: --lines, --since)",
    )
    assert usage(["opsctl", "runbook"])[0] == ""
    assert usage(["opsctl", "logs", "--help"])[1] == "It shows help and does nothing."


def test_without_a_terminal_only_a_named_step_changes_anything(run_opsctl, work):
    """What looks runs; an unnamed change is 16, and there is no yes for all of them."""
    refused = run_opsctl("runbook", "run", "bot-is-down", "--json")
    assert (refused.returncode, (work / "flag").exists()) == (16, False)
    assert refused.json["error"]["message"].endswith("nobody is there to confirm it. Nothing was changed.")
    assert [each["state"] for each in refused.json["result"]["steps"]] == ["done", "refused"]
    for blanket in (["--confirm", "all"], ["--confirm", "*"], ["--yes"], ["--confirm", "step-1"], ["-y"]):
        assert run_opsctl("runbook", "run", "bot-is-down", *blanket).returncode == 2
    assert run_opsctl("runbook", "run", "bot-is-down", input="y\ny\ny\n").returncode == 16
    looked = run_opsctl("runbook", "run", "bot-is-down", "--only", "observe", "--json")
    assert (looked.returncode, looked.json["result"]["steps"][1]["state"]) == (0, "skipped")
    assert run_opsctl("runbook", "run", "bot-is-down", "--plan").returncode == 0
    assert not (work / "flag").exists()

    incident = refused.json["result"]["incident"]
    done = run_opsctl("runbook", "run", "--resume", incident, "--confirm", "mend", "--json")
    assert (done.returncode, (work / "flag").exists()) == (0, True), done
    assert [each["state"] for each in done.json["result"]["steps"]] == ["skipped", "done"]
    events = timeline(run_opsctl, incident)
    confirmed = next(each for each in events if each["kind"] == "confirmed")
    assert (confirmed["step"], confirmed["how"]) == ("mend", "--confirm")
    assert [each["when"] for each in events if each["kind"] == "checks"] == ["before", "after", "after"]
    assert run_opsctl("incident", "verify", incident).returncode == 0
    exported = run_opsctl("incident", "export", incident, "--md").stdout
    assert "| own.flag | warn | ok |" in exported


def test_a_person_is_asked_and_may_say_no(run_opsctl, work):
    with at_terminal(run_opsctl, "runbook", "run", "bot-is-down") as terminal:
        terminal.wait_for("Run it? [y/N, s to skip]")
        assert "$ touch flag" in terminal.shown
        assert "then green: own.flag, within 5.0 s" in terminal.shown
        assert f"in {work}" in terminal.shown
        terminal.type("")
        assert terminal.finish() == 16, terminal.shown
    assert not (work / "flag").exists()
    with at_terminal(run_opsctl, "doctor", "--run", "own") as terminal:
        terminal.wait_for("Run it? [y/N, s to skip]")
        terminal.type("y")
        assert terminal.finish() == 0, terminal.shown
    assert "All is well" in terminal.stdout
    assert run_opsctl("doctor", "--run").returncode == 3
    assert "for a person at a terminal" in run_opsctl("doctor", "--run", "--json").json["error"]["message"]


def test_doctor_ends_with_the_scenario_of_its_cause(run_opsctl, work):
    found = run_opsctl("doctor", "own", "--json").json["result"]
    assert found["verdict"]["scenario"] == "bot-is-down"
    assert found["checks"][0]["remedy"]["scenario"] == "bot-is-down"
    assert run_opsctl("doctor", "own").stdout.splitlines()[-1] == "What to do now:  opsctl runbook run bot-is-down"
    (work / "saved.json").write_text(json.dumps({"result": {**found}}))
    assert "opsctl runbook run bot-is-down" in run_opsctl("doctor", "--input", "saved.json").stdout
    (work / "runbook.md").unlink()
    broken = run_opsctl("doctor", "own", "--json")
    assert (broken.returncode, broken.json["result"]["verdict"]["scenario"]) == (1, None)
    assert "runbook.unread" in broken.stderr


def test_a_wrong_scenario_does_not_run_and_lint_says_why(run_opsctl, work):
    """Nothing of it, not even what only looks; the others do."""
    text = RUNBOOK + "\n## Other\n\n```sh observe\ndate\n```\n"
    (work / "runbook.md").write_text(text.replace("verify=own.flag ", "verify=own.flags "))
    run = run_opsctl("runbook", "run", "bot-is-down", "--json")
    assert (run.returncode, run.json["error"]["code"]) == (10, "configuration")
    assert "runbook.md:10: There is no check 'own.flags'" in run.json["error"]["message"]
    assert not (run_opsctl.state / "incidents").exists()
    lint = run_opsctl("runbook", "lint", "--json")
    assert (lint.returncode, [each["scenario"] for each in lint.json["result"]["problems"]]) == (10, ["bot-is-down"])
    tried = run_opsctl("runbook", "test", "--json")
    assert (tried.returncode, tried.json["result"]["ready"]) == (10, ["other"])
    assert run_opsctl("runbook", "run", "other").returncode == 0
    (work / "runbook.md").write_bytes(b"\xff\xfe")
    assert run_opsctl("runbook", "list", "--json").json["error"]["code"] == "configuration"
    assert run_opsctl("runbook", "list", "--file", "/nowhere").returncode == 10


def test_kill_in_mid_step_leaves_a_timeline_that_says_so_and_goes_on(run_opsctl, work):
    slow = RUNBOOK.replace("touch flag", "sh -c 'test -e go || { touch begun; sleep 1000; }; touch flag'")
    (work / "runbook.md").write_text(slow)
    process = run_opsctl.start("runbook", "run", "bot-is-down", "--confirm", "mend")
    deadline = time.monotonic() + 60
    while not (work / "begun").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [path] = (run_opsctl.state / "incidents").glob("*.jsonl")
    events = timeline(run_opsctl, path.stem)
    assert (events[-1]["kind"], events[-1]["step"]) == ("step_started", "mend")
    (work / "go").touch()
    resumed = run_opsctl("runbook", "run", "--resume", "latest", "--confirm", "mend", "--json")
    assert resumed.returncode == 0, resumed
    events = timeline(run_opsctl, path.stem)
    note = next(each for each in events if each["kind"] == "note")
    assert "Under way when the run before ended, so what it did is unknown: mend." in note["text"]
    assert run_opsctl("incident", "verify", path.stem).returncode == 0


def test_what_takes_too_long_in_this_process_is_stopped_and_the_rest_is_looked_at(run_opsctl, work):
    """A time limit ends an opsctl command as Ctrl-C would; an observation that failed stops nothing."""
    slow = '[[checks]]\nid = "slow"\nkind = "command"\ncommand = "sleep 7"\ntimeout_seconds = 8\n'
    (work / "opsctl.toml").write_text(f'{slow}[runbook]\npath = "runbook.md"\n')
    (work / "runbook.md").write_text(
        "## S\n\n```sh observe timeout=1s\nopsctl doctor own.slow\n```\n\n```sh observe\ncat /nowhere\necho on\n```\n"
    )
    run = run_opsctl("runbook", "run", "s", "--json")
    assert run.json["error"] is None, run
    slow, rest = run.json["result"]["steps"]
    assert (run.returncode, slow["state"], rest["state"]) == (3, "timed_out", "failed")
    assert "did not end within 1 s and was stopped" in slow["message"]
    assert rest["output"].splitlines()[-1] == "on"
    assert rest["message"] == "cat ended with 1"


def test_only_what_was_confirmed_is_confirmed():
    """A restore of another database than the one whose name was typed does not happen."""
    session = Session("restore", Options(), is_confirmed=lambda name: name == "saasdb")
    session.confirm("saasdb", None, doing="the restore")
    with pytest.raises(Refused, match="concerns 'billing', which is not what was confirmed"):
        session.confirm("billing", None, doing="the restore")


# On a real server


def test_psql_that_only_looks_cannot_write(saas, binaries):
    """What the list lets through, the transaction stops."""
    cluster = saas.cluster
    environment = {"PATH": str(binaries.folder), "PGHOST": str(cluster.socket_folder), "PGPORT": str(cluster.port)}
    environment |= {"PGUSER": cluster.user, "PGDATABASE": saas.name}

    def psql(sql):
        words = ("psql", "-A", "-t", "-c", sql)
        assert why_not_observed(words) is None
        return run_program(as_run(words, "observe"), timeout_seconds=60, environment=environment)

    assert psql("select count(*) from users").output == "2000\n"
    for sql in ("with gone as (delete from users returning 1) select count(*) from gone", "select now() into later"):
        done = psql(sql)
        assert done.ending == "failed"
        assert "read-only transaction" in done.output
    assert psql("select count(*) from users").output == "2000\n"


# On a real server: a migration is taken back


def write_configuration(run_opsctl, saas, more=""):
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.saasdb]\nurl = "{saas.url}"\n{more}')


def columns(saas):
    found = saas.execute("select column_name from information_schema.columns where table_name = 'users'")
    return {name for (name,) in found}


def test_a_bad_migration_is_rolled_back_by_the_shipped_runbook_and_undone(run_opsctl, saas):
    """BEFORE chooses the backup; the one taken for safety is not what is restored; undo puts the migrated one back."""
    write_configuration(run_opsctl, saas, '[repositories.local]\nurl = "b"\nretention = { keep_last = 1 }\n')
    good = run_opsctl("backup", "--json").json["result"]["backups"][0]["id"]
    time.sleep(1.1)  # ids and --before have seconds
    before = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    saas.execute("alter table users drop column full_name cascade")
    scenario = ["runbook", "run", "a-migration-went-wrong", "--json"]
    assert run_opsctl(*scenario).returncode == 2  # without its parameter
    confirms = [word for step in ("stop-writers", "roll-back", "deploy-former") for word in ("--confirm", step)]
    run = run_opsctl(*scenario, *confirms, env={"BEFORE": before})

    assert run.returncode == 0, run
    steps = {each["id"]: each for each in run.json["result"]["steps"]}
    [safeguard] = steps["roll-back"]["safeguards"]
    assert f"Restored {good} as {saas.name}" in steps["roll-back"]["output"]
    assert "full_name" in columns(saas)
    listed = {each["id"]: each for each in run_opsctl("list", "--json").json["result"]["backups"]}
    assert listed.keys() == {good, safeguard}  # although one is to be kept: nothing was pruned in between
    assert listed[safeguard]["evidence"]["level"] == "decoded"
    told = [each["command"] for each in run_opsctl("history", "--json").json["result"]["runs"]]
    assert {"runbook run", "restore", "verify", "backup"} <= set(told)  # the steps' commands are runs, too
    assert run_opsctl("restore", "--undo", "--yes", "saasdb").returncode == 0
    assert "full_name" not in columns(saas)


def test_at_a_terminal_a_danger_asks_for_the_name_and_offers_its_undo(run_opsctl, saas):
    check = '[[checks]]\nid = "never"\nkind = "sql"\nsql = "select false"\n'
    write_configuration(run_opsctl, saas, f'{check}[runbook]\npath = "runbook.md"\n')
    (run_opsctl.work / "runbook.md").write_text(
        '## Back\n\n```sh danger id=back verify=own.never undo="opsctl restore --undo" wait=1s\n'
        "opsctl restore latest\n```\n"
    )
    run_opsctl("backup")
    saas.execute("alter table users drop column full_name cascade")
    with at_terminal(run_opsctl, "runbook", "run", "back") as terminal:
        terminal.wait_for("Type saasdb to go on, s to skip; anything else stops:")
        assert "Replaces" in terminal.shown
        terminal.type("saasdb")
        terminal.wait_for("The way back from back", 60)
        assert "is stored and verified" in terminal.shown
        assert "full_name" in columns(saas)
        terminal.type("saasdb")
        assert terminal.finish() == 1, terminal.shown
    assert "it was undone" in terminal.stdout
    assert "full_name" not in columns(saas)


# The shipped ones


@pytest.mark.parametrize("language", SHIPPED)
def test_the_shipped_runbooks_lint_and_belong_together(run_opsctl, language):
    """Nothing is wrong in them, and both say the same: the same steps of the same scenarios, in another language."""
    (run_opsctl.work / "opsctl.toml").write_text(
        '[databases.saasdb]\nurl = "postgresql://u@127.0.0.1:1/saasdb"\nservice = "db"\n'
        '[services.bot]\n[services.db]\n[services.api.http]\nurl = "http://127.0.0.1:1/"\n'
        f'[runbook]\nlanguage = "{language}"\n'
    )
    lint = run_opsctl("runbook", "lint", "--json")
    assert (lint.returncode, lint.json["result"]["problems"]) == (0, [])

    def without_names(runbook):
        return [
            [(each.triggers, each.parameters), *(replaced(step) for step in each.steps)] for each in runbook.scenarios
        ]

    def replaced(step):
        return (step.id, step.effect, [c.words for c in step.commands], step.conditions, step.verify, step.undo and 1)

    mine, english = read(shipped(language)), read(shipped("en"))
    assert without_names(mine) == without_names(english)
    assert len(mine.scenarios) == 8
    if language != "en":  # whoever knows the English name gets there, too
        assert all(
            {each.id} & {*other.aliases, other.id}
            for each, other in zip(english.scenarios, mine.scenarios, strict=True)
        )
