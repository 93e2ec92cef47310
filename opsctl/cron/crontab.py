"""cron: the lines it needs, and the crontabs they stand in."""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from opsctl.cron.block import find, with_block, without_block, written
from opsctl.cron.installed import PlaceState, Standing, differences, refuse_edits
from opsctl.cron.jobs import Job, command_line, named_file, program
from opsctl.cron.zones import translated
from opsctl.errors import ConfigurationError, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opsctl.config import Config

SYSTEM_FILE = Path("/etc/cron.d/opsctl")
DAEMONS = frozenset({"cron", "crond", "fcron", "dcron"})
SECONDS = 10
LONGEST = 998
"""What Debian's cron takes of a command."""

HEADER = "# `opsctl cron install` writes these lines: change [schedule] and install again. Times are the machine's own."


class Crontab(Protocol):
    """Where cron reads lines."""

    @property
    def name(self) -> str: ...

    @property
    def has_users(self) -> bool:
        """Whether its lines say whom they run as, after the five fields."""

    def read(self) -> str:
        """All of it, byte for byte; empty where there is none. Raises ConfigurationError."""
        ...

    def write(self, text: str) -> None:
        """Replace all of it; empty text takes it away. Raises ConfigurationError."""
        ...


@dataclass(frozen=True)
class UserCrontab:
    """The crontab of the user we are, through the program of that name."""

    search_path: "tuple[str, ...]"
    environment: "Mapping[str, str]"
    name: str = "crontab"
    has_users: bool = False

    def read(self) -> str:
        answer = self._run("-l")
        if answer.returncode == 0:
            return answer.stdout.decode("utf-8", "surrogateescape")
        complaint = answer.stderr.decode("utf-8", "replace").strip()
        if "no crontab for" in complaint.lower() or "No such file" in complaint:  # Debian's word, and busybox's
            return ""
        raise ConfigurationError(
            f"The crontab cannot be read: {complaint or f'crontab -l ended with {answer.returncode}'}.",
            hint="/etc/cron.allow and /etc/cron.deny say who may have one.",
        )

    def write(self, text: str) -> None:
        answer = self._run("-", given=text) if text else self._run("-r")
        if answer.returncode:
            complaint = answer.stderr.decode("utf-8", "replace").strip()
            raise ConfigurationError(
                f"cron does not take the crontab: {complaint or f'crontab ended with {answer.returncode}'}.",
                hint="It is what it was. `opsctl cron show` prints what was to be added.",
            )

    def _run(self, argument: str, given: str | None = None) -> "subprocess.CompletedProcess[bytes]":
        found = shutil.which("crontab", path=os.pathsep.join(self.search_path))
        if found is None:
            raise ConfigurationError(
                "There is no program crontab on PATH.",
                hint="Debian: apt-get install cron. Without cron: `opsctl cron install --systemd`, or run-scheduled.",
            )
        try:
            return subprocess.run(
                [found, argument],
                env=dict(self.environment),
                input=(given or "").encode("utf-8", "surrogateescape"),
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigurationError(f"{found} does not answer.", hint=str(error)) from error


@dataclass(frozen=True)
class CronFile:
    """A file of the system's crontabs. cron reads no file there that others may write, or with a dot in its name."""

    path: Path = SYSTEM_FILE
    has_users: bool = True

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> str:
        try:
            return self.path.read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error.strerror}.", hint="Be root.") from error

    def write(self, text: str) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            if not text:
                self.path.unlink(missing_ok=True)
                return
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            partial.rename(self.path)
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} cannot be written: {error.strerror}.",
                hint="Be root, or leave --system away: the crontab of your own needs no rights.",
            ) from error


def lines(config: "Config", jobs: list[Job], *, machine: tzinfo, now: datetime, user: str | None = None) -> list[str]:
    """What stands between the marks: a line for each job. Raises Refused where cron would not take one."""
    found = [HEADER]
    for job in jobs:
        translation = translated(job.schedule, machine, year=now.year)
        words = command_line(config, job)
        if job.jitter_seconds or not translation.is_exact:
            due = [] if translation.is_exact else ["--if-due"]
            words = [*program(config), "cron", "run", job.command, "--quiet", *due, *named_file(config)]
        command = f"cd {shlex.quote(str(config.folder.absolute()))} && {shlex.join(words)}".replace("%", r"\%")
        if "\n" in command or len(command.encode("utf-8", "surrogateescape")) > LONGEST:
            raise Refused(
                f"cron takes no command like that of {job.command}: it is longer than {LONGEST} bytes, or has a line"
                " break in it.",
                hint="Put the configuration and opsctl where their paths are shorter.",
            )
        found.append(" ".join(filter(None, [translation.schedule.expression, user, command])))
    return found


@dataclass(frozen=True)
class CrontabPlace:
    """A configuration's block in a crontab."""

    source: str
    crontab: Crontab
    wanted: "tuple[str, ...]"

    @property
    def name(self) -> str:
        return self.crontab.name

    def user(self) -> str | None:
        block = find(self.crontab.read(), self.source) if self.crontab.has_users else None
        found = (line.split() for line in (block.lines if block else ()) if not line.startswith("#"))
        return next((words[5] for words in found if len(words) > 5), None)

    def look(self) -> Standing:
        block = find(self.crontab.read(), self.source)
        if block is None:
            return Standing(self.name, "missing")
        differs = differences(block.lines, self.wanted)
        state: PlaceState = "edited" if block.is_edited else "outdated" if differs else "installed"
        return Standing(self.name, state, block.installed_at, differs)

    def install(self, *, now: datetime, discard_edits: bool) -> bool:
        standing = self.look()
        if standing.state == "installed":
            return False
        if not discard_edits:
            refuse_edits(standing)
        block = written(self.source, list(self.wanted), installed_at=now)
        self.crontab.write(with_block(self.crontab.read(), self.source, block))
        return True

    def remove(self, *, discard_edits: bool) -> bool:
        standing = self.look()
        if standing.state == "missing":
            return False
        if not discard_edits:
            refuse_edits(standing)
        self.crontab.write(without_block(self.crontab.read(), self.source))
        return True


def daemon_runs(proc: Path = Path("/proc")) -> bool | None:
    """Whether a cron runs on this machine, as far as its processes can be seen."""
    try:
        names = {_text(path) for path in proc.glob("[0-9]*/comm")}
    except OSError:
        return None
    return bool(names & DAEMONS) if names else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
