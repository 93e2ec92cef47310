"""Who else hears of a run: Sentry, the heartbeat's service, the people in [notify]. None of it fails or holds up a run.

A run that somebody watches says nothing about the schedule, so it neither checks in nor pings, and nobody is told of a
failure they see themselves; that something works again is told in any case, because others wait for it.
"""

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

from opsctl.errors import DoctorExit, ExitCode, OpsctlError

if TYPE_CHECKING:
    from opsctl.cli.output import Outcome
    from opsctl.cli.session import Session
    from opsctl.cli.troubles import Found
    from opsctl.telemetry.heartbeat import Heartbeat
    from opsctl.telemetry.notify import Notifier
    from opsctl.telemetry.sentry import Monitor, Sentry, Span
    from opsctl.telemetry.told import News

SCHEDULED = frozenset({"backup", "drill", "doctor", "verify", "prune", "sync"})
"""What runs by itself and asks nobody: of these a refusal is a failure, too."""

NO_FAILURES = frozenset({"usage", "refused"})
"""Errors that are no failure of a backup or a server, when a person typed the command."""


class Announcer:
    """One run, announced."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._command = session.command
        self._has_begun = False
        self._is_scheduled = session.command in SCHEDULED and not session.is_attended

    def begin(self) -> None:
        """Say that a scheduled run has begun; in the background."""
        self._has_begun = True
        if not self._is_scheduled:
            return
        self._guard("heartbeat", self._ping_start)
        self._guard("sentry", self._check_in_start)

    def end(self, outcome: "Outcome", finished_at: datetime) -> None:
        """Say how it ended, and wait for that: two seconds, longer only for people who have to be told.

        A run that only looked was never begun here: what is said of it is a failure, to Sentry.
        """
        tell = None
        if self._has_begun:
            seconds = (finished_at - self._session.started_at).total_seconds()
            self._guard("heartbeat", lambda: self._ping_end(outcome))
            self._guard("sentry", lambda: self._check_in_end(outcome, seconds))
            self._guard("sentry", self._report_checks)
            self._guard("sentry", lambda: self._trace(outcome, finished_at))
            tell = self._guard("notify", lambda: self._begin_telling(outcome, finished_at))
        self._guard("sentry", lambda: self._report(outcome))
        self._guard("sentry", self._wait)
        if tell is not None:
            self._guard("notify", tell)

    def _guard(self, what: str, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - see the module's first line
            self._session.log().debug(f"{what}.failed", message=f"{type(error).__name__}: {error}")
            return None

    # The heartbeat

    @cached_property
    def _heartbeat(self) -> "Heartbeat | None":
        from opsctl.telemetry.delivery import run_uuid
        from opsctl.telemetry.heartbeat import Heartbeat

        url = self._session.config.heartbeat_urls.get(self._command)
        return Heartbeat(url, run_uuid=run_uuid(self._session.run_id)) if url else None

    def _ping_start(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.started()

    def _ping_end(self, outcome: "Outcome") -> None:
        from opsctl.telemetry.heartbeat import MOST_BYTES

        if self._is_scheduled and self._heartbeat is not None:
            self._heartbeat.ended(_verdict(self._command, outcome), self._session.recent.tail(MOST_BYTES))

    # Sentry

    @cached_property
    def _sentry(self) -> "Sentry | None":
        try:
            config = self._session.config
            dsn, environment, state = config.sentry_dsn, config.sentry_environment, config.state_path
        except OpsctlError:
            from opsctl.config import environment_dsn
            from opsctl.config_file import environment_state_path

            # The configuration itself is what failed.
            dsn, environment, state = environment_dsn(), None, environment_state_path()
        if not dsn:
            return None
        from opsctl.telemetry.delivery import run_uuid
        from opsctl.telemetry.sentry import Sentry
        from opsctl.telemetry.spool import Spool

        return Sentry(
            dsn,
            environment=environment,
            redactor=self._session.redactor,
            spool=Spool(state / "sentry"),
            clock=self._session.clock,
            trace_id=run_uuid(self._session.run_id).replace("-", ""),
            tags={"command": self._command, "run_id": self._session.run_id},
            log=self._session.recent,
        )

    @cached_property
    def _monitor(self) -> "Monitor | None":
        """What Sentry watches this command's schedule with, if it has one."""
        from opsctl.cron.jobs import find_job
        from opsctl.telemetry.sentry import Monitor

        settings = self._session.config.sentry
        job = find_job(self._session.config, self._command)
        if job is None:
            return None
        margin = settings.checkin_margin_minutes + ceil(job.jitter_seconds / 60)
        slug = f"{settings.monitor_prefix}-{self._command}"
        return Monitor(slug, job.schedule, margin, settings.max_runtime_minutes)

    def _check_in_start(self) -> None:
        if self._sentry is None:
            return
        if self._monitor is not None:
            self._sentry.check_in(self._monitor, "in_progress", started_at=self._session.started_at)
        self._sentry.send_spooled()

    def _check_in_end(self, outcome: "Outcome", seconds: float) -> None:
        if self._is_scheduled and self._sentry is not None and self._monitor is not None:
            status = "error" if _verdict(self._command, outcome) else "ok"
            self._sentry.check_in(self._monitor, status, started_at=self._session.started_at, seconds=seconds)  # type: ignore[arg-type]

    def _report(self, outcome: "Outcome") -> None:
        """Events of what failed: of the run, or of each database of it."""
        error = outcome.error
        if error is not None:
            if not self._is_failure(error) or self._sentry is None:
                return
            from opsctl.cli.troubles import cause_of
            from opsctl.telemetry.sentry import DEFAULT_FINGERPRINT

            is_bug = error.code == "bug" and error.__cause__ is not None
            database = str(outcome.fields.get("database", ""))
            cause = DEFAULT_FINGERPRINT if is_bug else cause_of(error)
            self._sentry.failure(
                error.__cause__ if is_bug and error.__cause__ else error,
                fingerprint=["opsctl", self._command, *(["bug"] if is_bug else []), cause, database],
                tags={"code": error.code, "database": database},
                details={"exit_code": int(outcome.code), "hint": error.hint},
            )
        elif outcome.code is ExitCode.ATTENTION and self._sentry is not None:
            self._report_parts(self._sentry, outcome)

    def _report_parts(self, sentry: "Sentry", outcome: "Outcome") -> None:
        from opsctl.cli.troubles import found_by

        for trouble in found_by(self._command, outcome, self._session.recent.complaints).troubles:
            sentry.message(
                f"{trouble.subject}: {trouble.message}",
                level="warning" if trouble.cause == "attention" else "error",
                fingerprint=["opsctl", trouble.key, trouble.cause],
                tags={"code": trouble.cause, "database": trouble.key.split("/")[1]},
                details={"exit_code": int(outcome.code), "hint": trouble.hint},
            )

    def _report_checks(self) -> None:
        """Events of checks whose state changed; all of one check at one target are one issue."""
        for change in self._session.check_changes:
            state, was = change.state, change.before
            if self._sentry is None or (was is None and state.status == "ok"):
                continue
            level = {"crit": "error", "unknown": "error", "warn": "warning"}.get(state.status, "info")
            target = state.target or ""
            name = f"{state.id} ({target})" if target else state.id
            self._sentry.message(
                f"{name}: {state.entry['message']}",
                level=level,  # type: ignore[arg-type]
                fingerprint=["opsctl", "check", state.id, target],
                tags={"check": state.id, "target": target, "status": state.status, "before": was or "never seen"},
                details={key: state.entry.get(key) for key in ("code", "value", "unit", "warn", "crit", "remedy")},
            )

    def _trace(self, outcome: "Outcome", finished_at: datetime) -> None:
        with suppress(OpsctlError):
            rate = self._session.config.sentry.traces_sample_rate
            if self._sentry is not None and rate:
                self._sentry.trace(
                    f"opsctl {self._command}",
                    started_at=self._session.started_at,
                    finished_at=finished_at,
                    is_ok=not _verdict(self._command, outcome),
                    spans=self._phases(finished_at),
                    rate=rate,
                )

    def _phases(self, finished_at: datetime) -> list["Span"]:
        """Each phase until the next one begins."""
        from opsctl.telemetry.sentry import Span

        phases = [*self._session.phases, ("", finished_at)]
        return [Span(label, began, ended) for (label, began), (_, ended) in pairwise(phases)]

    def _is_failure(self, error: OpsctlError) -> bool:
        if error.exit_code is ExitCode.INTERRUPTED:
            return False
        return error.code not in NO_FAILURES or (self._is_scheduled and error.code == "refused")

    def _wait(self) -> None:
        heartbeat = self.__dict__.get("_heartbeat")
        sentry = self.__dict__.get("_sentry")
        if heartbeat is None and sentry is None:
            return
        from opsctl.telemetry.sentry import FLUSH_SECONDS

        deadline = time.monotonic() + FLUSH_SECONDS
        if sentry is not None:
            sentry.send_spooled()
            if not sentry.finish(deadline - time.monotonic()):
                self._session.log().debug("sentry.unsent")
        if heartbeat is not None and not heartbeat.sender.wait(deadline - time.monotonic()):
            self._session.log().debug("heartbeat.unsent")

    # People

    def _begin_telling(self, outcome: "Outcome", now: datetime) -> Callable[[], None] | None:
        """Begin to tell what is news; what is left to do is to wait for that, and to remember it."""
        try:
            urls, settings = self._session.config.notify_urls, self._session.config.notify
        except OpsctlError:
            return None
        if not urls or self._command not in SCHEDULED:
            return None
        from opsctl.cli.troubles import drill_message, messages, still_known
        from opsctl.telemetry.notify import Notifier
        from opsctl.telemetry.told import Memory, news

        memory = Memory(self._session.config.state_path / "told.json")
        known = memory.read()
        found = self._found(outcome)
        host, run = platform.node() or "opsctl", self._described_run(outcome, now)
        wanted = news(known, found.troubles, found.well, now=now, repeat_after=timedelta(hours=settings.repeat_hours))
        drill = drill_message(self._command, outcome, host=host, run=run) if "drill" in settings.on else None
        if self._session.is_attended:
            wanted, drill = replace(wanted, new=(), again=()), None
        # What a drill found stands in its own message; what failed of it is remembered as told all the same.
        rest = replace(wanted, new=(), again=()) if drill else wanted
        texts = [*messages(rest, on=settings.on, host=host, run=run), *([drill] if drill else [])]
        notifier = Notifier(urls, self._session.redactor)
        for text in texts:
            notifier.begin(text)

        def finish() -> None:
            has_arrived = not texts or self._finished(notifier)
            if still_known(known, found):
                memory.remember(found.troubles, found.well, wanted if has_arrived else _nothing(), now=now)

        return finish

    def _found(self, outcome: "Outcome") -> "Found":
        from opsctl.cli.troubles import Found, found_by, found_by_checks

        found = found_by(self._command, outcome, self._session.recent.complaints)
        if self._command != "doctor" or outcome.error is not None:
            return found
        checks = found_by_checks((outcome.result or {}).get("checks", ()))
        return Found((*found.troubles, *checks.troubles), found.well | checks.well)

    def _finished(self, notifier: "Notifier") -> bool:
        """Whether anybody was reached. Who was not is the one thing said here: nobody else would notice."""
        sent = notifier.finish()
        for each in sent:
            if each.error is not None:
                self._session.log().warning("notify.failed", target=each.target, message=each.error)
        return any(each.error is None for each in sent)

    def _described_run(self, outcome: "Outcome", now: datetime) -> str:
        code = int(outcome.code)
        return f"opsctl {self._command}, run {self._session.run_id}, exit code {code}, {now:%Y-%m-%d %H:%M} UTC"


def _nothing() -> "News":
    from opsctl.telemetry.told import News

    return News()


def _verdict(command: str, outcome: "Outcome") -> int:
    """The exit code as a service that watches a schedule should judge it: a warning of doctor is none of its business.

    Nothing but 0 is a success there.
    """
    code = int(outcome.code)
    return 0 if command == "doctor" and outcome.error is None and code == DoctorExit.WARN else code
