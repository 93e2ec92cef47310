"""The jobs of [schedule]: what each line and unit says, and whether the last run began."""

import shlex
from datetime import UTC, datetime, timedelta

import pytest
import yaml  # noqa: TID253  # a test may load what it likes

from opsctl.config import load_config
from opsctl.cron.containers import compose, kubernetes
from opsctl.cron.crontab import lines
from opsctl.cron.installed import judge_job
from opsctl.cron.jobs import Job, find_job, jobs_of, only_here
from opsctl.cron.units import calendar, is_edited, units, writable
from opsctl.errors import ConfigurationError, Refused
from opsctl.history import Run
from opsctl.schedule import Schedule

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ALL = 'backup = "0 3 * * *"\ndrill = "0 5 * * 0"\ndoctor = "*/5 * * * *"\nsync = "30 4 * * *"\nprune = "0 6 * * *"\n'


@pytest.fixture
def configured(tmp_path):
    def configure(schedule, more="", folder="app"):
        path = tmp_path / folder / "opsctl.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[schedule]\n{schedule}\n{more}")
        return load_config(path, working_folder=path.parent)

    return configure


def crontab(config, **options):
    return lines(config, jobs_of(config), machine=UTC, now=NOW, **options)[1:]


def test_a_line_for_each_command(configured):
    """The expression, the folder, the program and the configuration by absolute paths, and --quiet in every line."""
    config = configured(ALL)
    found = crontab(config)

    assert [line.split(" cd ")[0] for line in found] == [
        *("0 3 * * *", "0 5 * * 0", "*/5 * * * *", "30 4 * * *", "0 6 * * *")
    ]
    for line, command in zip(found, ("backup", "drill", "doctor", "sync", "prune"), strict=True):
        words = shlex.split(line)
        program = words[words.index("&&") + 1]
        assert program.startswith("/")
        assert "opsctl" in line
        assert words[-4:] == [command, "--quiet", "--config", config.source]
    assert [line.split()[5] for line in crontab(config, user="backup")] == ["backup"] * 5


def test_what_a_line_alone_cannot_say(configured):
    """Jitter and other clocks are seen to by `opsctl cron run`, which every cron can call."""
    jittered = crontab(configured(f'{ALL}jitter = "2h"'))
    elsewhere = crontab(configured(f'{ALL}timezone = "America/New_York"'))

    assert all(" cron run " in line and "--if-due" not in line for line in jittered)
    assert [" cron run " in line and "--if-due" in line for line in elsewhere] == [True, True, False, True, True]
    assert elsewhere[0].startswith("0 7,8 * * * ")


def test_percent_signs_and_spaces_reach_the_shell(configured):
    """To cron % is a line break, to the shell spaces end a word; a path too long for cron is refused, not cut."""
    [line] = crontab(configured('backup = "0 3 * * *"', folder="100% ours; rm -rf"))

    assert line.count(r"100\% ours") == line.count("% ours") == 2
    assert shlex.split(line.replace(r"\%", "%"))[6].endswith("/100% ours; rm -rf")
    with pytest.raises(Refused):
        crontab(configured('backup = "0 3 * * *"', folder="/".join(["l" * 200] * 3)))


def test_jitter_is_a_part_of_the_distance(configured):
    """Each host has a delay of its own, the same every night; a run every five minutes is not moved by an hour."""
    config = configured(f"{ALL}jitter = 3600")
    backup, doctor = find_job(config, "backup"), find_job(config, "doctor")

    assert (backup.jitter_seconds, doctor.jitter_seconds) == (3600, 75)
    assert 0 <= backup.delay_seconds <= 3600
    assert find_job(config, "backup") == backup
    assert backup.grace(NOW) == timedelta(hours=7)
    assert find_job(configured(ALL), "backup").delay_seconds == 0
    with pytest.raises(ConfigurationError, match=r"schedule\.jitter"):
        configured(f"{ALL}jitter = '90 minutes'")


def test_what_only_this_shell_knows_is_named(configured, monkeypatch):
    """No DATABASE_URL of a shell reaches cron; what .env says, every run has."""
    config = '[databases.app]\nurl_env = "APP_URL"\n[databases.more]\nurl_env = "MORE_URL"\n'
    folder = configured(ALL, config).folder
    (folder / ".env").write_text("MORE_URL=postgresql://u@h/more\n")
    monkeypatch.setenv("APP_URL", "postgresql://u@h/app")
    monkeypatch.setenv("MORE_URL", "postgresql://u@h/more")
    monkeypatch.setenv("AWS_PROFILE", "no bucket is configured")
    monkeypatch.delenv("OPSCTL_STATE_DIR", raising=False)

    assert only_here(load_config(folder / "opsctl.toml", working_folder=folder)) == ["APP_URL"]


# systemd


@pytest.mark.parametrize(
    ("expression", "zone", "times"),
    [
        ("0 3 * * *", "Europe/Berlin", ["*-*-* 03:00:00 Europe/Berlin"]),
        ("*/15 * * * 1-5", "UTC", ["Mon,Tue,Wed,Thu,Fri *-*-* *:00,15,30,45:00 UTC"]),
        ("5 4 1 1,7 *", "UTC", ["*-01,07-01 04:05:00 UTC"]),
        # cron: on the 13th, and on every Friday.
        ("0 0 13 * 5", "UTC", ["*-*-13 00:00:00 UTC", "Fri *-*-* 00:00:00 UTC"]),
        ("0 0 */2 * 5", "UTC", [f"Fri *-*-{','.join(f'{day:02}' for day in range(1, 32, 2))} 00:00:00 UTC"]),
    ],
)
def test_what_a_timer_is_told(expression, zone, times):
    """The same moments, in systemd's words: it knows time zones, and no 'or' of two kinds of days."""
    assert calendar(Job("backup", Schedule(expression, zone))) == times


