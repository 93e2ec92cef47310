"""The machine: disks, memory, clocks, schedules, locks, the configuration's files."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.checks.check import Thresholds
from opsctl.checks.configuration import judge_urls, place_of
from opsctl.checks.disks import Room, judge_inodes, judge_space, mount_of, read_mounts, seconds_left
from opsctl.checks.host import KernelClock, Memory, judge_clock, judge_memory, read_clock
from opsctl.checks.samples import Samples
from opsctl.checks.schedules import system_entries
from opsctl.postgres.lock import database_lock
from opsctl.postgres.server import Server

GIB = 1 << 30
FALLING = Thresholds(5, 3, falling=True)
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def alarms(results):
    return {
        each.id: (each.status, each.code) for each in results.values() if each.status in {"warn", "crit", "unknown"}
    }


def only(results, name):
    (found,) = (each for each in results.values() if each.id == name)
    return found


# Disks


def test_this_machine_is_healthy(look):
    """Real disks, memory, clock and configuration: no alarm, and each disk is looked at once."""
    results = look("", "disk", "memory", "lock", "config", "schedule")

    assert alarms(results) == {}
    assert only(results, "disk.space").value > 5
    assert only(results, "memory").value > 5


def test_the_share_that_is_free_is_judged():
    """5 % warns, 3 % is critical; a file system that makes inodes as it needs them is never short of them."""
    found = [judge_space("/", Room(percent * GIB, 100 * GIB), FALLING, left=None) for percent in (6, 4, 2)]

    assert [each.status for each in found] == ["ok", "warn", "crit"]
    assert found[1].remedy.command.startswith("du ")
    assert judge_inodes("/", Room(0, 0), FALLING, left=None).status == "ok"
    assert judge_inodes("/", Room(1, 100), FALLING, left=None).status == "crit"


@pytest.mark.parametrize(
    ("percent", "hours", "status", "code"),
    [
        (30, 20, "warn", "filling"),
        (15, 3, "crit", "filling"),
        (30, 3, "warn", "filling"),  # much is left: no reason to wake somebody
        (50, 3, "ok", None),
        (15, 30, "ok", None),
        (2, 3, "crit", "full"),
    ],
)
def test_a_disk_that_fills_up_is_seen_before_it_is_full(percent, hours, status, code):
    """When the trend says so, and little enough is left for it to matter."""
    found = judge_space("/", Room(percent * GIB, 100 * GIB), FALLING, left=hours * 3600)

    assert (found.status, found.code) == (status, code)
    assert (f"in {hours} h" in found.message) == (status != "ok")


@given(st.floats(1, 1e6), st.floats(1e3, 1e12))
def test_the_trend_is_a_line(rate, free):
    """From points on a line, the time until it reaches zero; nothing from a rising one, or one that is too short."""
    times = [0.0, 300.0, 600.0, 900.0]
    falling = [(time, free + rate * (900 - time)) for time in times]

    assert seconds_left(falling) == pytest.approx(free / rate, rel=0.01)
    assert seconds_left([(time, free + rate * time) for time in times]) is None
    assert seconds_left(falling[:2]) is None
    assert seconds_left(falling[-3:]) is None


def test_the_history_is_of_hours_and_thin(tmp_path):
    """Doctor every minute keeps a point every four; what is older than six hours goes."""
    for minute in range(0, 600, 2):
        samples = Samples(tmp_path / "samples.json")
        points = samples.history("disk.space", "/", float(minute), now=NOW + timedelta(minutes=minute))
        samples.save()

    assert points[-1][1] == 598
    assert points[-1][0] - points[0][0] <= 6 * 3600
    assert 80 < len(points) <= 91


def test_the_file_system_of_a_path():
    """The longest mount that leads there, the later of two at one place; names with spaces are unescaped."""
    lines = ["1 0 8:1 / / rw - ext4 x rw", "2 1 8:2 / /var rw - ext4 y rw", "3 2 8:3 / /var rw - ext4 z rw"]
    mounts = read_mounts("\n".join([*lines, r"4 1 8:4 / /mnt/my\040disk rw - ext4 w rw"]))

    assert mount_of(Path("/var/backups"), mounts) == ("/var", "8:3")
    assert mount_of(Path("/variable"), mounts) == ("/", "8:1")
    assert mount_of(Path("/mnt/my disk/a"), mounts) == ("/mnt/my disk", "8:4")


@pytest.mark.acceptance
def test_a_full_disk_is_one_cause(look, tmp_path):
    """A real file system without room: disk.space is critical, and what would write there waits for that."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], check=True)
    try:
        text = f'[repositories.local]\nurl = "{disk}/backups"\n'
        before = look(text, "disk", "repository")
        filled = subprocess.run(
            ["dd", "if=/dev/zero", f"of={disk}/filling", "bs=64k"], capture_output=True, check=False
        )
        assert b"No space left" in filled.stderr
        after = look(text, "disk", "repository")
    finally:
        subprocess.run(["umount", disk], check=True)

    assert alarms(before) == {}
    assert alarms(after) == {"disk.space": ("crit", "full")}
    assert only(after, "repository.writable").because == "disk.space"


