import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.files import whole_file
from opsctl.cli.output import Outcome, PlainTable, size
from opsctl.errors import OpsctlError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.incident import Incident
    from opsctl.pieces import Taken

OptionalName = Annotated[
    str | None, typer.Argument(metavar="INCIDENT", help="An incident whose timeline goes along: its id, or latest.")
]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to, instead of this folder; - is stdout.")
]

PLACES = frozenset(
    {
        "password_env",
        "password_file",
        "password_command",
        "identity_file",
        "identity_command",
        "key_file",
        "identity_env",
        "url_env",
    }
)
"""Keys that say where a secret is: that they are set is enough for whoever reads a bundle."""


def bundle(session: "Session", name: OptionalName = None, output: OutputFile = None) -> Outcome:
    """Pack what somebody elsewhere needs to judge how things are, without secrets: safe to attach to a ticket.

    Doctor's report, services, their newest log lines, sessions, disks, the newest backups, versions, the
    configuration; with INCIDENT its timeline and the draft of the postmortem. `doctor --input FILE` judges it there.

    Example: [bold]opsctl bundle latest -o ticket-4711.tar.gz[/bold]
    """
    from opsctl.bundle import write_bundle
    from opsctl.cli.capture import take_pieces

    incident = session.incidents.find(name) if name else None
    to_stdout = output is not None and str(output) == "-"
    if to_stdout and (session.options.json or sys.stdout.isatty()):
        raise UsageError("A bundle is no text.", hint="Name a file with -o, or pipe it on, without --json.")
    taken = take_pieces(session)
    label = f"opsctl-bundle-{incident.id if incident else f'{session.started_at:%Y%m%dT%H%M%SZ}'}"
    members = _members(session, taken, incident)
    missing = [{"piece": each.name, "reason": each.reason} for each in taken if each.reason is not None]
    about = {"incident": incident.id if incident else None, "host": _host(session), "missing": missing}
    target = output or Path(f"{label}.tar.gz")
    written = {"made_at": session.started_at, "about": session.redactor.deep(about)}
    if to_stdout:
        write_bundle(sys.stdout.buffer, label, members, **written)
        return Outcome(None, fields={"members": len(members)})
    try:
        with whole_file(target) as file:
            listed = write_bundle(file, label, members, **written)
    except OSError as error:
        hint = "Name another file with -o."
        raise OpsctlError(f"{target} cannot be written: {error.strerror}.", hint=hint) from error
    result = {"file": str(target), "bytes": target.stat().st_size, "members": listed, **about}
    return Outcome(result, _shown(result), fields={"file": str(target)})


def _host(session: "Session") -> str:
    return str(session.config.actor["host"])


def _shown(result: Mapping[str, Any]) -> "list[RenderableType]":
    table = PlainTable()
    for heading in ("Member", "Size"):
        table.add_column(heading)
    for each in result["members"]:
        table.add_row(each["name"], size(each["bytes"]))
    lines: list[RenderableType] = [f"Wrote {result['file']} ({size(result['bytes'])}).", "", table]
    return lines + [f"  missing: {each['piece']}: {each['reason']}" for each in result["missing"]]


def _members(session: "Session", taken: "list[Taken]", incident: "Incident | None") -> dict[str, bytes]:
    """The files of a bundle. Every one is redacted here, at the last moment, as the text that it is."""
    from opsctl.telemetry.shapes import deep_without_shapes

    documents: dict[str, Any] = {"versions.json": _versions(session), "configuration.json": _configuration(session)}
    texts: dict[str, str] = {}
    for each in taken:
        if each.reason is not None:
            continue
        if each.name == "logs":
            texts |= {f"logs/{_safe(container)}.txt": text for container, text in each.data.items()}
        else:
            documents[f"{_safe(each.name)}.json"] = _enveloped(each) if each.name == "doctor" else each.data
    if incident is not None:
        texts |= _of_incident(session, incident)
    clean = {name: session.redactor.text(text) for name, text in texts.items()}
    shapeless = {name: deep_without_shapes(session.redactor.deep(each)) for name, each in documents.items()}
    clean |= {name: json.dumps(each, indent=1, ensure_ascii=False) for name, each in shapeless.items()}
    return {name: text.encode("utf-8", "replace") for name, text in clean.items()}


def _safe(name: str) -> str:
    from opsctl.bundle import safe_name

    return safe_name(name)


def _enveloped(doctor: "Taken") -> dict[str, Any]:
    """As `doctor --json` prints it, so that `doctor --input` reads the unpacked file as well."""
    return {"schema": "opsctl.doctor/1", "result": doctor.data}


def _of_incident(session: "Session", incident: "Incident") -> dict[str, str]:
    from opsctl.cli.incident import read
    from opsctl.postmortem import as_markdown

    timeline = incident.path.read_bytes().decode("utf-8", "replace")
    return {"timeline.jsonl": timeline, "postmortem.md": as_markdown(*read(session, incident))}


def _versions(session: "Session") -> dict[str, Any]:
    import platform

    from opsctl import __version__
    from opsctl.postgres.binaries import find_binaries

    found = find_binaries(search_path=session.config.search_path)
    return {
        "opsctl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "postgresql": [{"version": each.version, "embedded": each.embedded} for each in found],
    }


def _configuration(session: "Session") -> dict[str, Any]:
    """What is configured, as it counts; of what is secret and of where it is only that it is set."""
    config = session.config
    sections = {
        "databases": config.databases,
        "repositories": config.repositories,
        "services": config.services,
        "http": config.http,
        "tls": config.tls,
        "checks": config.checks,
        "schedule": config.schedule,
        "doctor": config.doctor,
        "encryption": config.encryption,
        "signing": config.signing,
    }
    found: dict[str, Any] = {name: _told(section) for name, section in sections.items()}
    for name in config.databases:
        found["databases"][name]["url"] = _url(session, name)
    return {"source": Path(config.source).name, **found}


def _url(session: "Session", database: str) -> str | None:
    """A database's address without what opens it."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(session.config.database_url(database))
    except OpsctlError as error:
        return error.message
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _told(value: Any, key: str = "") -> Any:
    if hasattr(value, "model_dump"):
        return _told(value.model_dump(mode="json"), key)  # secrets are asterisks in it
    if key in PLACES and value is not None:
        return "set"
    if isinstance(value, Mapping):
        return {name: _told(each, name) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    return value
