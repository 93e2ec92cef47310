"""What the world is told of a run, at its begin and at its end.

Each step stands for itself: one that fails or hangs is a line in the log, and never changes how the run ends.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opsctl.errors import DoctorExit, ExitCode, HistoryUnavailable
from opsctl.telemetry.redact import jsonable

if TYPE_CHECKING:
    from opsctl.cli.output import Outcome, Run
    from opsctl.cli.session import Session
    from opsctl.history import Ending, History, MeasuredRestore, RunOutcome

RECORDED = frozenset(
    {"backup", "restore", "verify", "drill", "prune", "sync", "import", "doctor", "restart", "repository check"}
    | {"runbook run", "pin", "unpin", "export"}
)
"""The commands that do something. What only reads and prints is no event in the history of a database."""

ONLY_LOOKING = {
    "restore": {"plan"},
    "import": {"plan"},
    "runbook run": {"plan"},
    "prune": {"dry_run", "plan_file"},
    "doctor": {"watch", "saved"},
}
"""Options with which even these only show something."""

HISTORY_SECONDS = 0.9
"""How long a run waits for its record, at its begin and at its end."""

OUTCOMES: dict[int, "RunOutcome"] = {
    ExitCode.DONE: "done",
    ExitCode.ATTENTION: "attention",
    ExitCode.USAGE: "refused",
    ExitCode.REFUSED: "refused",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "interrupted",
}
"""What an exit code means for the history; all others are ``failed``."""


def begin(session: "Session", arguments: Mapping[str, Any]) -> None:
    """Tell that a run has begun."""
    looking = ONLY_LOOKING.get(session.command, set())
    session.is_event = session.command in RECORDED and not any(arguments.get(name) for name in looking)
    session.is_recorded = session.is_event
    if session.is_recorded:
        host, pid = socket.gethostname(), os.getpid()
        _write_history(
            session,
            lambda history: history.begin(session.run_id, session.command, at=session.started_at, host=host, pid=pid),
        )
        session.announcer.begin()


def concern(session: "Session", databases: Sequence[str]) -> None:
    """Tell which databases a run is about, once that is known: its log says so, and its record if it is killed."""
    from opsctl.telemetry.logs import bind_run

    session.concerned = tuple(databases)
    bind_run(database=",".join(databases))
    if session.is_recorded:
        _write_history(session, lambda history: history.concern(session.run_id, databases))


def end(session: "Session", outcome: "Outcome", run: "Run") -> None:
    """Tell how a run ended."""
    if session.is_recorded:
        found = list(endings(session.command, outcome, session.concerned))
        _write_history(session, lambda history: history.end(session.run_id, found, at=run.finished_at))
    if session.is_event:
        with _harmless(session):
            _tell_metrics(session, outcome)  # after the history that they are made of
    session.announcer.end(outcome, run.finished_at)


@contextmanager
def _harmless(session: "Session") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - see the module's first lines
        session.log().debug("report.failed", error=f"{type(error).__name__}: {error}")


def _write_history(session: "Session", write: "Callable[[History], Any]") -> Any:
    """What ``write`` returns. What cannot be written is tried again with the next; one warning a run is enough."""
    from opsctl.background import in_background

    session.unwritten.append(write)
    with _harmless(session):
        history = session.history

        def write_all() -> Any:
            written = None
            while session.unwritten:
                written = session.unwritten[0](history)
                del session.unwritten[0]
            return written

        try:
            return in_background(write_all).result(HISTORY_SECONDS)
        except HistoryUnavailable as error:
            message = error.message
        except TimeoutError:
            message = f"The history did not answer within {HISTORY_SECONDS:g} s."
            session.is_recorded = False  # no step waits for it again
        if not session.is_warned:
            session.is_warned = True
            session.log().warning("history.unwritten", message=message)
    return None


def remember_checks(session: "Session", result: Mapping[str, Any], *, is_whole: bool) -> None:
    """Record what doctor found, as it is printed; what changed since the last time is in the session then."""
    document, now = jsonable(result), session.clock()
    changes = _write_history(session, lambda history: history.record_checks(document, at=now, is_whole=is_whole))
    session.check_changes = changes or ()


def remember_restore(session: "Session", database: str, server: str, measured: "MeasuredRestore") -> None:
    """Record how long a restore of a whole backup took: the next plan tells by it how long that one will take."""
    _write_history(session, lambda history: history.record_restore(database, server, measured))


def endings(command: str, outcome: "Outcome", concerned: Sequence[str] = ()) -> "Iterator[Ending]":
    """How a run ended for each of its databases: a backup of three of which one failed is three endings."""
    from opsctl.history import Ending

    code, error = int(outcome.code), outcome.error
    ended = OUTCOMES.get(code, "failed")
    if command == "doctor" and error is None and code in set(DoctorExit):
        ended = "done"  # its exit code is a verdict about others
    several = (outcome.result or {}).get("backups") if command == "backup" else None
    for each in several or ():
        failed, unusual = each["error"], each.get("unusual")
        is_whole = not unusual and not any(place["error"] for place in each["repositories"])
        yield Ending(
            each["database"],
            "failed" if failed else "done" if is_whole else "attention",
            int(ExitCode.FAILED) if failed and code == ExitCode.ATTENTION else code,
            error_code=failed and failed["code"],
            message=failed["message"] if failed else unusual[0]["message"] if unusual else None,
            backup_id=each["id"],
            bytes=each["bytes"],
            stored_bytes=each["stored_bytes"],
        )
    if not several:
        of_databases: Sequence[str | None] = _databases(outcome) or concerned or [None]
        for database in of_databases:
            yield Ending(
                database,
                ended,
                code,
                error_code=error.code if error else None,
                message=error.message if error else None,
                backup_id=outcome.fields.get("backup_id"),
            )


def _databases(outcome: "Outcome") -> list[str]:
    return [name for name in str(outcome.fields.get("database") or "").split(",") if name]


def _tell_metrics(session: "Session", outcome: "Outcome") -> None:
    from opsctl.cli.metrics import report_metrics

    report_metrics(session, outcome)
