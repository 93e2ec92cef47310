"""How everything is at this moment: what an incident keeps before anything is changed, and a bundle holds."""

import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.incident import Incident
    from opsctl.pieces import Piece, Taken
    from opsctl.services import Service

LOG_LINES = 200
LINE_CHARACTERS = 2000
CONTAINERS = 20
SESSIONS = 50
BACKUPS = 5
RUNS = 50
"""Of each: an incident's file stays one that can be mailed."""


def pieces(session: "Session") -> "list[Piece]":
    """What is looked at: each on its own, side by side."""
    from opsctl.pieces import Piece

    config = session.config
    found = [
        Piece("doctor", lambda: doctor_report(session)),
        Piece("services", lambda: [_described(session, each) for each in _containers(session)]),
        Piece("logs", lambda: {each.container: _log_text(session, each) for each in _containers(session)}),
        Piece("disk", lambda: _disk(session)),
        Piece("backups", lambda: _backups(session)),
        Piece("history", lambda: _runs(session)),
    ]
    return found + [Piece(f"activity {name}", _activity_of(session, name)) for name in config.databases]


def take_pieces(session: "Session") -> "list[Taken]":
    """Look at all of them; redacted once all that is secret in them is known."""
    from dataclasses import replace

    from opsctl.pieces import take
    from opsctl.telemetry.shapes import deep_without_shapes

    def clean(value: Any) -> Any:
        return deep_without_shapes(session.redactor.deep(value))

    return [replace(each, data=clean(each.data), reason=clean(each.reason)) for each in take(pieces(session))]


def capture(session: "Session", incident: "Incident", *, when: str = "before") -> "list[Taken]":
    """Write into the timeline how everything is. Nothing that goes wrong in it stops what it is taken for."""
    taken = take_pieces(session)
    for each in taken:
        if each.name == "doctor" and each.reason is None:
            _append(session, incident, "checks", when=when, duration_seconds=each.seconds, **each.data)
        else:
            fields = {"piece": each.name, "duration_seconds": each.seconds, "reason": each.reason, "data": each.data}
            _append(session, incident, "capture", **fields)
    return taken


def record_checks(session: "Session", incident: "Incident", *, when: str) -> None:
    """Write into the timeline what doctor says now; why not, if it cannot."""
    from opsctl.pieces import Piece, take

    [found] = take([Piece("doctor", lambda: doctor_report(session))])
    if found.reason is None:
        _append(session, incident, "checks", when=when, duration_seconds=found.seconds, **found.data)
    else:
        _append(session, incident, "capture", piece="doctor", duration_seconds=found.seconds, reason=found.reason)


def _append(session: "Session", incident: "Incident", kind: str, **fields: Any) -> None:
    from opsctl.errors import OpsctlError

    try:
        incident.append(kind, **fields)
    except OpsctlError as error:
        session.log().warning("incident.unwritten", incident=incident.id, kind=kind, message=error.message)


def doctor_report(session: "Session") -> dict[str, Any]:
    """What `opsctl doctor --json` has as its result."""
    from opsctl.checks.report import as_document, report
    from opsctl.cli.doctor import examine

    return as_document(report(examine(session, [])))


def _containers(session: "Session") -> "list[Service]":
    """The containers of the services; what is secret in them is known from here on."""
    from opsctl.errors import ServicesUnreachable

    try:
        names = dict.fromkeys(name for name, service in session.services.all() if service is not None)
    except ServicesUnreachable:
        if session.config.services:
            raise
        return []  # nobody said that there is an engine here
    return [each for name in names for each in session.services.seen(name)][:CONTAINERS]


def _described(session: "Session", service: "Service") -> dict[str, Any]:
    from opsctl.services.capture import masked
    from opsctl.telemetry.redact import jsonable

    state: dict[str, Any] = jsonable(asdict(service.state))
    described = masked(session.runtime.describe(service))
    return {"service": service.name, "container": service.container, "state": state, "described": described}


def _log_text(session: "Session", service: "Service") -> str:
    from opsctl.services.log_lines import read_lines

    lines = read_lines(session.runtime, [service], tail=LOG_LINES)
    return "\n".join(
        f"{line.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {line.stream} {line.text[:LINE_CHARACTERS]}" for line in lines
    )


def _activity_of(session: "Session", database: str) -> Callable[[], dict[str, Any]]:
    """What the sessions of a database's server do, and who waits for whom."""

    def read() -> dict[str, Any]:
        from opsctl.checks.scope import CONNECT_SECONDS
        from opsctl.errors import QueryFailed
        from opsctl.postgres.activity import read_activity, read_blocked
        from opsctl.postgres.session import examining

        with examining(session.server(database), connect_seconds=CONNECT_SECONDS) as connection:
            sessions = [asdict(each) for each in read_activity(connection, SESSIONS)]
            try:
                return {"blocked": asdict(read_blocked(connection)), "sessions": sessions}
            except QueryFailed as error:  # this login may not see who waits for whom
                return {"blocked": {"reason": error.message}, "sessions": sessions}

    return read


def _disk(session: "Session") -> list[dict[str, Any]]:
    from opsctl.checks.disks import file_systems
    from opsctl.cli.doctor import scope_of

    return [_room(each.mount, list(each.paths)) for each in file_systems(scope_of(session))]


def _room(mount: str, holds: list[str]) -> dict[str, Any]:
    try:
        told = os.statvfs(mount)
    except OSError as error:
        return {"mount": mount, "holds": holds, "reason": error.strerror}
    return {
        "mount": mount,
        "holds": holds,
        "bytes": told.f_blocks * told.f_frsize,
        "free_bytes": told.f_bavail * told.f_frsize,
        "inodes": told.f_files,
        "free_inodes": told.f_favail,
    }


def _backups(session: "Session") -> list[dict[str, Any]]:
    """The newest backups of each database."""
    from opsctl.cli.catalog import read_catalog
    from opsctl.documents import backup_entry

    newest: dict[str, list[dict[str, Any]]] = {}
    for backup in read_catalog(session).backups:
        newest.setdefault(backup.database, []).append(backup_entry(backup))
    return [each for backups in newest.values() for each in backups[:BACKUPS]]


def _runs(session: "Session") -> list[dict[str, Any]]:
    """The newest runs of opsctl on this host."""
    from opsctl.documents import run_entry

    return [run_entry(each) for each in session.history.runs(limit=RUNS)]
