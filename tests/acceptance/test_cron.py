"""The schedule with a real cron, a real systemd and a real Compose to judge what they are told."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from opsctl.history import FILE, History

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("cron")]

CONFIG = """\
[databases.app]
url_env = "DATABASE_URL"
[repositories.local]
url = "b"
[schedule]
timezone = "Europe/Berlin"
jitter = "2s"
backup = "{backup}"
drill = "0 5 13 * 5"
doctor = "*/5 * * * *"
"""
SYSTEM_FILE = Path("/etc/cron.d/opsctl")


@pytest.fixture
def need(pytestconfig):
    """``need(program)``: where it is; without it the test is skipped, or fails where services are required."""

    def find(*names):
        found = next(filter(None, (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in names)), None)
        if found is None:
            (pytest.fail if pytestconfig.getoption("--require-services") else pytest.skip)(f"needs {names[0]}")
        return found

    return find


@pytest.mark.timeout(200)
def test_a_real_cron_takes_the_backup(run_opsctl, saas, need):
    """Installed into /etc/cron.d, called by the daemon in its own environment, in silence, and taken away again."""
    cron = need("cron")
    if os.geteuid() != 0 or SYSTEM_FILE.exists():
        pytest.skip("needs root, and no schedule of opsctl's that is already installed")
    config = run_opsctl.work / "opsctl.toml"
    config.write_text(CONFIG.format(backup="* * * * *"))
    (run_opsctl.work / ".env").write_text(f"DATABASE_URL={saas.url}\nOPSCTL_STATE_DIR={run_opsctl.state}\n")
    # An interpreter that finds the program under test, wherever that lies.
    source = run_opsctl.source_variables.get("PYTHONPATH")
    assert run_opsctl("cron", "install", "--system", "--quiet").returncode == 0
    daemon = None
    try:
        if source:
            SYSTEM_FILE.write_text(f"PYTHONPATH={source}\n{SYSTEM_FILE.read_text()}")
        daemon = subprocess.Popen([cron, "-f", "-L", "0"], stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"})
        deadline = time.monotonic() + 100
        runs = ()
        while time.monotonic() < deadline and not any(run.finished_at for run in runs):
            time.sleep(1)
            runs = History(run_opsctl.state / FILE).runs(command="backup") if run_opsctl.state.exists() else ()
        checked = run_opsctl("cron", "check", "--json")
    finally:
        if daemon is not None:
            daemon.terminate()
            daemon.wait(30)
        removed = run_opsctl("cron", "remove", "--system", "--discard-edits")
        left = SYSTEM_FILE.read_text() if SYSTEM_FILE.exists() else ""
        SYSTEM_FILE.unlink(missing_ok=True)

    assert [run.outcome for run in runs if run.finished_at] == ["done"]
    assert [place["name"] for place in checked.json["result"]["places"]] == [str(SYSTEM_FILE)]
    assert checked.json["result"]["places"][0]["state"] == "installed"
    assert removed.returncode == 0
    assert left == (f"PYTHONPATH={source}\n" if source else "")


def test_systemd_and_compose_understand_what_they_are_told(run_opsctl, tmp_path, need):
    """No unit has a line that systemd does not know, each time is one, and the service is a valid one."""
    analyze, compose = need("systemd-analyze"), need("docker-compose")
    (run_opsctl.work / "opsctl.toml").write_text(CONFIG.format(backup="30 2 1,15 * *"))
    shown = run_opsctl("cron", "show", "--systemd", "--user", "root").stdout
    parts = [part.partition("\n") for part in shown.split("# /etc/systemd/system/")[1:]]
    for name, _, text in parts:
        (tmp_path / name).write_text(text)
    verified = subprocess.run(
        [analyze, "verify", *(str(tmp_path / name) for name, _, _ in parts)],
        capture_output=True,
        text=True,
        check=False,
    )
    times = [line.partition("=")[2] for line in shown.splitlines() if line.startswith("OnCalendar=")]
    understood = subprocess.run([analyze, "calendar", *times], capture_output=True, text=True, check=False)
    (tmp_path / "compose.yaml").write_text(run_opsctl("cron", "show", "--compose").stdout)
    valid = subprocess.run(
        [compose, "-f", tmp_path / "compose.yaml", "config"], capture_output=True, text=True, check=False
    )

    assert (verified.returncode, verified.stderr) == (0, "")
    assert (understood.returncode, understood.stdout.count("Next elapse")) == (0, 4)
    assert valid.returncode == 0, valid.stderr
    assert "read_only: true" in valid.stdout
