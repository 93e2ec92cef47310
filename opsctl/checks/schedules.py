"""Whether what [schedule] says is set up on this host, and did run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.checks.backups import AFTER_ONE, backed_up, backup_schedule, backups_of
from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken

if TYPE_CHECKING:
    from opsctl.config import Config
    from opsctl.repository import Backup
    from opsctl.schedule import Schedule

NOT_CONFIGURED = "No schedule is configured ([schedule] backup)."
RUNS_BACKUPS = re.compile(r"\bopsctl\b.*\s(backup|run-scheduled)\b")
CRON_FILES = ("etc/crontab", "etc/cron.d/*", "etc/cron.hourly/*", "etc/cron.daily/*", "var/spool/cron/crontabs/*")
UNIT_FOLDERS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")
CRONTAB_SECONDS = 3
EARLY = timedelta(minutes=1)
"""A run may begin a little before its minute by the clock of another host."""


def scheduled(scope: Scope) -> Iterable[Target]:
    return [Target()] if scope.config.schedule.backup else []


def scheduled_databases(scope: Scope) -> Iterable[Target]:
    return backed_up(scope) if scope.config.schedule.backup else []


def check_installed(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    config = scope.config
    line = crontab_line(config)
    text = own_crontab(config)
    return judge_installed([*entries(text, "crontab"), *system_entries(Path("/"))], line)


def own_crontab(config: "Config") -> str:
    """What `crontab -l` says; nothing where there is no such program or no crontab."""
    program = shutil.which("crontab", path=os.pathsep.join(config.search_path))
    if program is None:
        return ""
    try:
        answer = subprocess.run(
            [program, "-l"],
            env=config.child_environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CRONTAB_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.decode("utf-8", "replace")


def system_entries(root: Path) -> Iterator[str]:
    """The same from the files of cron and systemd below ``root``, as far as they may be read."""
    for pattern in CRON_FILES:
        for path in sorted(root.glob(pattern)):
            yield from entries(_text(path), str(path))
    for folder in (root / each for each in UNIT_FOLDERS):
        for timer in sorted(folder.glob("*.timer")):
            named = re.search(r"^Unit\s*=\s*(\S+)", _text(timer), re.MULTILINE)
            service = folder / (named[1] if named else f"{timer.stem}.service")
            is_enabled = any((each / "timers.target.wants" / timer.name).is_symlink() for each in folders_of(root))
            if is_enabled and re.search(rf"^ExecStart\s*=.*{RUNS_BACKUPS.pattern}", _text(service), re.MULTILINE):
                yield str(timer)


def folders_of(root: Path) -> Iterator[Path]:
    return (root / each for each in UNIT_FOLDERS)


def entries(text: str, source: str) -> Iterator[str]:
    """The places in a crontab or script that run backups: ``/etc/crontab:12``."""
    for number, line in enumerate(text.splitlines(), start=1):
        if RUNS_BACKUPS.search(line) and not line.lstrip().startswith("#"):
            yield f"{source}:{number}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def crontab_line(config: "Config") -> str:
    """What a crontab needs: cron knows neither this folder nor much of PATH."""
    found = shutil.which("opsctl", path=os.pathsep.join(config.search_path))
    program = shlex.quote(found) if found else f"{shlex.quote(sys.executable)} -m opsctl"
    file = Path(config.source)
    named = f" --config {shlex.quote(config.source)}" if file.is_absolute() else ""
    command = f"cd {shlex.quote(str(config.folder))} && {program} backup --quiet{named}"
    return f"{config.schedule.backup} {command.replace('%', chr(92) + '%')}"


def judge_installed(found: list[str], line: str) -> Finding:
    if found:
        return Finding(
            "ok", f"Backups are scheduled in {', '.join(found)}.", value=len(found), details={"found": found}
        )
    add = f"(crontab -l 2>/dev/null; echo {shlex.quote(line)}) | crontab -"
    return Finding(
        "warn",
        "Neither a crontab nor an enabled systemd timer that may be read here runs `opsctl backup`.",
        value=0,
        code="not_installed",
        details={"line": line},
        remedy=Remedy(
            "Add this line; cron reads its times in the machine's own time zone. If another scheduler does it, disable"
            " this check.",
            add,
        ),
    )


def check_ran(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    schedule = backup_schedule(scope)
    if schedule is None:  # there is no target then
        return Finding("skip", NOT_CONFIGURED)
    return judge_ran(target, backups_of(scope, target), schedule, now=scope.clock())


def judge_ran(database: str, backups: "list[Backup]", schedule: "Schedule", *, now: datetime) -> Finding:
    """Whether a backup was begun since the last expected run. One may take a quarter of the interval."""
    interval = schedule.interval(now)
    expected = schedule.last_run(now - interval / 4) if interval else None
    if expected is None:
        return Finding("ok", "No run was expected yet.")
    since = [each for each in backups if expected - EARLY <= each.created_at <= now]
    following = schedule.next_run(now)
    details = {"expected_at": expected.isoformat(), "next_at": following.isoformat() if following else None}
    if since:
        return Finding("ok", f"The run of {expected:%Y-%m-%d %H:%M} UTC has left its backup.", details=details)
    late = spoken((now - expected).total_seconds())
    return Finding(
        "crit",
        f"The run of {expected:%Y-%m-%d %H:%M} UTC, {late} ago, has left no backup of {database}.",
        code="missed",
        details=details,
        remedy=Remedy(
            "Take it now; then see in the log of cron or of the timer why it did not happen.",
            f"opsctl backup {database}",
        ),
    )


CHECKS = (
    Check(
        id="schedule.installed",
        title="something on this host runs the backups",
        probe=check_installed,
        reads="`crontab -l`, /etc/crontab, /etc/cron.*, the crontabs of other users and systemd's enabled timers, as"
        " far as they may be read: whether one runs `opsctl backup`",
        why="[schedule] says when backups should run; it does not run them.",
        fix="Add the line that the finding shows to the crontab. Where another host or scheduler does it, disable this"
        " check.",
        targets=scheduled,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="schedule.ran",
        title="the last scheduled backup was taken",
        probe=check_ran,
        reads="whether there is a backup since the last time that [schedule] expected one, after a quarter of the"
        " interval",
        why="It tells of a missed run long before the newest backup is old.",
        fix="Take a backup now, then see in the log of cron or of the timer why it did not happen.",
        after=("backup.age",),
        after_one=AFTER_ONE,
        targets=scheduled_databases,
        not_configured=NOT_CONFIGURED,
    ),
)
