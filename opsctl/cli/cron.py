import os
import pwd
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from opsctl.cli.output import Outcome, PlainTable, age, duration
from opsctl.errors import ConfigurationError, ExitCode, HistoryUnavailable, Refused, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.cron.installed import JobReport, Place, Standing
    from opsctl.cron.jobs import Job

System = Annotated[bool, typer.Option("--system", help="/etc/cron.d/opsctl instead of your own crontab. Needs root.")]
Systemd = Annotated[bool, typer.Option("--systemd", help="systemd's timers and services instead of cron. Needs root.")]
User = Annotated[
    str | None,
    typer.Option("--user", metavar="USER", help="Whom the commands run as, with --system or --systemd. Default: you."),
]
DiscardEdits = Annotated[bool, typer.Option("--discard-edits", help="Lose what somebody changed there by hand.")]
Compose = Annotated[bool, typer.Option("--compose", help="A service for a compose file, which runs run-scheduled.")]
Kubernetes = Annotated[bool, typer.Option("--kubernetes", help="Kubernetes' CronJobs.")]
Image = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="The image, with --compose or --kubernetes.")
]
Command = Annotated[str, typer.Argument(metavar="COMMAND", help="A command of the schedule: backup, drill, doctor …")]
IfDue = Annotated[
    bool, typer.Option("--if-due", help="Only if the schedule wants it now; cron calls more often, see show.")
]

KINDS = ("crontab", "system", "systemd")


def show(
    session: "Session",
    system: System = False,
    systemd: Systemd = False,
    compose: Compose = False,
    kubernetes: Kubernetes = False,
    user: User = None,
    image: Image = None,
) -> Outcome:
    """Print what cron needs to run what the schedule says; nothing is installed.

    With --systemd the units instead, with --compose a service, with --kubernetes CronJobs.

    Example: [bold]opsctl cron show[/bold]
    """
    from rich.text import Text

    from opsctl.cron.jobs import require_jobs

    jobs, now = require_jobs(session.config), session.clock()
    if sum((system, systemd, compose, kubernetes)) > 1:
        raise UsageError("--system, --systemd, --compose and --kubernetes exclude each other.")
    kind = "compose" if compose else "kubernetes" if kubernetes else _chosen(system=system, systemd=systemd)
    text = _text(session, kind, user, image)
    missing = _warn_of_variables(session)
    result = {"kind": kind, "text": text, "jobs": [_job(job, now) for job in jobs], "missing_variables": missing}
    return Outcome(result, [Text(text.rstrip("\n"), no_wrap=True, overflow="ignore")])


def install(
    session: "Session",
    system: System = False,
    systemd: Systemd = False,
    user: User = None,
    discard_edits: DiscardEdits = False,
) -> Outcome:
    """Have cron, or systemd, run what the schedule says. Everything else in the crontab stays as it is.

    Again it changes nothing; after a change of the schedule it replaces its own lines.

    Example: [bold]opsctl cron install[/bold]
    """
    from opsctl.cron.crontab import daemon_runs
    from opsctl.cron.jobs import require_jobs

    require_jobs(session.config)
    kind = _chosen(system=system, systemd=systemd)
    place = _place(session, kind, user)
    _refuse_twice(session, kind)
    changed = place.install(now=session.clock(), discard_edits=discard_edits)
    runs = None if kind == "systemd" else daemon_runs()
    text: list[RenderableType] = [f"{'Installed in' if changed else 'Nothing to change in'} {place.name}."]
    if runs is False:
        text.append("No cron runs on this machine: nothing will happen until it is started.")
    result = {"place": place.name, "changed": changed, "daemon_runs": runs}
    return Outcome(result | {"missing_variables": _warn_of_variables(session)}, text)


def remove(
    session: "Session", system: System = False, systemd: Systemd = False, discard_edits: DiscardEdits = False
) -> Outcome:
    """Take away what install has put there, and nothing else.

    Example: [bold]opsctl cron remove[/bold]
    """
    place = _place(session, _chosen(system=system, systemd=systemd), None)
    changed = place.remove(discard_edits=discard_edits)
    said = f"Removed from {place.name}." if changed else f"There is nothing of this configuration in {place.name}."
    return Outcome({"place": place.name, "changed": changed}, [said])


