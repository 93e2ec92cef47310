import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from opsctl.cli.output import Outcome
from opsctl.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.telemetry.notify import Sent

PATIENCE_SECONDS = 20.0
"""A person waits for the answers here; a run does not wait so long."""


def test(session: "Session") -> Outcome:
    """Send a test to everybody who would hear of a failure: Sentry, the heartbeats' services, the people in [notify].

    A heartbeat gets its test as /log, which changes no state there. Ends with 3 when one of them did not get it.

    Example: [bold]opsctl notify test[/bold]
    """
    begun = [*_sentry(session), *_heartbeats(session), *_people(session)]
    if not begun:
        raise ConfigurationError(
            "Nobody is told of anything.", hint="Set SENTRY_DSN, or add [notify] urls or [heartbeats]: see the docs."
        )
    deadline = time.monotonic() + PATIENCE_SECONDS
    found = [(kind, sent) for kind, finish in begun for sent in finish(max(0.0, deadline - time.monotonic()))]
    result = {
        "targets": [
            {
                "kind": kind,
                "name": sent.target,
                "status": "failed" if sent.error else "sent",
                "error": sent.error,
                "duration_seconds": sent.seconds,
            }
            for kind, sent in found
        ]
    }
    for kind, sent in found:
        if sent.error:
            session.log().error("notify.failed", kind=kind, target=sent.target, message=sent.error)
    all_sent = not any(sent.error for _, sent in found)
    return Outcome(result, _described(found), ExitCode.DONE if all_sent else ExitCode.ATTENTION)


Begun = tuple[str, Callable[[float], "list[Sent]"]]
"""What kind of target it is, and how to wait for what becomes of its test."""


def _sentry(session: "Session") -> list[Begun]:
    sentry_dsn = session.config.sentry_dsn
    if not sentry_dsn:
        return []
    from opsctl.telemetry.delivery import run_uuid
    from opsctl.telemetry.notify import Sent
    from opsctl.telemetry.sentry import Sentry
    from opsctl.telemetry.spool import Spool

    started = time.monotonic()

    def finish(seconds: float) -> "list[Sent]":
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="opsctl-") as folder:  # a test is not sent again tomorrow
            try:
                sentry = Sentry(
                    sentry_dsn,
                    environment=session.config.sentry_environment,
                    redactor=session.redactor,
                    spool=Spool(Path(folder)),
                    clock=session.clock,
                    trace_id=run_uuid(session.run_id).replace("-", ""),
                    tags={"command": session.command, "run_id": session.run_id},
                    log=session.recent,
                )
                sentry.message("This is a test of opsctl.", level="info", fingerprint=["opsctl", "test"])
                problem = sentry.answer(seconds)
            except ValueError as error:  # the SDK's word for a DSN that is none
                problem = str(error)
        return [Sent("sentry", problem and session.redactor.text(problem), round(time.monotonic() - started, 3))]

    return [("sentry", finish)]


def _heartbeats(session: "Session") -> list[Begun]:
    from opsctl.telemetry.delivery import Sender, Undelivered, run_uuid
    from opsctl.telemetry.heartbeat import address, ping
    from opsctl.telemetry.notify import Sent

    def begin(command: str, url: str) -> Begun:
        started = time.monotonic()
        sent: list[Sent] = []
        sender = Sender()

        def send() -> None:
            error = None
            try:
                ping(address(url, "log", run_uuid=run_uuid(session.run_id)), "This is a test of opsctl.")
            except Undelivered as undelivered:
                error = str(undelivered)
            sent.append(Sent(command, error, round(time.monotonic() - started, 3)))

        def finish(seconds: float) -> list[Sent]:
            sender.wait(seconds)
            return sent or [Sent(command, "no answer in time", round(time.monotonic() - started, 3))]

        sender.add(send)
        return "heartbeat", finish

    return [begin(command, url) for command, url in session.config.heartbeat_urls.items()]


def _people(session: "Session") -> list[Begun]:
    from opsctl.telemetry.notify import Message, Notifier

    urls = session.config.notify_urls
    if not urls:
        return []
    notifier = Notifier(urls, session.redactor)
    host = platform.node() or "opsctl"
    notifier.begin(Message("info", f"{host}: a test of opsctl", "This is how you will hear of failures."))
    return [("notify", notifier.finish)]


def _described(found: "list[tuple[str, Sent]]") -> list["RenderableType"]:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for kind, sent in found:
        status = Text("failed", style="bold red") if sent.error else Text("sent", style="green")
        table.add_row(status, kind, sent.target, sent.error or f"{sent.seconds:.1f} s")
    return [table]
