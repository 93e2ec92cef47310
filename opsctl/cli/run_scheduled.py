import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.output import Outcome
from opsctl.errors import HistoryUnavailable, OpsctlError

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.cron.jobs import Job

Health = Annotated[bool, typer.Option("--health", help="Only say whether it runs with this state folder: 0 yes, 1 no.")]


def run_scheduled(session: "Session", health: Health = False) -> Outcome:
    """Run what the schedule says, without cron, until SIGTERM or Ctrl-C: for containers.

    Each command is a process of its own, one of a kind at a time. A run that was missed while nothing ran is caught up
    once at the start. A signal to end is passed on, and what runs is waited for.

    Example: [bold]opsctl run-scheduled[/bold]
    """
    from opsctl.cron.jobs import require_jobs
    from opsctl.cron.scheduler import Scheduler
    from opsctl.cron.sign_of_life import alone
    from opsctl.cron.timetable import Timetable

    if health:
        return _health(session)
    config, jobs = session.config, require_jobs(session.config)
    with alone(config.state_path):
        timetable = Timetable(jobs, _last_begun(session, jobs), now=session.clock())
        scheduler = Scheduler(
            timetable,
            words=lambda job: _words(session, job),
            folder=config.state_path,
            source=config.source,
            clock=session.clock,
            log=session.log(),
            describe=lambda job, pid: _describe(session, job, pid),
        )
        session.log().info("schedule.started", jobs={job.command: job.schedule.expression for job in jobs})
        with suppress(KeyboardInterrupt):  # how it ends: any signal to end is one
            scheduler.run()
    counts = {"runs": scheduler.runs, "failed": scheduler.failed}
    return Outcome(counts, fields=counts)


def _health(session: "Session") -> Outcome:
    from opsctl.cron.sign_of_life import seen

    sign = seen(session.config.state_path)
    if sign is None or not sign.is_alive:
        since = f"has not shown itself for {sign.age_seconds:.0f} s" if sign else "has never run"
        raise OpsctlError(
            f"run-scheduled {since} with {session.config.state_path}.",
            hint="See its log; a scheduler that hangs is restarted by whoever runs the container.",
        )
    seconds = round(sign.age_seconds, 1)
    return Outcome({"pid": sign.pid, "seen_seconds_ago": seconds}, [f"run-scheduled lives (pid {sign.pid})."])


def _words(session: "Session", job: "Job") -> list[str]:
    from opsctl.cron.jobs import named_file, program

    options = session.options
    words = [*program(session.config), job.command, *named_file(session.config)]
    words += ["--quiet"] if options.quiet else []
    words += ["--debug"] if options.debug else []
    return [*words, "--log-file", str(options.log_file.absolute())] if options.log_file else words


def _last_begun(session: "Session", jobs: "Sequence[Job]") -> dict[str, datetime]:
    """When each command began last on this host; without a history nothing is caught up."""
    try:
        with suppress(HistoryUnavailable):
            session.history.notice_lost(at=session.clock(), host=socket.gethostname())
        runs = [run for job in jobs for run in session.history.runs(command=job.command, limit=1)]
    except HistoryUnavailable as error:
        session.log().warning("schedule.forgotten", message=f"{error.message} What was missed is not caught up.")
        return {}
    return {run.command: run.started_at for run in runs}


def _describe(session: "Session", job: "Job", pid: int) -> Mapping[str, Any]:
    """The run's id and outcome, as the history has them."""
    with suppress(HistoryUnavailable):
        for run in session.history.runs(command=job.command, limit=5):
            if run.pid == pid:
                return {"child_run_id": run.run_id, "outcome": run.outcome}
    return {}
