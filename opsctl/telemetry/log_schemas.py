"""The names a log line's fields have: opsctl's own, those of the Elastic Common Schema, or OpenTelemetry's. Pure."""

import json
import os
import socket
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal

from opsctl import __version__

LogSchema = Literal["plain", "ecs", "otel"]
Record = dict[str, Any]

ENVELOPE = frozenset({"timestamp", "level", "event", "exception", "traceback"})
"""What every schema has a place of its own for."""

ECS_NAMES = {
    "command": "process.title",
    "exit_code": "process.exit_code",
    "code": "error.code",
    "database": "db.name",
    "user_id": "user.id",
    "company_id": "organization.id",
    "request_id": "http.request.id",
}

OTEL_NAMES = {
    "command": "opsctl.command",
    "exit_code": "process.exit.code",
    "code": "error.type",
    "database": "db.namespace",
    "user_id": "user.id",
}
"""Semantic conventions where there are any."""

SEVERITIES = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}

OUTCOMES = {"run.finished": "success", "run.failed": "failure", "run.bug": "failure"}


def renamer(schema: LogSchema, *, callers: frozenset[str], environment: str | None) -> Callable[[Record], Record]:
    """A record as a schema wants it. ``callers`` are the fields that came with OPSCTL_LOG_CONTEXT."""
    if schema == "ecs":
        return lambda record: _as_ecs(record, callers, environment)
    if schema == "otel":
        return lambda record: _as_otel(record, callers, environment)
    return lambda record: {key: value for key, value in record.items() if key != "traceback"}


def as_line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, default=repr)


def _as_ecs(record: Record, callers: frozenset[str], environment: str | None) -> Record:
    event = record["event"]
    fields: Record = {
        "@timestamp": record["timestamp"],
        "log.level": record["level"],
        "message": _sentence(record),
        "ecs.version": "8.11.0",
        "service.name": "opsctl",
        "service.version": __version__,
        **({"service.environment": environment} if environment else {}),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "event.action": event,
        **({"event.outcome": OUTCOMES[event]} if event in OUTCOMES else {}),
    }
    for key, value in _own(record).items():
        if key == "duration_seconds":
            fields["event.duration"] = round(value * 1e9)  # nanoseconds, says the schema
        elif key == "message":
            fields["error.message" if record["level"] in {"error", "critical"} else "opsctl.message"] = value
        elif key in ECS_NAMES:
            fields[ECS_NAMES[key]] = value
        elif key in callers:
            fields[f"labels.{key}"] = value
        else:
            fields[f"opsctl.{key}"] = value
    for name, field in (("exc_type", "error.type"), ("exc_value", "error.message")):
        if record.get("exception"):
            fields.setdefault(field, record["exception"][0][name])
    if record.get("traceback"):
        fields["error.stack_trace"] = record["traceback"]
    return fields


def _as_otel(record: Record, callers: frozenset[str], environment: str | None) -> Record:
    attributes: Record = {"event.name": record["event"]}
    for key, value in _own(record).items():
        if key in OTEL_NAMES:
            attributes[OTEL_NAMES[key]] = value
        else:
            attributes[key if key in callers else f"opsctl.{key}"] = value
    if "database" in record:
        attributes["db.system.name"] = "postgresql"
    if record.get("exception"):
        attributes["exception.type"] = record["exception"][0]["exc_type"]
        attributes["exception.message"] = record["exception"][0]["exc_value"]
    if record.get("traceback"):
        attributes["exception.stacktrace"] = record["traceback"]
    return {
        "Timestamp": _nanoseconds(record["timestamp"]),
        "SeverityText": record["level"].upper(),
        "SeverityNumber": SEVERITIES[record["level"]],
        "Body": _sentence(record),
        "Resource": {
            "service.name": "opsctl",
            "service.version": __version__,
            **({"deployment.environment.name": environment} if environment else {}),
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        },
        "Attributes": attributes,
    }


def _own(record: Mapping[str, Any]) -> Record:
    return {key: value for key, value in record.items() if key not in ENVELOPE}


def _sentence(record: Mapping[str, Any]) -> str:
    message = record.get("message")
    return f"{record['event']}: {message}" if message else str(record["event"])


def _nanoseconds(timestamp: str) -> str:
    """As a string: JSON's numbers do not hold so many digits."""
    moment = datetime.fromisoformat(timestamp)
    return f"{int(moment.timestamp())}{moment.microsecond:06d}000"
