import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opsctl.cli.files import whole_file
from opsctl.cli.output import Outcome, PlainTable, age
from opsctl.documents import incident_entry
from opsctl.errors import NoSuchIncident, OpsctlError, TimelineChanged, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from opsctl.cli.session import Session
    from opsctl.incident import Incident, Summary
    from opsctl.timeline import Event, Examined

Moment = Literal["acknowledged", "mitigated", "resolved"]

Name = Annotated[
    str | None,
    typer.Argument(metavar="INCIDENT", help="An id, or a unique beginning or end of one; latest by default."),
]
OpenName = Annotated[
    str | None, typer.Argument(metavar="INCIDENT", help="The same; by default the only one that is open.")
]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="INCIDENT", help="Ids, or latest; all incidents by default.")
]
Title = Annotated[str, typer.Argument(metavar="TITLE", help="What is wrong, in a few words.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[INCIDENT] TEXT", help="The note; - reads it from stdin. By default the one open incident."
    ),
]
DetectedOption = Annotated[
    str | None, typer.Option("--detected-at", metavar="TIME", help="When it was noticed, if that was earlier.")
]
NoCaptureOption = Annotated[
    bool, typer.Option("--no-capture", help="Do not look at databases, services and disks, just open it.")
]
MomentOption = Annotated[
    Moment | None,
    typer.Option("--moment", metavar="MOMENT", help="What the note marks: acknowledged, mitigated or resolved."),
]
AtOption = Annotated[str | None, typer.Option("--at", metavar="TIME", help="When it happened, if that was earlier.")]
HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head", metavar="HASH", help="A hash kept elsewhere that has to be in the chain; its beginning will do."
    ),
]
MarkdownOption = Annotated[bool, typer.Option("--md", help="Markdown; the default.")]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; - is stdout.")]
CloseText = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="What it came to.")]
NoChecksOption = Annotated[bool, typer.Option("--no-checks", help="Do not look once more how everything is.")]

STYLES = {
    "open": "bold red",
    "acknowledged": "yellow",
    "mitigated": "yellow",
    "resolved": "green",
    "damaged": "magenta",
}
HEAD_DIGITS = 8


def open_incident(
    session: "Session", title: Title, detected_at: DetectedOption = None, no_capture: NoCaptureOption = False
) -> Outcome:
    """Open an incident by hand: its timeline begins, with how everything is at this moment.

    `runbook run` opens one by itself.

    Example: [bold]opsctl incident open "API answers 502 since the deploy"[/bold]
    """
    from opsctl.cli.capture import capture

    incident = session.incidents.open(None, title, detected_at=_moment(session, detected_at))
    session.output.show(f"Opened {incident.id}." + ("" if no_capture else " Looking at everything …"))
    taken = [] if no_capture else capture(session, incident)
    for each in taken:
        if each.reason is not None:
            session.output.show(f"  not captured: {each.name}: {each.reason}")
    pieces = [{"piece": each.name, "reason": each.reason} for each in taken]
    result = {**incident_entry(incident.summary()), "captured": pieces}
    return Outcome(result, [incident.id], fields={"incident": incident.id})


def note(session: "Session", words: Words = None, moment: MomentOption = None, at: AtOption = None) -> Outcome:
    """Write a note into a timeline. With --moment it also says how far the incident has come.

    Example: [bold]opsctl incident note "switched traffic to the standby" --moment mitigated[/bold]
    """
    incident, text = _addressed(session, words or [])
    event = incident.append(moment or "note", text=text, happened_at=_moment(session, at))
    return _written(incident, event)


def _addressed(session: "Session", words: list[str]) -> "tuple[Incident, str]":
    """The incident that is meant, and the text."""
    if len(words) > 2:
        raise UsageError("A note is one argument.", hint='Put it in quotes: opsctl incident note "text".')
    named = _named(session, words[0]) if len(words) == 1 else None
    incident = session.incidents.find(words[0]) if len(words) == 2 else named or session.incidents.the_open_one()
    text = words[-1] if words and named is None else "-"
    if text == "-":
        if sys.stdin.isatty():
            session.output.show(f"A note for {incident.id}; Ctrl-D on a line of its own ends it.")
        text = sys.stdin.read()
    if not text.strip():
        raise UsageError("The note is empty.", hint='opsctl incident note "text", or - to read it from stdin.')
    return incident, text.strip("\n")


def _named(session: "Session", word: str) -> "Incident | None":
    """The incident, if the only word is its id: the text comes from stdin then."""
    from opsctl.incident import ID

    return session.incidents.find(word) if word == "latest" or ID.fullmatch(word) else None


def _moment(session: "Session", text: str | None) -> datetime | None:
    from opsctl.cli.session import parse_time

    if text is None:
        return None
    moment = parse_time(text)
    if moment > session.clock():
        raise UsageError(f"{text} is in the future.", hint="A timeline tells what has happened.")
    return moment


