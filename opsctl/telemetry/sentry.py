"""What Sentry is told: failures, checks that changed, check-ins of schedules, traces.

Measured traps this module is built around: the SDK sends ``sys.argv``, local variables and subprocess command lines by
default, with the passwords in them; its exit handler prints to stderr (cron then mails it) and waits for a server that
never answers, then drops what was not sent. So: no integrations, no locals, a transport of our own (sentry_transport).
"""

import platform
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from opsctl import __version__
from opsctl.schedule import Schedule
from opsctl.telemetry import recent
from opsctl.telemetry.redact import Redactor
from opsctl.telemetry.spool import Spool

if TYPE_CHECKING:
    from sentry_sdk import Client

    from opsctl.telemetry.sentry_transport import SpoolingTransport

FLUSH_SECONDS = 2.0

Level = Literal["error", "warning", "info"]
CheckInStatus = Literal["in_progress", "ok", "error"]

DEFAULT_FINGERPRINT = "{{ default }}"
"""Sentry's own grouping, by the stack: for what has no stable word."""


@dataclass(frozen=True)
class Monitor:
    """What Sentry watches a schedule with: it misses runs that do not check in, and those that take too long."""

    slug: str
    schedule: Schedule
    margin_minutes: int
    runtime_minutes: int

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "schedule": {"type": "crontab", "value": self.schedule.expression},
            "timezone": self.schedule.timezone,
            "checkin_margin": self.margin_minutes,
            "max_runtime": self.runtime_minutes,
            "failure_issue_threshold": 1,
            "recovery_threshold": 1,
        }


@dataclass(frozen=True)
class Span:
    name: str
    started_at: datetime
    finished_at: datetime


class Sentry:
    """One run's reports. Everything is sent in the background; ``finish`` waits for it.

    Its methods may raise what the SDK raises, a DSN that is none for example: whoever calls them lets nothing of that
    fail a run.
    """

    def __init__(
        self,
        dsn: str,
        *,
        environment: str | None,
        redactor: Redactor,
        spool: Spool,
        clock: Callable[[], datetime],
        trace_id: str,
        tags: Mapping[str, str],
        log: recent.Recent,
    ) -> None:
        self._dsn = dsn
        self._environment = environment or "production"
        self._redactor = redactor
        self._spool = spool
        self._clock = clock
        self._trace_id = trace_id
        self._span_id = secrets.token_hex(8)
        self._tags = tags
        self._log = log
        self._is_used = False
        """Whether there is anything to wait for."""

    def failure(
        self,
        error: BaseException,
        *,
        fingerprint: list[str],
        tags: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """An error, with its causes. ``fingerprint`` makes the same one of every night one issue."""
        import sentry_sdk

        event, _hint = sentry_sdk.utils.event_from_exception(error, client_options=self._client.options)
        self._capture(event, level="error", fingerprint=fingerprint, tags=tags, details=details)

    def message(
        self,
        text: str,
        *,
        level: Level,
        fingerprint: list[str],
        tags: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self._capture(
            {"logentry": {"formatted": text}}, level=level, fingerprint=fingerprint, tags=tags, details=details
        )

    def check_in(
        self, monitor: Monitor, status: CheckInStatus, *, started_at: datetime, seconds: float | None = None
    ) -> None:
        """That a scheduled run has begun or ended. One per run: its id is the run's."""
        transport = self._transport
        transport.check_ins_until = monitor.schedule.next_run(started_at)
        self._is_used = True
        self._client.capture_event(
            {
                "type": "check_in",
                "check_in_id": self._trace_id,
                "monitor_slug": monitor.slug,
                "monitor_config": monitor.settings,
                "status": status,
                "duration": seconds,
                "contexts": {"trace": self._trace},
            }
        )

    def trace(
        self, name: str, *, started_at: datetime, finished_at: datetime, is_ok: bool, spans: Iterable[Span], rate: float
    ) -> None:
        """The whole run as a transaction, a ``rate`` of all runs."""
        if random.random() >= rate:  # noqa: S311 - a sample
            return
        status = "ok" if is_ok else "internal_error"
        self._is_used = True
        transaction: Any = {
            "type": "transaction",
            "transaction": name,
            "transaction_info": {"source": "task"},
            "start_timestamp": started_at.timestamp(),
            "timestamp": finished_at.timestamp(),
            "tags": dict(self._tags),
            "contexts": {**self._contexts, "trace": {**self._trace, "op": "opsctl.run", "status": status}},
            "spans": [self._span(each) for each in spans],
        }
        self._client.capture_event(transaction)

    def send_spooled(self) -> None:
        """Send what earlier runs could not."""
        if self._spool.waiting():
            self._is_used = True
            self._transport.send_spooled()

    def finish(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait for what is not sent yet, spool the rest; whether everything was sent."""
        if not self._is_used:
            return True
        left = 0
        try:
            self._transport.flush(seconds)
        finally:  # Ctrl-C does not lose it
            left = self._transport.give_up()
        return not left

    def answer(self, seconds: float) -> str | None:
        """Why what was said last did not arrive, or None; after so long at most."""
        self._transport.flush(seconds)
        return "no answer in time" if self._transport.give_up() else self._transport.problem

    def _capture(
        self,
        event: Any,
        *,
        level: Level,
        fingerprint: list[str],
        tags: Mapping[str, str] | None,
        details: Mapping[str, Any] | None,
    ) -> None:
        contexts = {**self._contexts, "trace": self._trace, **({"opsctl": dict(details)} if details else {})}
        event |= {
            "level": level,
            "fingerprint": fingerprint,
            "tags": {**self._tags, **(tags or {})},
            "contexts": contexts,
            "breadcrumbs": {"values": [_breadcrumb(line) for line in self._log.lines]},
        }
        self._is_used = True
        self._client.capture_event(event)

    def _span(self, span: Span) -> dict[str, Any]:
        return {
            "trace_id": self._trace_id,
            "parent_span_id": self._span_id,
            "span_id": secrets.token_hex(8),
            "op": "opsctl.phase",
            "description": span.name,
            "start_timestamp": span.started_at.timestamp(),
            "timestamp": span.finished_at.timestamp(),
        }

    @property
    def _trace(self) -> dict[str, Any]:
        return {"trace_id": self._trace_id, "span_id": self._span_id}

    @property
    def _contexts(self) -> dict[str, Any]:
        return {"runtime": {"name": platform.python_implementation(), "version": platform.python_version()}}

    @cached_property
    def _transport(self) -> "SpoolingTransport":
        from opsctl.telemetry.sentry_transport import SpoolingTransport

        return SpoolingTransport(self._dsn, redactor=self._redactor, spool=self._spool, clock=self._clock)

    @cached_property
    def _client(self) -> "Client":
        import sentry_sdk

        return sentry_sdk.Client(
            dsn=self._dsn,
            transport=self._transport,
            environment=self._environment,
            release=f"opsctl@{__version__}",
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            enable_backpressure_handling=False,
            include_local_variables=False,
            include_source_context=False,
            send_client_reports=False,
        )


def _breadcrumb(line: Mapping[str, Any]) -> dict[str, Any]:
    level = str(line.get("level", "info"))
    return {
        "type": "error" if level in {"error", "critical"} else "default",
        "category": str(line.get("event", "")),
        "level": {"critical": "fatal"}.get(level, level),
        "message": str(line.get("message", "")),
        "timestamp": line.get("timestamp"),
        "data": {key: value for key, value in recent.details(line).items() if key != "message"},
    }
