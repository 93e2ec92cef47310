"""What the world is told of a run, at its begin and at its end.

Each step stands for itself: one that fails is a line in the debug log, and never changes how the run ends.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opsctl.errors import DoctorExit, ExitCode, OpsctlError
from opsctl.telemetry.redact import jsonable

if TYPE_CHECKING:
    from datetime import datetime

    from opsctl.cli.output import Outcome, Run
    from opsctl.cli.session import Session
    from opsctl.history import Ending, RunOutcome

RECORDED = frozenset(
    {"backup", "restore", "verify", "drill", "prune", "sync", "import", "doctor", "restart", "repository check"}
    | {"runbook run", "pin", "unpin", "export"}
)
"""The commands that do something. What only reads and prints is no event in the history of a database."""

NOT_REPORTED = frozenset({ExitCode.USAGE, ExitCode.REFUSED, ExitCode.INTERRUPTED})
"""What is no failure of a backup or a server, hence no business of Sentry."""

OUTCOMES: dict[int, "RunOutcome"] = {
    ExitCode.DONE: "done",
    ExitCode.ATTENTION: "attention",
    ExitCode.USAGE: "refused",
    ExitCode.REFUSED: "refused",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "interrupted",
}
"""What an exit code means for the history; all others are ``failed``."""


def begin(session: "Session") -> None:
    """Tell that a run has begun."""
    if session.command in RECORDED:
        _each(session, (_record_begin,))


def end(session: "Session", outcome: "Outcome", run: "Run") -> None:
    """Tell how a run ended."""
    if session.command in RECORDED:
        _each(session, (lambda session: _record_end(session, outcome, run.finished_at),))
    _each(session, (lambda session: _report_to_sentry(session, outcome),))


def _each(session: "Session", steps: Iterable[Callable[["Session"], None]]) -> None:
    for step in steps:
        with _harmless(session):
            step(session)


@contextmanager
def _harmless(session: "Session") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - see the module's first lines
        session.log().debug("report.failed", error=f"{type(error).__name__}: {error}")


def _record_begin(session: "Session") -> None:
    session.history.begin(
        session.run_id, session.command, at=session.started_at, host=socket.gethostname(), pid=os.getpid()
    )


def _record_end(session: "Session", outcome: "Outcome", at: "datetime") -> None:
    found = [
        replace(each, message=session.redactor.text(each.message) if each.message else None)
        for each in endings(session.command, outcome)
    ]
    session.history.end(session.run_id, found, at=at)


def remember_checks(session: "Session", result: dict[str, Any], *, is_whole: bool) -> None:
    """Record what doctor found, as it is printed; what changed since the last time is in the session then."""
    with _harmless(session):
        redacted = session.redactor.deep(jsonable(result))
        session.check_changes = session.history.record_checks(redacted, at=session.clock(), is_whole=is_whole)


def endings(command: str, outcome: "Outcome") -> "Iterator[Ending]":
    """How a run ended for each of its databases: a backup of three of which one failed is three endings."""
    from opsctl.history import Ending

    code, error = int(outcome.code), outcome.error
    ended = OUTCOMES.get(code, "failed")
    if command == "doctor" and error is None and code in set(DoctorExit):
        ended = "done"  # its exit code is a verdict about others
    several = (outcome.result or {}).get("backups") if command == "backup" else None
    for each in several or ():
        failed = each["error"]
        yield Ending(
            each["database"],
            "failed" if failed else "attention" if any(place["error"] for place in each["repositories"]) else "done",
            int(ExitCode.FAILED) if failed and code == ExitCode.ATTENTION else code,
            error_code=failed and failed["code"],
            message=failed and failed["message"],
            backup_id=each["id"],
            bytes=each["bytes"],
            stored_bytes=each["stored_bytes"],
        )
    if not several:
        for database in _databases(outcome):
            yield Ending(
                database,
                ended,
                code,
                error_code=error.code if error else None,
                message=error.message if error else None,
                backup_id=outcome.fields.get("backup_id"),
            )


def _databases(outcome: "Outcome") -> list[str | None]:
    named = [name for name in str(outcome.fields.get("database") or "").split(",") if name]
    return [*named] or [None]


def _report_to_sentry(session: "Session", outcome: "Outcome") -> None:
    """Tell Sentry of a failure, if it is configured."""
    error = outcome.error
    if error is None or error.exit_code in NOT_REPORTED:
        return
    try:
        dsn = session.config.sentry_dsn
        environment = session.config.sentry_environment
    except OpsctlError:
        from opsctl.config import environment_dsn

        dsn, environment = environment_dsn(), None  # the configuration itself is what failed
    if not dsn:
        return
    from opsctl.telemetry.sentry import report_failure

    database = str(outcome.fields.get("database", ""))
    sent = report_failure(
        error.__cause__ if error.code == "bug" and error.__cause__ else error,
        dsn=dsn,
        environment=environment,
        redactor=session.redactor,
        tags={"command": session.command, "run_id": session.run_id, "code": error.code, "database": database},
        fingerprint=["opsctl", session.command, error.code, database],
    )
    if not sent:
        session.log().debug("sentry.unsent")