def _written(incident: "Incident", event: "Event") -> Outcome:
    result = {"id": incident.id, "event": _event(event)}
    return Outcome(result, [f"{incident.id}: {event.seq} {event.kind}."], fields={"incident": incident.id})


def list_incidents(session: "Session") -> Outcome:
    """The incidents of this host, newest first.

    Example: [bold]opsctl incident list[/bold]
    """
    from rich.text import Text

    found = [each.summary() for each in session.incidents.list()]
    table = PlainTable()
    for heading in ("Incident", "Status", "Opened", "Resolved"):
        table.add_column(heading, no_wrap=True)
    table.add_column("What")
    for each in found:
        table.add_row(*_cells(each, session.clock()))
    result = {"incidents": [incident_entry(each) for each in found]}
    nothing: list[RenderableType] = ["There are no incidents."]
    changed = [
        Text(f"{each.id} is not what was written: `opsctl incident verify`.", style="magenta")
        for each in found
        if not each.is_intact
    ]
    return Outcome(result, [table, *changed] if found else nothing, fields={"incidents": len(found)})


def _cells(each: "Summary", now: datetime) -> "list[Text | str]":
    from rich.text import Text

    from opsctl.postmortem import clean, durations, spoken

    seconds = durations(each)["time_to_resolve_seconds"]
    told = ": ".join(part for part in (each.scenario, each.summary) if part)
    return [
        each.id,
        Text(each.status, style=STYLES.get(each.status, "")),
        age(each.opened_at, now) if each.opened_at else "?",
        "" if seconds is None else f"in {spoken(seconds)}",
        clean(told),
    ]


def _event(event: "Event") -> dict[str, Any]:
    from opsctl.telemetry.redact import jsonable

    told = {"seq": event.seq, "at": jsonable(event.at), "kind": event.kind, "actor": dict(event.actor)}
    return {**told, "fields": dict(event.fields), "hash": event.hash}


def show(session: "Session", name: Name = None) -> Outcome:
    """One incident: its moments, and what happened when.

    Example: [bold]opsctl incident show latest[/bold]
    """
    incident = session.incidents.find(name or "latest")
    summary, found = read(session, incident)
    return Outcome(_document(summary, found), _shown(summary, found), fields={"incident": incident.id})


def read(session: "Session", incident: "Incident") -> "tuple[Summary, Examined]":
    """An incident as it may be shown: what has become known as a secret since it was written is masked."""
    from dataclasses import replace

    from opsctl.incident import summarize

    found = incident.verify()
    clean = tuple(replace(each, fields=session.redactor.deep(each.fields)) for each in found.events)
    found = replace(found, events=clean)
    return summarize(incident.id, clean, is_intact=found.is_intact), found


def _document(summary: "Summary", found: "Examined") -> dict[str, Any]:
    from dataclasses import asdict

    from opsctl.postmortem import check_changes, unfinished

    return {
        "incident": incident_entry(summary),
        "timeline": [_event(each) for each in found.events],
        "checks": [asdict(each) for each in check_changes(found.events)],
        "unfinished": unfinished(found.events),
        "problems": [asdict(each) for each in found.problems],
        "remarks": [asdict(each) for each in found.remarks],
    }


def _shown(summary: "Summary", found: "Examined") -> "list[RenderableType]":
    from rich.table import Table
    from rich.text import Text

    from opsctl.postmortem import clean, spoken, told, unfinished, who

    lines: list[RenderableType] = [
        Text.assemble((summary.id, "bold"), "  ", (summary.status, STYLES.get(summary.status, ""))),
        Text(clean(": ".join(part for part in (summary.scenario, summary.summary) if part))),
    ]
    start = summary.detected_at
    for word, moment in _moments(summary):
        after = f", after {spoken((moment - start).total_seconds())}" if start and moment > start else ""
        lines.append(f"  {word:13} {moment:%Y-%m-%d %H:%M:%S} UTC{after}")
    grid = Table.grid(padding=(0, 2))
    previous: Event | None = None
    for event in found.events:
        if previous is None or who(previous) != who(event):
            grid.add_row("", "", "", Text(who(event), style="dim"))
        previous = event
        grid.add_row(str(event.seq), f"{event.at:%H:%M:%S}", event.kind.replace("_", " "), Text(told(event)))
    lines += ["", grid]
    lines += [
        Text(f"The step {clean(each)} began and has no end: what it did is not known.", style="yellow")
        for each in unfinished(found.events)
    ]
    lines += [Text(_spoken_problem(each), style="magenta") for each in (*found.problems, *found.remarks)]
    return lines


def _moments(summary: "Summary") -> list[tuple[str, datetime]]:
    words = ("detected", "acknowledged", "mitigated", "resolved", "closed")
    moments = [(word, getattr(summary, f"{word}_at")) for word in words]
    return [(word, moment) for word, moment in moments if moment is not None]


