"""The user's own checks, both ways, next to the built-in ones."""

import os
import time

import pytest

from opsctl.errors import ConfigurationError


def check(kind, *lines, id="mine"):  # noqa: A002 - the key's name
    return "\n".join(["[[checks]]", f'id = "{id}"', f'kind = "{kind}"', *lines, ""])


def only(results, name="own.mine"):
    (found,) = (each for each in results.values() if each.id == name)
    return found


@pytest.mark.parametrize(
    ("lines", "status", "value"),
    [
        (['sql = "select count(*) from users"', "warn = 10000", "crit = 20000"], "ok", 2000),
        (['sql = "select count(*) from users"', "warn = 10", "crit = 10000"], "warn", 2000),
        (['sql = "select count(*) from users"', "warn = 10000", "crit = 5000"], "crit", 2000),  # falling
        (['sql = "select true"'], "ok", None),
        (['sql = "select false"'], "crit", None),
        (['sql = "select 1 where false"'], "crit", None),
        (['''sql = "select 'ready'"''', 'expect = "^ready$"'], "ok", None),
        (['''sql = "select 'ready'"''', 'expect = "done"'], "crit", None),
        (['''sql = "select 'many'"''', "warn = 1"], "unknown", None),
        (["""sql = "select 'NaN'::float8\"""", "warn = 1"], "unknown", None),
        (['sql = "select 50 % 7"'], "ok", 1),
        (['sql = "delete from users"'], "unknown", None),
        (['sql = "commit; delete from users"'], "unknown", None),
        (['sql = "select pg_sleep(60)"', "timeout_seconds = 0.2"], "unknown", None),
    ],
)
def test_sql(look, saas, lines, status, value):
    """A number against thresholds, a text against what is expected, else true or false. It cannot write."""
    text = f'[databases.main]\nurl = "{saas.url}"\n' + check("sql", *lines)
    results = look(text, "own")

    assert (only(results).status, only(results).value) == (status, value), only(results)
    assert saas.execute("select count(*) from users") == [(2000,)]


def test_sql_after_a_failed_one_and_without_its_database(look, saas):
    """They share the session of the built-in checks; without the database they are skipped like those."""
    text = f'[databases.main]\nurl = "{saas.url}"\n'
    two = check("sql", 'sql = "select nonsense"') + check("sql", 'sql = "select 1"', id="other")
    results = look(text + two, "own", "db.clock")
    down = look(text.replace(saas.url, "postgresql://u@127.0.0.1:1/x") + two, "own")

    assert only(results).status == "unknown"
    assert "nonsense" in only(results).message
    assert (only(results, "own.other").status, only(results, "db.clock").status) == ("ok", "ok")
    assert only(down).because == "db.connect"


@pytest.mark.parametrize(
    ("command", "lines", "status", "code"),
    [
        ("echo all is well", [], "ok", None),
        ("sh -c 'echo late; exit 1'", [], "warn", "exit_1"),
        ("sh -c 'echo lost; exit 2'", [], "crit", "exit_2"),
        ("sh -c 'exit 3'", [], "unknown", "exit_3"),
        ("sh -c 'exit 77'", [], "crit", "exit_77"),
        ("echo queue: 12 jobs", ["warn = 10", "crit = 100"], "warn", "mine"),
        ("echo queue: empty", ["warn = 10"], "unknown", "failed"),
        ("echo up", ['expect = "^up"'], "ok", None),
        ("echo down", ['expect = "^up"'], "crit", "unexpected"),
        ("no-such-program", [], "unknown", "failed"),
        ("echo $HOME", ['expect = "HOME"'], "ok", None),  # there is no shell
    ],
)
def test_commands(look, command, lines, status, code):
    """A plugin's exit codes; a number against thresholds; what it says against what is expected."""
    found = only(look(check("command", f'command = "{command}"', *lines), "own"))

    assert (found.status, found.code) == (status, code), found


