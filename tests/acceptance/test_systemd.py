"""`opsctl cron install --systemd` under a real systemd: its timers begin the services, and these do their work."""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from waiting import wait_for

from opsctl.postgres.cluster import throwaway_cluster

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

COMMANDS = ("backup", "drill", "doctor", "sync", "prune")
ROOT = Path(__file__).parents[2]
CONFIG = """\
[databases.app]
url_env = "APP_URL"
[repositories.local]
url = "backups"
[state]
path = "state"
[schedule]
backup = "0 3 * * *"
drill = "0 5 * * 0"
doctor = "*/5 * * * *"
sync = "30 4 * * *"
prune = "0 6 * * *"
[doctor]
disabled = ["disk.space", "disk.inodes", "memory", "clock", "docker"]
[[checks]]
id = "elsewhere"
kind = "command"
command = "touch {folder}/elsewhere"
"""


@pytest.fixture
def systemd(tmp_path, pytestconfig):
    spec = importlib.util.spec_from_file_location(
        "namespaced_systemd", Path(__file__).with_name("namespaced_systemd.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    missing = module.missing()
    if missing is not None:
        text = f"no systemd: {missing}"
        pytest.fail(text) if pytestconfig.getoption("--require-services") else pytest.skip(text)
    with module.running(tmp_path) as running:
        yield running


@pytest.fixture
def folder():
    """Where a unit with a /tmp of its own can see it."""
    made = Path(tempfile.mkdtemp(prefix="opsctl-systemd-", dir="/srv"))
    yield made
    shutil.rmtree(made)


def test_the_units_do_their_work(systemd, folder, binaries, run_opsctl):
    """A timer catches up what was missed; every service works in its confinement, and writes nowhere else."""
    (folder / "opsctl.toml").write_text(CONFIG.format(folder=folder))
    variables = {"PATH": os.environ["PATH"], **run_opsctl.source_variables}

    def opsctl(*words):
        program = [sys.executable, "-m", "opsctl", *words, "--config", folder / "opsctl.toml", "--json"]
        done = systemd(*program, check=False, env=variables)
        return done.returncode, json.loads(done.stdout)["result"]

    def show(unit, *names):
        shown = systemd("systemctl", "show", unit, *(f"--property={each}" for each in names)).stdout
        return dict(line.partition("=")[::2] for line in shown.splitlines())

    for command in COMMANDS:  # the program under test, which may be installed nowhere
        where = f"/run/systemd/system/opsctl-{command}.service.d"
        lines = "".join(f"Environment={name}={value}\\n" for name, value in run_opsctl.source_variables.items())
        lines += f"StandardError=append:{folder}/log\\n"
        lines += f"BindReadOnlyPaths={ROOT} {sys.prefix}\\n"  # their /tmp is another one
        systemd("sh", "-c", f"mkdir -p {where}; printf '[Service]\\n{lines}' > {where}/test.conf")
    missed = (
        "mkdir -p /var/lib/systemd/timers; touch -d 'yesterday 00:00' /var/lib/systemd/timers/stamp-opsctl-backup.timer"
    )
    systemd("sh", "-c", missed)
    with throwaway_cluster(binaries, listen=True) as cluster:
        (folder / ".env").write_text(f"APP_URL={cluster.tcp_url()}\n")
        assert opsctl("cron", "install", "--systemd", "--user", "root")[0] == 0
        wait_for(lambda: list(folder.glob("backups/app/*/manifest.json")), "the backup that was missed")
        for command in COMMANDS:
            done = systemd("systemctl", "start", f"opsctl-{command}.service", check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}{(folder / 'log').read_text()}"
        code, checked = opsctl("cron", "check")
        backups = opsctl("list")[1]["backups"]
        doctor = opsctl("history", "--command", "doctor")[1]["runs"]
        timers = {
            command: show(f"opsctl-{command}.timer", "ActiveState", "NextElapseUSecRealtime") for command in COMMANDS
        }
        removed, _ = opsctl("cron", "remove", "--systemd")

    assert "counted" in {each["evidence"]["level"] for each in backups if each["evidence"]}, backups
    assert (code, checked["problems"], checked["places"][0]["name"]) == (0, [], "systemd"), checked["places"]
    assert not (folder / "elsewhere").exists()
    assert doctor[0]["outcome"] in {"done", "attention"}, doctor
    assert {each["ActiveState"] for each in timers.values()} == {"active"}
    assert timers["drill"]["NextElapseUSecRealtime"].startswith("Sun ")
    assert removed == 0
    assert systemd("systemctl", "list-unit-files", "opsctl-*", check=False).stdout.endswith("\n0 unit files listed.\n")
