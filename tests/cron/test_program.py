"""`opsctl cron`: the program, with a crontab of its own, and cron's bare environment."""

import shlex
import subprocess
import sys

import pytest

CONFIG = """\
[databases.app]
url_env = "DATABASE_URL"
[repositories.local]
url = "b"
[schedule]
backup = "0 3 * * *"
doctor = "*/5 * * * *"
"""

PROGRAM = """\
#!/bin/sh
file="{folder}/crontab.txt"
case "$1" in
-l) [ -e "$file" ] || {{ echo "no crontab for $USER" >&2; exit 1; }}; cat "$file" ;;
-r) rm "$file" ;;
-) cat >"$file" ;;
esac
"""


@pytest.fixture
def crontab(run_opsctl, tmp_path):
    """The crontab that a program of that name keeps, before every other one on PATH."""
    (run_opsctl.work / "opsctl.toml").write_text(CONFIG)
    program = tmp_path / "bin" / "crontab"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(folder=tmp_path))
    program.chmod(0o755)
    return tmp_path / "crontab.txt"


def test_install_check_edit_remove(run_opsctl, crontab, tmp_path):
    """Installed once however often, compared with the configuration, and gone without a trace."""
    path = {"PATH": f"{crontab.parent}/bin:/usr/bin:/bin"}
    config = run_opsctl.work / "opsctl.toml"
    theirs = b"# caf\xe9\nMAILTO=ops\n5 5 * * *\ttrue"

    def run(*arguments):
        return run_opsctl("cron", *arguments, "--quiet", env=path)

    crontab.write_bytes(theirs + b"\n")
    assert run("check").returncode == 3
    assert [run("install").returncode, run("install").returncode] == [0, 0]
    once = crontab.read_bytes()
    assert once.startswith(theirs + b"\n# opsctl begin: ")
    assert once.count(b" backup --quiet") == once.count(b" doctor --quiet") == 1
    quiet = run("check")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")

    config.write_text(CONFIG.replace("0 3", "30 3"))
    assert run("check").returncode == 3
    assert run("install").returncode == 0
    assert b"\n30 3 * * * cd " in crontab.read_bytes()
    assert b"\n0 3 " not in crontab.read_bytes()

    crontab.write_bytes(crontab.read_bytes().replace(b"30 3", b"30 4"))
    edited = run_opsctl("cron", "check", "--json", env=path)
    assert (edited.returncode, edited.json["result"]["places"][0]["state"]) == (3, "edited")
    assert [run("install").returncode, run("remove").returncode] == [16, 16]
    assert run("install", "--discard-edits").returncode == 0
    assert run("remove").returncode == 0
    assert crontab.read_bytes() == theirs + b"\n"

    crontab.unlink()
    assert [run("install").returncode, run("remove").returncode] == [0, 0]
    assert not crontab.exists()


def test_what_cannot_be_done_is_said(run_opsctl, crontab):
    """No crontab program, no schedule, no such command: one line, a hint, and the code of a configuration."""
    nowhere = run_opsctl("cron", "install", "--json", env={"PATH": "/nowhere"})
    unknown = run_opsctl("cron", "run", "drill", "--json")
    hidden = run_opsctl("cron", "install", "--systemd", "--json")
    (run_opsctl.work / "opsctl.toml").write_text("")
    nothing = run_opsctl("cron", "show", "--json")

    assert (nowhere.returncode, "apt-get install cron" in nowhere.json["error"]["hint"]) == (10, True)
    assert (hidden.returncode, "of their own" in hidden.json["error"]["message"]) == (16, True)
    assert (unknown.returncode, "backup, doctor" in unknown.json["error"]["hint"]) == (2, True)
    assert (nothing.returncode, "[schedule]" in nothing.json["error"]["message"]) == (10, True)


@pytest.mark.acceptance
def test_a_line_works_in_cron_s_bare_environment(run_opsctl, crontab, saas):
    """PATH, HOME, LOGNAME and SHELL are all there is, and no terminal: the line alone takes the backup, in silence."""
    dotenv = run_opsctl.work / ".env"
    dotenv.write_text(f"DATABASE_URL={saas.url}\nOPSCTL_STATE_DIR={run_opsctl.state}\n")
    [line] = [each for each in run_opsctl("cron", "show").stdout.splitlines() if " backup --quiet" in each]
    command = line.split(maxsplit=5)[5].replace(r"\%", "%")
    program = shlex.split(command)[3]
    if program != sys.executable:  # the program under test, which may be installed nowhere
        command = command.replace(program, f"{sys.executable} -m opsctl", 1)
    bare = {"SHELL": "/bin/sh", "PATH": "/usr/bin:/bin", "LOGNAME": "x", **run_opsctl.source_variables}

    def cron_runs():
        return subprocess.run(
            ["/bin/sh", "-c", command], env=bare, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False
        )

    ran = cron_runs()
    dotenv.write_text("DATABASE_URL=postgresql://127.0.0.1:1/app\n" + f"OPSCTL_STATE_DIR={run_opsctl.state}\n")
    failed = cron_runs()

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    assert len(list((run_opsctl.work / "b/app").glob("app-*"))) == 1
    assert failed.returncode == 12
    assert b"database_unreachable" in failed.stderr