def test_a_command_that_hangs_is_killed_with_its_children(look, tmp_path):
    """Its process group goes; its output is cut, and no secret of the environment reaches it."""
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid}; wait"
    found = only(look(check("command", f"command = \"sh -c '{script}'\"", "timeout_seconds = 0.4"), "own"))
    assert (found.status, "was killed" in found.message) == ("unknown", True)
    child = int(pid.read_text())
    while os.path.exists(f"/proc/{child}") and "Z" not in _state(child):  # noqa: PTH110
        time.sleep(0.01)

    long = only(look(check("command", "command = \"sh -c 'yes | head -5000 | tr -d \\\\\\\\n'\""), "own"))
    assert len(long.message) < 400
    assert len(long.details["output"]) <= 2000


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_files(look, tmp_path):
    """Missing is critical; age and size are judged by thresholds."""
    path = tmp_path / "look/export.csv"
    by_age = check("file", 'path = "export.csv"', "warn = 3600", "crit = 7200")
    by_size = check("file", 'path = "export.csv"', 'measure = "size"', "warn = 100", "crit = 10")
    assert (only(look(by_age, "own")).status, only(look(by_age, "own")).code) == ("crit", "missing")
    path.write_bytes(bytes(50))
    assert only(look(by_age, "own")).status == "ok"
    assert (only(look(by_size, "own")).status, only(look(by_size, "own")).unit) == ("warn", "B")
    os.utime(path, (0, 0))
    assert only(look(by_age, "own")).status == "crit"


def test_addresses(look, serve):
    """The same ladder as for [http.NAME]; ``expect`` is for the body."""
    url = f'url = "http://127.0.0.1:{serve()}/200"'
    assert only(look(check("http", url, 'expect = "status: up"'), "own")).status == "ok"
    assert only(look(check("http", url, 'expect = "status: down"'), "own")).code == "body"
    assert only(look(check("http", url, "status = 204"), "own")).code == "status"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (check("sql"), "needs sql"),
        (check("file", 'path = "x"', 'sql = "select 1"'), "sql is for kind"),
        (check("ftp"), "checks.0.kind"),
        (check("command", 'command = " "'), "checks.0.command: is no command line"),
        (check("command", """command = "a 'b" """), "checks.0.command: is no command line"),
        (check("command", 'command_line = "x"'), "command_line"),
        (check("command", 'command = "x"', 'expect = "("'), "no regular expression"),
        (check("command", 'command = "x"') * 2, "two with the id 'mine'"),
        (check("sql", 'sql = "select 1"', 'database = "billing"'), "no database 'billing'"),
        (check("command", 'command = "x"', id="db.connect"), "checks.0.id"),
        ('[doctor]\ndisabled = ["own.nosuch"]', "no check 'own.nosuch'"),
        ('[schedule]\nbackup = "hourly"', "schedule.backup: must be five cron fields"),
        ('[schedule]\ntimezone = "Mars/Olympus"', "no time zone"),
        ('[http.api]\nurl = "ftp://x"', "http.api.url"),
        ('[http.api]\nurl = "http://me:secret@x/"', "http.api.url"),
        ('[tls.db]\naddress = "db.example.org"', "tls.db.address"),
        ('[services.bot.http]\nurl = "http://x/"\nstats = 1', "services.bot.http.stats: is not a key"),
        ('[http.x]\nurl = "http://x/"\n[tls.x]\naddress = "x:1"', "two addresses have the name 'x'"),
        ('[http.b]\nurl = "http://x/"\n[services.b.http]\nurl = "http://x/"', "two addresses have the name 'b'"),
    ],
)
def test_mistakes_in_the_configuration_are_named(look, text, message):
    """File and key, in one line."""
    with pytest.raises(ConfigurationError, match=message):
        look('[databases.main]\nurl = "postgresql://u@127.0.0.1:1/x"\n' + text)


def test_own_checks_are_explained_and_judged_like_the_others(run_opsctl):
    """`opsctl explain`, thresholds, the list of disabled ones, and the program's exit code."""
    (run_opsctl.work / "opsctl.toml").write_text(
        check("command", 'command = "echo 5 jobs"', "warn = 10", "crit = 20", 'fix = "Start a worker."')
        + check("command", 'command = "false"', id="broken")
        + '[doctor]\ndisabled = ["own.broken"]\n[doctor.thresholds]\n"own.mine" = { warn = 4 }\n'
    )
    explained = run_opsctl("explain", "own.mine")
    run = run_opsctl("doctor", "own", "--json")

    assert "Start a worker." in explained.stdout
    assert (run.returncode, run.json["result"]["verdict"]["cause"]) == (1, "own.mine")
    assert [each["id"] for each in run.json["result"]["checks"]] == ["own.mine"]
    assert run.json["result"]["checks"][0]["remedy"]["text"] == "Start a worker."
