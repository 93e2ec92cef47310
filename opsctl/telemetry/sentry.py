"""Failures of commands, reported to Sentry.

Measured traps this module is built around: the SDK sends ``sys.argv``, local variables and subprocess command lines by
default, with the passwords in them; its exit handler prints to stderr (cron then mails it) and waits for a server that
never answers. So: no default integrations, no locals, every string through the redactor, one bounded flush.
"""

from collections.abc import Mapping
from typing import Any

from opsctl import __version__
from opsctl.telemetry.redact import Redactor

FLUSH_SECONDS = 2.0


def report_failure(
    error: BaseException,
    *,
    dsn: str,
    environment: str | None,
    redactor: Redactor,
    tags: Mapping[str, str],
    fingerprint: list[str],
) -> bool:
    """Send one event for ``error`` and wait for it at most two seconds; whether everything was sent.

    ``fingerprint`` makes the same failure of every night one issue. Never raises: reporting must not fail a run.
    """
    try:
        import sentry_sdk

        client = sentry_sdk.Client(
            dsn=dsn,
            environment=environment or "production",
            release=f"opsctl@{__version__}",
            default_integrations=False,
            auto_enabling_integrations=False,
            include_local_variables=False,
            include_source_context=False,
            send_default_pii=False,
            max_request_body_size="never",
            shutdown_timeout=FLUSH_SECONDS,
            before_send=lambda event, _hint: redactor.deep(event),
        )
        scope = sentry_sdk.Scope(client=client)
        for key, value in tags.items():
            scope.set_tag(key, value)
        scope.fingerprint = fingerprint
        event, hint = sentry_sdk.utils.event_from_exception(error, client_options=client.options)
        client.capture_event(event, hint=hint, scope=scope)
        return _flushed(client)
    except Exception:  # noqa: BLE001 - see the docstring
        return False


def _flushed(client: Any) -> bool:
    """Whether the event left in time; the transport's thread is a daemon and dies with us otherwise."""
    pending: list[int] = []
    client.flush(timeout=FLUSH_SECONDS, callback=lambda count, _timeout: pending.append(count))
    return not pending