# Memory and clocks


def test_memory_and_clock_are_judged():
    """Memory by its share; a clock nobody keeps right warns. The kernel's own word is read without any right."""
    limits = Thresholds(10, 5, falling=True)
    found = [judge_memory(Memory(percent * GIB, 100 * GIB, 0), limits).status for percent in (11, 9, 4)]

    assert found == ["ok", "warn", "crit"]
    assert judge_clock(KernelClock(is_synchronised=True, maximum_error_seconds=0.01)).status == "ok"
    assert judge_clock(KernelClock(is_synchronised=False, maximum_error_seconds=16)).status == "warn"
    assert read_clock().maximum_error_seconds >= 0


@pytest.mark.parametrize(("seconds", "status"), [(0, "ok"), (5, "warn"), (-5, "warn"), (3600, "crit"), (-3600, "crit")])
def test_the_servers_clock(look, database, seconds, status):
    """A clock that differs from the database server's, in either direction."""
    text = f'[databases.main]\nurl = "{database.url}"\n'
    now = datetime.now(UTC) + timedelta(seconds=seconds)
    found = only(look(text, "db.clock", now=now), "db.clock")

    assert found.status == status
    assert ("ahead of" if seconds > 0 else "behind") in found.message or not seconds


# Schedules

SCHEDULE = '[schedule]\nbackup = "30 2 * * *"\n'


@pytest.fixture
def crontab(tmp_path, monkeypatch):
    """``crontab(text)``: a program of that name that says it, before every other one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def says(text):
        program = folder / "crontab"
        program.write_text(f"#!/bin/sh\n[ \"$1\" = -l ] || exit 2\ncat <<'END'\n{text}\nEND\n")
        program.chmod(0o755)

    return says


def test_a_schedule_that_nothing_runs(look, crontab):
    """A line in the crontab that runs backups is enough, a comment is not; the remedy installs what is missing."""
    crontab("MAILTO=ops\n#0 3 * * * opsctl backup\n15 4 * * * /usr/bin/opsctl prune")
    missing = only(look(SCHEDULE, "schedule.installed"), "schedule.installed")
    crontab("0 3 * * * cd /srv && /opt/venv/bin/opsctl --config /srv/opsctl.toml backup --quiet")
    there = only(look(SCHEDULE, "schedule.installed"), "schedule.installed")
    crontab("0 1,2 * * * cd /srv && /usr/bin/opsctl cron run backup --quiet --if-due --config /srv/opsctl.toml")
    added = only(look(SCHEDULE, "schedule.installed"), "schedule.installed")

    assert (missing.status, missing.code) == ("warn", "not_installed")
    assert missing.remedy.command == "opsctl cron install"
    assert (there.status, there.details["found"]) == ("ok", ["crontab:1"])
    assert added.status == "ok"
    assert only(look("", "schedule"), "schedule.installed").status == "skip"
    both = only(look(f'{SCHEDULE}\ndrill = "0 5 * * 0"', "schedule.installed"), "schedule.installed")
    assert (both.status, "`opsctl drill`" in both.message, "`opsctl backup`" in both.message) == ("warn", True, False)
    assert both.details["missing"] == ["drill"]


def test_crontabs_and_timers_of_the_system(tmp_path):
    """Files of cron, and systemd timers that are enabled and lead to a service that runs backups."""
    units = tmp_path / "etc/systemd/system"
    wants = units / "timers.target.wants"
    (tmp_path / "etc/cron.d").mkdir(parents=True)
    wants.mkdir(parents=True)
    (tmp_path / "etc/cron.d/opsctl").write_text("# ours\n0 3 * * * root /usr/bin/opsctl backup --quiet\n")
    (units / "nightly.timer").write_text("[Timer]\nOnCalendar=03:00\nUnit=db.service\n")
    (units / "db.service").write_text("[Service]\nExecStart=/usr/bin/opsctl run-scheduled\n")

    (tmp_path / "etc/cron.d/weekly").write_text(
        "0 5 * * 0 root opsctl verify --all --drill\n0 6 * * 0 root opsctl list\n"
    )

    assert list(system_entries(tmp_path)) == [f"{tmp_path}/etc/cron.d/opsctl:2"]
    assert list(system_entries(tmp_path, "drill")) == [f"{tmp_path}/etc/cron.d/weekly:1"]
    (wants / "nightly.timer").symlink_to(units / "nightly.timer")
    assert list(system_entries(tmp_path))[1:] == [f"{units}/nightly.timer"]


# What killed runs leave


def test_a_killed_run_is_told_of(look, tmp_path):
    """A lock that names a dead process of this host warns; a living one, another host's or a free one does not."""
    locks = tmp_path / "state/locks"
    locks.mkdir(parents=True)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)

    def holder(name, pid, host=None):
        about = {
            "command": name,
            "pid": pid,
            "host": host or socket.gethostname(),
            "started_at": "2026-11-24T03:00:00Z",
        }
        (locks / f"{name}.lock").write_text(json.dumps(about))

    holder("alive", os.getpid())
    holder("elsewhere", int(dead.stdout), "another-host")
    (locks / "free.lock").write_text("")
    assert only(look("", "lock"), "lock.stale").status == "ok"
    holder("backup", int(dead.stdout))
    found = only(look("", "lock"), "lock.stale")

    assert (found.status, found.code, found.value) == ("warn", "killed", 1)
    assert f"pid {int(dead.stdout)}" in found.message