def check(session: "Session", system: System = False, systemd: Systemd = False) -> Outcome:
    """Compare what is installed with the configuration, and see whether the last expected runs began.

    Ends with 3 when something is missing, was edited, is not what the schedule says, or did not run. Without an option
    it looks everywhere.

    Example: [bold]opsctl cron check[/bold]
    """
    from opsctl.cron.installed import RUNS_LOOKED_AT, judge_job, of_scheduler
    from opsctl.cron.jobs import require_jobs

    jobs, now = require_jobs(session.config), session.clock()
    kinds = [_chosen(system=system, systemd=systemd)] if system or systemd else list(KINDS)
    standings = [each for each in (_look(session, kind) for kind in kinds) if each.state != "missing"]
    scheduler = of_scheduler(session.config.state_path, session.config.source)
    standings += [scheduler] if scheduler else []
    problems = list(_problems(standings))
    since = max((each.installed_at for each in standings if each.installed_at), default=None)
    with suppress(HistoryUnavailable):
        session.history.notice_lost(at=now, host=socket.gethostname())
    try:
        runs = {job.command: session.history.runs(command=job.command, limit=RUNS_LOOKED_AT) for job in jobs}
        reports = [
            # Nothing that runs it, and nothing that did: no run can be missing.
            judge_job(job, runs[job.command], since=since or (None if runs[job.command] or standings else now), now=now)
            for job in jobs
        ]
    except HistoryUnavailable as error:
        reports = []
        problems.append(error.message)
    wrong = [each for each in reports if each.state in {"missed", "overlapping"}]
    problems += [f"{each.job.command}: {each.message}." for each in wrong]
    result = {
        "places": [
            {
                "name": each.place,
                "state": each.state,
                "installed_at": _time(each.installed_at),
                "differences": list(each.differences),
            }
            for each in standings
        ],
        "jobs": [_job(each.job, now) | _report(each) for each in reports],
        "problems": problems,
    }
    code = ExitCode.ATTENTION if problems else ExitCode.DONE
    text = [f"{each.place}: {each.state}" for each in standings]
    text.append(f"Times are those of {session.config.schedule.timezone}.")
    return Outcome(
        result, [*text, _table(reports, now), *problems], code, fields={"problems": problems} if problems else {}
    )


def run(session: "Session", command: Command, if_due: IfDue = False) -> Outcome:
    """Run a command of the schedule as cron should: after this host's delay, and only if it is due.

    The crontab calls it where its line alone cannot say so: jitter, or clocks of another time zone.

    Example: [bold]opsctl cron run backup[/bold]
    """
    import time

    from opsctl.cron.jobs import command_line, find_job, require_jobs
    from opsctl.cron.zones import machine_zone, translated

    now = session.clock()
    job = find_job(session.config, command)
    if job is None:
        known = ", ".join(each.command for each in require_jobs(session.config))
        raise UsageError(f"[schedule] has no time for {command!r}.", hint=f"It has: {known}.")
    translation = translated(job.schedule, machine_zone(), year=now.year)
    if if_due and not translation.is_due(job.schedule, now):
        return Outcome({"command": command, "due": False})
    time.sleep(job.delay_seconds)
    return _become(command_line(session.config, job))


def _become(words: list[str]) -> NoReturn:
    os.execv(words[0], words)  # noqa: S606 - it goes on as that command, and cron gets its exit code


def _chosen(*, system: bool, systemd: bool) -> str:
    if system and systemd:
        raise UsageError("--system and --systemd are two places: name one of them.")
    return "system" if system else "systemd" if systemd else "crontab"


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _lines(session: "Session", user: str | None) -> list[str]:
    from opsctl.cron.crontab import lines
    from opsctl.cron.jobs import jobs_of
    from opsctl.cron.zones import machine_zone

    config = session.config
    return lines(config, jobs_of(config), machine=machine_zone(), now=session.clock(), user=user)


def _text(session: "Session", kind: str, user: str | None, image: str | None) -> str:
    from opsctl.cron import containers
    from opsctl.cron.block import written
    from opsctl.cron.jobs import jobs_of
    from opsctl.cron.systemd import UNIT_FOLDER
    from opsctl.cron.units import units

    if kind == "compose":
        return containers.compose(session.config, image=image or containers.IMAGE)
    if kind == "kubernetes":
        return containers.kubernetes(session.config, jobs_of(session.config), image=image or containers.IMAGE)
    if kind == "systemd":
        found = units(session.config, jobs_of(session.config), user=user or _user())
        return "\n".join(f"# {UNIT_FOLDER / name}\n{text}" for name, text in found.items())
    return written(session.config.source, _lines(session, (user or _user()) if kind == "system" else None))


