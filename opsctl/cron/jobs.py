"""The jobs of [schedule]: which command runs when, how it is started, and how late it may begin."""

import hashlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.errors import ConfigurationError
from opsctl.schedule import SCHEDULED, Schedule

if TYPE_CHECKING:
    from opsctl.config import Config

EARLY = timedelta(minutes=1)
"""A run may begin a little before its minute by the clock of another host."""

NO_SCHEDULE = "No schedule is configured ([schedule])."


@dataclass(frozen=True)
class Job:
    """One command of [schedule]. On this host it begins ``delay_seconds`` after its minute, always the same.

    ``jitter_seconds`` is how much that is at most on any host.
    """

    command: str
    schedule: Schedule
    jitter_seconds: int = 0
    delay_seconds: int = 0

    def grace(self, now: datetime) -> timedelta:
        """How long after its minute a run must have shown: a quarter of the interval, and the jitter."""
        interval = self.schedule.interval(now) or timedelta(days=1)
        return interval / 4 + timedelta(seconds=self.jitter_seconds)

    def expected_at(self, now: datetime) -> datetime | None:
        """The last moment of the schedule whose run must have shown by now."""
        return self.schedule.last_run(now - self.grace(now))


def jobs_of(config: "Config") -> list[Job]:
    return [job for job in (find_job(config, command) for command in SCHEDULED) if job]


def find_job(config: "Config", command: str) -> Job | None:
    """The job of that command, if [schedule] has one."""
    schedule = config.schedule.of(command)
    if schedule is None:
        return None
    jitter = min(config.schedule.jitter, int(schedule.shortest.total_seconds()) // 4)
    return Job(command, schedule, jitter, _delay(f"{socket.gethostname()}/{config.source}/{command}", jitter))


def require_jobs(config: "Config") -> list[Job]:
    """Raises ConfigurationError where there is none."""
    found = jobs_of(config)
    if not found:
        raise ConfigurationError(
            NO_SCHEDULE, hint='Add for example backup = "0 3 * * *" under [schedule] in opsctl.toml.'
        )
    return found


def _delay(seed: str, jitter: int) -> int:
    """A number of seconds up to ``jitter``: another one on each host, the same every time."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) % (jitter + 1)


def program(config: "Config") -> list[str]:
    """How this very opsctl is started by somebody who knows nothing of PATH."""
    started = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).with_name("opsctl")
    for each in (started, beside):
        if each.name == "opsctl" and each.is_file() and os.access(each, os.X_OK):
            return [str(each)]
    found = shutil.which("opsctl", path=os.pathsep.join(config.search_path))
    return [found] if found else [sys.executable, "-m", "opsctl"]


def command_line(config: "Config", job: Job) -> list[str]:
    """The words that run a job, whatever the working folder."""
    return [*program(config), job.command, "--quiet", *named_file(config)]


def named_file(config: "Config") -> list[str]:
    return ["--config", config.source] if Path(config.source).is_absolute() else []


def only_here(config: "Config") -> list[str]:
    """Variables the configuration needs that this shell has and no ``.env`` file: a scheduled run would lack them."""
    from opsctl.config_file import env_files_of, read_env_file

    files = env_files_of(config.folder, config.folder)
    kept = {name for path in files if path.is_file() for name in read_env_file(path)}
    return sorted({name for name in _useful(config) if config.variables.get(name) and name not in kept})


def needed_variables(config: "Config") -> set[str]:
    """The variables that this configuration has a use for, and that are set."""
    return {name for name in _useful(config) if config.variables.get(name)} - {"OPSCTL_STATE_DIR"}


def _useful(config: "Config") -> Iterator[str]:
    yield from (each.url_env for each in config.databases.values() if each.url_env)
    yield from (config.sentry.dsn_env, config.notify.urls_env, "OPSCTL_STATE_DIR")
    if config.encryption.identity_env:
        yield config.encryption.identity_env
    in_buckets = any(each.url.startswith("s3://") for each in config.repositories.values())
    prefixes = ("PG", *(["AWS_"] if in_buckets else []), *(["DOCKER_"] if config.services else []))
    yield from (name for name in config.variables if name.startswith(prefixes))
