"""Every request on its way through: a name of its own, one line in the log, and what Prometheus is told of it."""

import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

from opsctl.telemetry.logs import get_logger, request_context
from opsctl.telemetry.request_metrics import RequestMetrics
from opsctl.web.guard import Application, Receive, Scope, Send

SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
"""What is accepted as a request's name from outside: nothing that could break a log line or a header."""

FAILED = b"Something went wrong here; the log says what.\n"


class Requests:
    """The outermost layer: whatever happens to a request is answered, logged and counted here."""

    def __init__(self, application: Application, metrics: RequestMetrics) -> None:
        self._application = application
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["request_id"] = _request_id(dict(scope["headers"]).get(b"x-request-id"))
        started = time.monotonic()
        status, sent = 0, 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        with request_context(request_id=request_id):
            try:
                await self._application(scope, receive, counted)
            except Exception as error:  # noqa: BLE001 - the boundary of a request; the server goes on
                get_logger().error("http.bug", exc_info=error)
                if not status:
                    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
                    await counted({"type": "http.response.start", "status": 500, "headers": headers})
                    await counted({"type": "http.response.body", "body": FAILED})
            finally:
                seconds = time.monotonic() - started
                self._metrics.observe(scope["method"], _route(scope), status, seconds)
                self._log(scope, status, sent, seconds)

    def _log(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        """The line of a request: its path as it came, without the query, where a token may stand."""
        log = get_logger()
        say = log.error if status in {0, 500} else log.warning if status in {401, 421, 503} else log.info
        say(
            "http.request",
            method=scope["method"],
            path=scope["raw_path"].partition(b"?")[0].decode("latin-1"),
            status=status,
            bytes=sent,
            duration_seconds=round(seconds, 4),
            client=(scope.get("client") or ("-",))[0],
        )


def _request_id(given: bytes | None) -> str:
    """The caller's name for the request when it is a sane one, else one of ours."""
    if given is not None and SANE_ID.fullmatch(given):
        return given.decode("ascii")
    return secrets.token_hex(8)


def _route(scope: Scope) -> str:
    """The route's pattern, not what was asked for: anybody can make up paths without an end."""
    return getattr(scope.get("route"), "path", None) or "other"