def _place(session: "Session", kind: str, user: str | None) -> "Place":
    from opsctl.cron.crontab import CronFile, CrontabPlace, UserCrontab
    from opsctl.cron.jobs import jobs_of
    from opsctl.cron.systemd import SystemdPlace
    from opsctl.cron.units import own_folders, units

    config, name = session.config, user or _user()
    if kind == "systemd":
        wanted = units(config, jobs_of(config), user=name)
        return SystemdPlace(
            config.source, wanted, name, own_folders(config), config.search_path, config.child_environment
        )
    if kind == "system":
        return CrontabPlace(config.source, CronFile(), tuple(_lines(session, name)))
    if user is not None:
        raise UsageError("A crontab of your own runs as you.", hint="--user is for --system and --systemd.")
    own = UserCrontab(tuple(config.search_path), config.child_environment)
    return CrontabPlace(config.source, own, tuple(_lines(session, None)))


def _look(session: "Session", kind: str) -> "Standing":
    """How the configuration stands in a place, whoever its commands run as there."""
    place = _place(session, kind, None)
    there = place.user()
    return (_place(session, kind, there) if there else place).look()


def _refuse_twice(session: "Session", kind: str) -> None:
    """Raises Refused where another place runs the same jobs already: two would run everything twice."""
    from opsctl.cron.installed import of_scheduler

    config = session.config
    scheduler = of_scheduler(config.state_path, config.source)
    if scheduler is not None:
        raise Refused(f"{scheduler.place} runs the jobs of {config.source} already.", hint="End it first.")
    for other in (each for each in KINDS if each != kind):
        try:
            standing = _look(session, other)
        except ConfigurationError:  # not there, or not ours to read
            continue
        if standing.state != "missing":
            option = {"system": " --system", "systemd": " --systemd"}.get(other, "")
            raise Refused(
                f"{standing.place} runs the jobs of {config.source} already.",
                hint=f"`opsctl cron remove{option}` first.",
            )


def _warn_of_variables(session: "Session") -> list[str]:
    from opsctl.cron.jobs import only_here

    missing = only_here(session.config)
    if missing:
        session.log().warning(
            "cron.environment",
            variables=missing,
            message=f"{', '.join(missing)}: set in this shell only; a scheduled run has what stands in .env.",
        )
    return missing


def _problems(standings: Sequence["Standing"]) -> Iterator[str]:
    if not standings:
        yield "Nothing here runs the jobs of this configuration: `opsctl cron install`."
    if len(standings) > 1:
        yield f"{' and '.join(each.place for each in standings)} run the same jobs: remove all but one."
    for each in standings:
        if each.state == "edited":
            yield f"{each.place} was edited by hand: {'; '.join(each.differences[:4]) or 'its digest is another one'}."
        if each.state == "outdated":
            yield f"{each.place} is not what [schedule] says: `opsctl cron install` again."


def _time(moment: datetime | None) -> str | None:
    from opsctl.times import format_time

    return format_time(moment) if moment else None


def _job(job: "Job", now: datetime) -> dict[str, Any]:
    return {
        "command": job.command,
        "expression": job.schedule.expression,
        "timezone": job.schedule.timezone,
        "next_at": _time(job.schedule.next_run(now)),
        "delay_seconds": job.delay_seconds,
        "jitter_seconds": job.jitter_seconds,
        "interval_seconds": (job.schedule.interval(now) or timedelta()).total_seconds(),
        "grace_seconds": job.grace(now).total_seconds(),
    }


def _report(report: "JobReport") -> dict[str, Any]:
    last = report.last
    return {
        "state": report.state,
        "message": report.message,
        "expected_at": _time(report.expected_at),
        "last_started_at": _time(last.started_at if last else None),
        "last_outcome": last.outcome if last else None,
    }


def _table(reports: Sequence["JobReport"], now: datetime) -> "RenderableType":
    table = PlainTable()
    for column in ("Command", "When", "Last run", "Next run", "Grace", "State"):
        table.add_column(column)
    for each in reports:
        schedule, last = each.job.schedule, "never"
        if each.last:
            last = f"{age(each.last.started_at, now)} ago, {each.last.outcome}"
        following = f"{each.next_at.astimezone(schedule.clocks):%Y-%m-%d %H:%M}" if each.next_at else ""
        grace = duration(each.job.grace(now).total_seconds())
        table.add_row(each.job.command, schedule.expression, last, following, grace, each.state)
    return table
