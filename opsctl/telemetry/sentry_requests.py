"""Failures of the page's own server, reported to Sentry by its integration for FastAPI.

The same rules as for a command's failure: no default integrations, no locals, no bodies, every string redacted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opsctl import __version__
from opsctl.telemetry.redact import Redactor
from opsctl.telemetry.sentry import FLUSH_SECONDS


@contextmanager
def watch_requests(
    dsn: str | None, *, environment: str | None, traces_sample_rate: float, redactor: Redactor
) -> Iterator[None]:
    """Report what goes wrong in a request until the end, and then what is left, in at most two seconds."""
    if not dsn:
        yield
        return
    import sentry_sdk
    from sentry_sdk.integrations.fastapi import FastApiIntegration
    from sentry_sdk.integrations.starlette import StarletteIntegration

    def redacted(event: Any, _hint: Any) -> Any:
        return redactor.deep(event)

    sentry_sdk.init(
        dsn=dsn,
        environment=environment or "production",
        release=f"opsctl@{__version__}",
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[StarletteIntegration(), FastApiIntegration()],
        traces_sample_rate=traces_sample_rate or None,
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        auto_session_tracking=False,
        send_client_reports=False,
        shutdown_timeout=FLUSH_SECONDS,
        before_send=redacted,
        before_send_transaction=redacted,
    )
    sentry_sdk.set_tag("command", "serve")
    try:
        yield
    finally:
        sentry_sdk.get_client().close(timeout=FLUSH_SECONDS)
        sentry_sdk.get_global_scope().set_client(None)