def test_units_are_hardened_and_write_where_they_must(configured, tmp_path):
    """Nothing but the repositories, the state and the metrics can be written; a missed run is caught up."""
    config = configured(
        f"{ALL}jitter = 600",
        '[repositories.local]\nurl = "/var/backups/opsctl of 100%"\n[repositories.off]\nurl = "s3://bucket"\n'
        f'[state]\npath = "{tmp_path}/state"\n[metrics]\ntextfile = "{tmp_path}/app/opsctl.prom"\n',
    )
    found = units(config, jobs_of(config), user="backup")
    service, timer = found["opsctl-backup.service"], found["opsctl-backup.timer"]

    assert len(found) == 10
    folders = ["/var/backups/opsctl of 100%", f"{tmp_path}/state", f"{tmp_path}/app"]
    assert sorted(folders) == sorted(map(str, writable(config)))  # whether they are there or not
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "User=backup", "CapabilityBoundingSet="):
        assert f"\n{line}\n" in service
    for line in ("Persistent=yes", "RandomizedDelaySec=600", "FixedRandomDelay=yes"):
        assert f"\n{line}\n" in timer
    assert "\nSuccessExitStatus=1\n" in found["opsctl-doctor.service"]
    assert not any(is_edited(text) for text in found.values())
    assert is_edited(timer.replace("03:00", "04:00"))


# Containers


def test_what_containers_are_told(configured, monkeypatch):
    """Nothing to write to but the volumes, no rights, one run at a time; the repositories are where the file says."""
    monkeypatch.setenv("APP_URL", "postgresql://u:secret@h/app")
    config = configured(
        f'{ALL}timezone = "Europe/Berlin"\njitter = "5m"',
        '[databases.app]\nurl_env = "APP_URL"\n[repositories.a]\nurl = "backups"\n[repositories.b]\nurl = "/srv/b"\n'
        '[encryption]\nidentity_file = "opsctl.key"\n',
    )
    [service] = yaml.safe_load(compose(config))["services"].values()
    jobs = list(yaml.safe_load_all(kubernetes(config, jobs_of(config))))
    pods = [job["spec"]["jobTemplate"]["spec"]["template"]["spec"] for job in jobs]

    assert (service["read_only"], service["cap_drop"], service["command"][0]) == (True, ["ALL"], "run-scheduled")
    assert f"{config.folder}/backups:/etc/opsctl/backups" in service["volumes"]
    assert "/srv/b:/srv/b" in service["volumes"]
    assert f"{config.folder}/opsctl.key:/etc/opsctl/opsctl.key:ro" in service["volumes"]
    assert {"name": "files", "secret": {"secretName": "opsctl-files"}} in pods[0]["volumes"]
    assert f" opsctl-files --from-file={config.folder}/opsctl.key\n" in kubernetes(config, jobs_of(config))
    assert service["environment"]["APP_URL"] == "${APP_URL:?}"
    assert [job["metadata"]["name"] for job in jobs] == [
        f"opsctl-{command}" for command in ("backup", "drill", "doctor", "sync", "prune")
    ]
    assert {(job["spec"]["timeZone"], job["spec"]["concurrencyPolicy"]) for job in jobs} == {
        ("Europe/Berlin", "Forbid")
    }
    assert pods[0]["containers"][0]["args"][:4] == ["cron", "run", "backup", "--quiet"]
    assert all(pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] for pod in pods)
    assert "secret@" not in compose(config) + kubernetes(config, jobs_of(config))


# Whether the runs began

BACKUP = Job("backup", Schedule("0 3 * * *"))


def ran(at, outcome="done", error_code=None):
    return Run("r", "backup", "app", datetime.fromisoformat(at), outcome=outcome, error_code=error_code)


@pytest.mark.parametrize(
    ("runs", "since", "state"),
    [
        ([ran("2026-11-24T03:00:02Z")], None, "ok"),
        ([ran("2026-11-24T02:59:30Z")], None, "ok"),  # by a clock that is a little slow
        ([ran("2026-11-24T03:00:02Z", "failed")], None, "ok"),  # it began: that it failed is told elsewhere
        ([ran("2026-11-23T03:00:02Z")], None, "missed"),
        ([], None, "missed"),
        ([], "2026-11-24T10:00Z", "pending"),  # cron was told only later
        ([ran("2026-11-23T03:00:02Z", "running")], None, "overlapping"),
        ([ran("2026-11-24T03:00:02Z", "failed", "locked")], None, "overlapping"),
    ],
)
def test_missed_and_overlapping_runs_are_told(runs, since, state):
    """By what the history says, a quarter of the interval after the moment; the clock is an argument."""
    report = judge_job(BACKUP, runs, since=since and datetime.fromisoformat(since), now=NOW)

    assert report.state == state
    assert report.expected_at == datetime(2026, 11, 24, 3, tzinfo=UTC)
    assert report.next_at == datetime(2026, 11, 25, 3, tzinfo=UTC)
    early = datetime(2026, 11, 24, 8, 59, tzinfo=UTC)
    assert judge_job(BACKUP, [], since=None, now=early).expected_at == datetime(2026, 11, 23, 3, tzinfo=UTC)