def _spoken_problem(problem: Any) -> str:
    return problem.message if problem.line is None else f"Line {problem.line}: {problem.message}"


def verify(session: "Session", names: Names = None, head: HeadOption = None) -> Outcome:
    """Find out whether timelines are what was written: every byte, every line, their order, and their end.

    Ends with 15 when one is not. A hash that was kept elsewhere (--head) also finds one that was written anew.

    Example: [bold]opsctl incident verify latest[/bold]
    """
    if head is not None and len(names or []) != 1:
        raise UsageError("--head belongs to one incident.", hint="Name it: opsctl incident verify INCIDENT --head HASH")
    if head is not None and len(head) < HEAD_DIGITS:
        raise UsageError(f"{head!r} is too short for a hash.", hint=f"At least {HEAD_DIGITS} of its digits.")
    chosen = [session.incidents.find(each) for each in names] if names else session.incidents.list()
    examined = [(each.id, _with_head(each.verify(), head)) for each in chosen]
    changed = [name for name, found in examined if not found.is_intact]
    result = {"incidents": [_verified(name, found) for name, found in examined]}
    lines = [line for name, found in examined for line in _verdict(name, found)] or ["There are no incidents."]
    if changed:
        are = "is" if len(changed) == 1 else "are"
        error = TimelineChanged(
            f"{len(changed)} of {len(examined)} timelines {are} not what was written: {', '.join(changed)}.",
            hint="Compare it with a bundle or an export that was kept elsewhere.",
        )
        return Outcome(result, lines, error=error)
    return Outcome(result, lines, fields={"incidents": len(examined)})


def _with_head(found: "Examined", head: str | None) -> "Examined":
    from dataclasses import replace

    from opsctl.timeline import Problem

    if head is None or any(event.hash.startswith(head.lower()) for event in found.events):
        return found
    return replace(found, problems=(*found.problems, Problem(None, f"The hash {head} is not in its chain.")))


def _verified(name: str, found: "Examined") -> dict[str, Any]:
    from dataclasses import asdict

    problems, remarks = ([asdict(each) for each in some] for some in (found.problems, found.remarks))
    told = {"id": name, "intact": found.is_intact, "events": len(found.events), "head": found.link.hash}
    return {**told, "problems": problems, "remarks": remarks}


def _verdict(name: str, found: "Examined") -> "list[RenderableType]":
    from rich.text import Text

    word, style = ("intact", "green") if found.is_intact else ("changed", "bold red")
    lines: list[RenderableType] = [
        Text.assemble((f"{word:8}", style), f"{name}  {len(found.events)} events  head {found.link.hash[:16]}")
    ]
    lines += [f"        {_spoken_problem(each)}" for each in (*found.problems, *found.remarks)]
    return lines


def export(session: "Session", name: Name = None, md: MarkdownOption = False, output: OutputFile = None) -> Outcome:
    """The draft of a postmortem: moments, timeline, checks before and after, outputs. Markdown, or JSON with --json.

    Example: [bold]opsctl incident export latest -o postmortem.md[/bold]
    """
    from opsctl.postmortem import as_markdown

    if md and session.options.json:
        raise UsageError("--md and --json name two formats.", hint="Use one of them.")
    incident = session.incidents.find(name or "latest")
    summary, found = read(session, incident)
    fields = {"incident": incident.id}
    if session.options.json and output is None:
        return Outcome(_document(summary, found), fields=fields)
    text = as_markdown(summary, found)
    if output is None or str(output) == "-":
        sys.stdout.write(text)
        return Outcome(None, fields=fields)
    _write(output, text)
    result = {"id": incident.id, "file": str(output)}
    return Outcome(result, [f"Exported {incident.id} to {output}."], fields=fields)


def _write(output: Path, text: str) -> None:
    try:
        with whole_file(output) as file:
            file.write(text.encode("utf-8", "replace"))
    except OSError as error:
        hint = "Name another file with -o."
        raise OpsctlError(f"{output} cannot be written: {error.strerror}.", hint=hint) from error


def close(
    session: "Session", name: OpenName = None, text: CloseText = None, no_checks: NoChecksOption = False
) -> Outcome:
    """Close an incident, by default the only open one, after a last look at how everything is.

    Example: [bold]opsctl incident close --note "the deploy was rolled back"[/bold]
    """
    from opsctl.cli.capture import record_checks

    incident = session.incidents.find(name) if name else session.incidents.the_open_one()
    if incident.summary().is_closed:
        raise NoSuchIncident(
            f"{incident.id} is closed already.", hint="`opsctl incident note` adds to it all the same."
        )
    if not no_checks:
        record_checks(session, incident, when="after")
    incident.close(text)
    summary = incident.summary()
    lines: list[RenderableType] = [
        f"Closed {incident.id}.",
        f"`opsctl incident export {incident.id}` drafts the postmortem.",
    ]
    return Outcome(incident_entry(summary), lines, fields={"incident": incident.id})
