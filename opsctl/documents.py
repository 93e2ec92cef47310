"""The JSON that programs read: the envelope of every document, on stdout and from the web, and a backup in it. Pure."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from opsctl.errors import OpsctlError
from opsctl.telemetry.redact import jsonable
from opsctl.times import format_time

if TYPE_CHECKING:
    from opsctl.catalog import Backup, Incomplete
    from opsctl.history import Run
    from opsctl.incident import Summary


def envelope(
    command: str,
    result: Mapping[str, Any] | None,
    *,
    run_id: str,
    started_at: datetime,
    finished_at: datetime,
    exit_code: int = 0,
    error: OpsctlError | None = None,
) -> dict[str, Any]:
    """One document: what a command came to, whoever asked for it."""
    return {
        "schema": f"opsctl.{command.replace(' ', '-')}/1",
        "ok": exit_code == 0,
        "exit_code": exit_code,
        "run_id": run_id,
        "started_at": format_time(started_at),
        "finished_at": format_time(finished_at),
        "result": result,
        "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
    }


def backup_entry(backup: "Backup") -> dict[str, Any]:
    """A backup in a list."""
    proven = backup.proven
    return {
        "id": backup.id,
        "database": backup.database,
        "created_at": format_time(backup.created_at),
        "duration_seconds": round(backup.manifest.duration_seconds, 3),
        "bytes": backup.manifest.dump.bytes,
        "stored_bytes": backup.manifest.stored_bytes,
        "rows": backup.manifest.facts.rows,
        "evidence": {"level": proven.level, "at": format_time(proven.at)} if proven else None,
        "failed_in": [copy.repository for copy in backup.copies if copy.failed],
        "repositories": backup.repositories,
        "pinned": backup.pinned,
        "encrypted": backup.manifest.encryption is not None,
    }


def incomplete_entry(incomplete: "Incomplete") -> dict[str, Any]:
    """What is no backup, in a list."""
    return {
        "id": incomplete.id,
        "database": incomplete.database,
        "repository": incomplete.repository,
        "bytes": incomplete.bytes,
        "modified_at": format_time(incomplete.modified_at),
        "reason": incomplete.reason,
    }


def run_entry(run: "Run") -> dict[str, Any]:
    """A run of this host's history, in a list."""
    seconds = run.duration_seconds
    entry: dict[str, Any] = jsonable(asdict(run))
    return {**entry, "duration_seconds": None if seconds is None else round(seconds, 3)}


def incident_entry(summary: "Summary") -> dict[str, Any]:
    """An incident, in a list."""
    from opsctl.postmortem import durations

    entry: dict[str, Any] = jsonable(asdict(summary))
    return {**entry, **durations(summary)}