def test_staging_databases_that_nobody_works_on(look, saas, tmp_path):
    """One that a killed restore left warns, with its size; while the lock is held it is a restore at work."""
    text = f'[databases.main]\nurl = "{saas.url}"\n'
    saas.execute(f'create database "{saas.name}__opsctl_0123abcd"')
    left = only(look(text, "db.leftovers"), "db.leftovers")
    with database_lock(Server(saas.url), saas.name, command="restore", state_path=tmp_path / "other", now=NOW):
        at_work = only(look(text, "db.leftovers"), "db.leftovers")
    saas.execute(f'drop database "{saas.name}__opsctl_0123abcd"')
    gone = only(look(text, "db.leftovers"), "db.leftovers")

    assert (left.status, left.remedy.command) == ("warn", "opsctl backup main")
    assert left.value > 1_000_000
    assert (at_work.status, gone.status) == ("ok", "ok")


# Configuration


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"DATABASE_URL": "postgresql://u:p%40ss@db/x", "HOME": "/root"}, None),
        ({"APP_DB": "postgresql+asyncpg://u:secret@db/x"}, None),
        ({"APP_DB": "postgresql://u:se@cret@db/x"}, "unreadable"),
        ({"APP_DB": "postgresql://u:50%off@db/x"}, "unreadable"),
        ({"APP_DB": "postgresql://u:p@db/x\n"}, "unreadable"),
        ({"WANTED": ""}, "unset"),
    ],
)
def test_addresses_of_the_environment(variables, code):
    """The application's own address is looked at, too; no part of a password is shown."""
    found = judge_urls(variables, ["WANTED"] if "WANTED" in variables else [])

    assert found.code == code
    assert (found.status == "ok") == (code is None)
    assert not any(each in str(found) for each in ("cret", "off@", "p@db"))


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_files_with_secrets_are_nobody_elses(look, tmp_path):
    """.env, password files, and opsctl.toml with a password in it; the command of the remedy ends the alarm."""
    folder = tmp_path / "look"
    text = '[databases.main]\nurl = "postgresql://u@127.0.0.1:1/x"\npassword_file = "password"\n'
    text += '[encryption]\nidentity_file = "opsctl.key"\n'
    with umask(0o022):
        (folder / ".env").write_text("A=b\n")
        (folder / "password").write_text("hunter2")
        (folder / "opsctl.key").write_text("AGE-SECRET-KEY-1…")
        opened = only(look(text, "config.env_permissions"), "config.env_permissions")
        subprocess.run(["sh", "-c", opened.remedy.command], check=True)
        closed = only(look(text, "config.env_permissions"), "config.env_permissions")
        secret = text.replace("u@", "u:hunter2@")
        inside = only(look(secret, "config.env_permissions"), "config.env_permissions")

    assert (opened.status, opened.value) == ("warn", 3)
    assert closed.status == "ok"
    assert inside.details["files"] == [str(folder / "opsctl.toml")]


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("DATABASE_URL=postgresql://tester@localhost/saasdb_test", "ok", None),
        ("DATABASE_URL=sqlite:///test.db", "ok", None),
        ("DATABASE_URL=postgresql://tester:x@127.0.0.1:5432/saasdb?sslmode=disable", "crit", "production"),
        ("DATABASE_URL=postgresql://t:a@b@localhost/test", "crit", "unreadable"),
        ("DEBUG=1", "warn", "no_url"),
        (None, "skip", None),
    ],
)
def test_tests_do_not_aim_at_production(look, tmp_path, line, status, code):
    """Another login to the same database is the same database."""
    if line is not None:
        (tmp_path / "look/.env.test").write_text(f"{line}\n")
    text = '[databases.main]\nurl = "postgresql://app@localhost/saasdb"\n'
    found = only(look(text, "config.test_environment"), "config.test_environment")

    assert (found.status, found.code) == (status, code), found


def test_one_database_by_two_addresses():
    """Case, login, parameters and the names of this machine make no difference; port and database do."""
    assert place_of("postgresql://a:b@DB.example.org/x?c=d") == place_of("postgresql://db.example.org:5432/x")
    assert place_of("postgresql://localhost/x") == place_of("postgresql://[::1]/x")
    assert place_of("postgresql://a,B:5433/x") == place_of("postgresql://u@a,b:5433/x")
    assert place_of("postgresql://localhost/x") != place_of("postgresql://localhost:5433/x")
