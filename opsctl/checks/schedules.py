"""Whether what [schedule] says is set up on this host, and did run."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.checks.backups import AFTER_ONE, RESTORED, backed_up, backups_of
from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken
from opsctl.cron.installed import RUNS_LOOKED_AT, JobReport, judge_job, of_scheduler
from opsctl.cron.jobs import EARLY, NO_SCHEDULE, Job, find_job, jobs_of
from opsctl.history import FILE, History
from opsctl.schedule import SCHEDULED

if TYPE_CHECKING:
    from opsctl.catalog import Backup
    from opsctl.config import Config

NOT_CONFIGURED = "No schedule of backups is configured ([schedule] backup)."
NO_DRILLS = "No schedule of drills is configured ([schedule] drill)."
RUNS = {
    command: re.compile(rf"\bopsctl\b.*\s({command}|run-scheduled{more})\b")
    for command, more in ((command, r"|verify\s.*--drill" if command == "drill" else "") for command in SCHEDULED)
}
"""What a line looks like that runs the job of that name."""

CRON_FILES = ("etc/crontab", "etc/cron.d/*", "etc/cron.hourly/*", "etc/cron.daily/*", "var/spool/cron/crontabs/*")
UNIT_FOLDERS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")
CRONTAB_SECONDS = 3


def scheduled(scope: Scope) -> Iterable[Target]:
    return [Target()] if jobs(scope.config) else []


def scheduled_databases(scope: Scope) -> Iterable[Target]:
    return backed_up(scope) if scope.config.schedule.backup else []


def drilled_databases(scope: Scope) -> Iterable[Target]:
    return backed_up(scope) if scope.config.schedule.drill else []


def jobs(config: "Config") -> list[str]:
    """The jobs of [schedule] that a scheduler has to run."""
    return [job.command for job in jobs_of(config)]


def check_installed(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    config = scope.config
    text = own_crontab(config)
    scheduler = of_scheduler(config.state_path, config.source)
    living = [scheduler.place] if scheduler else []
    found = {job: [*living, *entries(text, "crontab", job), *system_entries(Path("/"), job)] for job in jobs(config)}
    return judge_installed(found)


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


def system_entries(root: Path, job: str = "backup") -> Iterator[str]:
    """The same from the files of cron and systemd below ``root``, as far as they may be read."""
    for pattern in CRON_FILES:
        for path in sorted(root.glob(pattern)):
            yield from entries(_text(path), str(path), job)
    for folder in (root / each for each in UNIT_FOLDERS):
        for timer in sorted(folder.glob("*.timer")):
            named = re.search(r"^Unit\s*=\s*(\S+)", _text(timer), re.MULTILINE)
            service = folder / (named[1] if named else f"{timer.stem}.service")
            is_enabled = any((each / "timers.target.wants" / timer.name).is_symlink() for each in folders_of(root))
            if is_enabled and re.search(rf"^ExecStart\s*=.*{RUNS[job].pattern}", _text(service), re.MULTILINE):
                yield str(timer)


def folders_of(root: Path) -> Iterator[Path]:
    return (root / each for each in UNIT_FOLDERS)


def entries(text: str, source: str, job: str = "backup") -> Iterator[str]:
    """The places in a crontab or script that run a job: ``/etc/crontab:12``."""
    for number, line in enumerate(text.splitlines(), start=1):
        if RUNS[job].search(line) and not line.lstrip().startswith("#"):
            yield f"{source}:{number}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def judge_installed(found: dict[str, list[str]]) -> Finding:
    """Whether something runs each job."""
    missing = [job for job, places in found.items() if not places]
    places = sorted({place for each in found.values() for place in each})
    if not missing:
        text = f"What [schedule] names ({', '.join(found)}) is run by {', '.join(places)}."
        return Finding("ok", text, value=len(places), details={"found": places})
    commands = " or ".join(f"`opsctl {job}`" for job in missing)
    return Finding(
        "warn",
        f"Neither a crontab nor an enabled systemd timer that may be read here runs {commands}.",
        value=len(places),
        code="not_installed",
        details={"missing": missing, "found": places},
        remedy=Remedy(
            "Have cron run it. If another host or scheduler does, disable this check.",
            "opsctl cron install",
        ),
    )


def check_ran(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    job = find_job(scope.config, "backup")
    if job is None:  # there is no target then
        return Finding("skip", NOT_CONFIGURED)
    return judge_ran(target, backups_of(scope, target), job, now=scope.clock())


def judge_ran(database: str, backups: "list[Backup]", job: Job, *, now: datetime) -> Finding:
    """Whether a backup was begun since the last expected run."""
    expected = job.expected_at(now)
    if expected is None:
        return Finding("ok", "No run was expected yet.")
    since = [each for each in backups if expected - EARLY <= each.created_at <= now]
    following = job.schedule.next_run(now)
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


def check_drilled(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    job = find_job(scope.config, "drill")
    if job is None:  # there is no target then
        return Finding("skip", NO_DRILLS)
    return judge_drilled(target, backups_of(scope, target), job, now=scope.clock())


def judge_drilled(database: str, backups: "list[Backup]", job: Job, *, now: datetime) -> Finding:
    """Whether a drill has judged a backup since the last expected one."""
    expected = job.expected_at(now)
    if not backups:
        return Finding("skip", "There is no backup yet, see backup.age.")
    if expected is None or all(expected < each.created_at for each in backups):
        return Finding("ok", "No drill was expected yet.")
    judged = (each for backup in backups for copy in backup.copies for each in copy.evidence if each.level in RESTORED)
    latest = max((each.at for each in judged if each.at <= now), default=None)
    details = {"expected_at": expected.isoformat(), "last_at": latest.isoformat() if latest else None}
    if latest is not None and latest >= expected - EARLY:
        return Finding("ok", f"The drill of {expected:%Y-%m-%d %H:%M} UTC was made.", details=details)
    late = spoken((now - expected).total_seconds())
    return Finding(
        "warn",
        f"The drill of {expected:%Y-%m-%d %H:%M} UTC, {late} ago, has left no evidence about {database}.",
        code="missed",
        details=details,
        remedy=Remedy(
            "Make it now. If it says why it could not judge the backup, see to that; else see in the log of cron or of"
            " the timer why it did not happen.",
            f"opsctl drill latest:{database}",
        ),
    )


def check_begun(scope: Scope, _target: str, _thresholds: Thresholds, *, command: str) -> Finding:
    job = find_job(scope.config, command)
    if job is None:  # there is no target then
        return Finding("skip", NO_SCHEDULE)
    now, history = scope.clock(), History(scope.config.state_path / FILE)
    expected = job.expected_at(now)
    was_here = expected is not None and history.runs(before=expected, limit=1)
    runs = history.runs(command=command, limit=RUNS_LOOKED_AT)
    return judge_begun(judge_job(job, runs, since=None if was_here else now, now=now))


def judge_begun(report: JobReport) -> Finding:
    """Whether the last expected run of a command began on this host, and did not fail."""
    command, last = report.job.command, report.last
    has_failed = report.state == "ok" and last is not None and last.outcome in {"failed", "lost"}
    details = {
        "expected_at": report.expected_at.isoformat() if report.expected_at else None,
        "last_at": last.started_at.isoformat() if last else None,
        "last_outcome": last.outcome if last else None,
    }
    message = (
        f"{report.message[:1].upper()}{report.message[1:]}{f', and {last.outcome}' if last and has_failed else ''}."
    )
    if report.state in {"ok", "pending"} and not has_failed:
        return Finding("ok", message, details=details)
    return Finding(
        "warn",
        message,
        code="failed" if has_failed else report.state,
        details=details,
        remedy=Remedy(
            f"Run it now; `opsctl history --command {command}` says how the last ones ended.", f"opsctl {command}"
        ),
    )


def _begun(name: str, command: str, why: str) -> Check:
    """A check of a command that leaves nothing of its own but its line in the history."""
    return Check(
        id=f"schedule.{name}",
        title=f"the last scheduled {command} ran",
        probe=partial(check_begun, command=command),
        reads=f"the history of this host: whether `opsctl {command}` began since the last time that [schedule] expected"
        " it, after a quarter of the interval, and how it ended",
        why=why,
        fix="Run it now, then see in the log of cron or of the timer why it did not run. Where another host runs it,"
        " disable this check.",
        targets=lambda scope: [Target()] if find_job(scope.config, command) else [],
        not_configured=f"No schedule is configured for it ([schedule] {command}).",
    )


CHECKS = (
    Check(
        id="schedule.installed",
        title="something on this host runs what is scheduled",
        probe=check_installed,
        reads="whether a run-scheduled lives; `crontab -l`, /etc/crontab, /etc/cron.*, the crontabs of other users and"
        " systemd's enabled timers, as far as they may be read: whether one runs `opsctl backup`, and what else is"
        " scheduled",
        why="[schedule] says when backups and drills should run; it does not run them.",
        fix="`opsctl cron install`. Where another host or scheduler does it, disable this check.",
        targets=scheduled,
        not_configured=NO_SCHEDULE,
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
    Check(
        id="schedule.drilled",
        title="the last scheduled drill was made",
        probe=check_drilled,
        reads="whether there is evidence of a restore, pass or fail, since the last time that [schedule] expected a"
        " drill, after a quarter of the interval",
        why="A drill that ends with unknown every week proves nothing, and nothing else tells of it for a month.",
        fix="Make the drill now, and see to what it names; else see in the log of cron or of the timer.",
        after_one=AFTER_ONE,
        targets=drilled_databases,
        not_configured=NO_DRILLS,
    ),
    _begun(
        "synced",
        "sync",
        "A repository that was away for a while gets what it lacks from nothing else until a backup follows.",
    ),
    _begun("pruned", "prune", "What the retention would take stays, and fills the disk, where no backup follows."),
)
