import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.output import Outcome, PlainTable, age, duration
from opsctl.cli.session import parse_since
from opsctl.errors import ExitCode, Interrupted, ServiceFailed, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType
    from rich.text import Text

    from opsctl.cli.session import Session
    from opsctl.services import Drift, LogLine, Service
    from opsctl.services.budget import RestartBudget
    from opsctl.services.restart import Restarted

ServiceName = Annotated[
    str, typer.Argument(metavar="SERVICE", help="A configured service, a compose service, or a container's name.")
]
ServiceNames = Annotated[
    list[str],
    typer.Argument(metavar="SERVICE", help="Configured services, compose services, or containers' names."),
]
LinesOption = Annotated[int, typer.Option("-n", "--lines", min=0, help="How many lines of each container.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Not before this time: 10m, 2h30m, 1d, or a point in time."),
]
GrepOption = Annotated[
    str | None, typer.Option("--grep", metavar="REGEX", help="Only lines this regular expression is found in.")
]
RecreateOption = Annotated[
    bool, typer.Option("--recreate", help="Make the container anew through compose, as it is configured now.")
]
YesOption = Annotated[str | None, typer.Option("--yes", metavar="SERVICE", help="Confirm by naming the service.")]

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_red")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
MISSING = "missing"


def services(session: "Session") -> Outcome:
    """The services and how they do: state, health, restarts, and whether their configuration has changed since.

    The configured ones; without any, every container of every compose project.

    Example: [bold]opsctl services[/bold]
    """
    rows: list[dict[str, Any]] = []
    table = PlainTable()
    for heading in ("Service", "State", "Health", "Since", "Restarts", "Image", "Note"):
        table.add_column(heading)
    for name, service in session.services.all():
        row = _missing(name) if service is None else _described(service, _drift(session, service))
        rows.append(row)
        table.add_row(*_cells(row, session.clock()))
    nothing = [] if rows else ["There are no services: none is configured, and no compose project has a container."]
    return Outcome({"services": rows}, [table] if rows else nothing, fields={"services": len(rows)})


def _drift(session: "Session", service: "Service") -> "Drift":
    return session.runtime.drift(service, session.config.service(service.name).compose_file)


def _described(service: "Service", drift: "Drift | None" = None) -> dict[str, Any]:
    from opsctl.telemetry.redact import jsonable

    state = service.state
    return {
        "service": service.name,
        "container": service.container,
        "container_id": service.id[:12],
        "project": service.project,
        "state": state.status,
        "health": state.health,
        "health_output": state.health_output,
        "restart_count": state.restart_count,
        "oom_killed": state.oom_killed,
        "exit_code": state.exit_code,
        "started_at": jsonable(state.started_at),
        "finished_at": jsonable(state.finished_at),
        "image": state.image,
        **({"drift": _drift_result(drift)} if drift is not None else {}),
    }


def _drift_result(drift: "Drift") -> dict[str, Any]:
    return {"status": drift.status, "differences": list(drift.differences), "reason": drift.reason}


def _missing(name: str) -> dict[str, Any]:
    keys = ("container", "container_id", "project", "health_output", "exit_code", "started_at", "finished_at", "image")
    unknown = {"status": "unknown", "differences": [], "reason": "there is no container"}
    return {
        "service": name,
        "state": MISSING,
        "health": "none",
        "restart_count": 0,
        "oom_killed": False,
        **dict.fromkeys(keys),
        "drift": unknown,
    }


def _cells(row: dict[str, Any], now: datetime) -> "list[Text | str]":
    from rich.text import Text

    is_well = row["state"] == "running" and row["health"] in {"healthy", "none"}
    since = row["started_at"] if row["state"] == "running" else row["finished_at"]
    notes = [f"exit code {row['exit_code']}"] if row["exit_code"] else []
    notes += ["out of memory"] if row["oom_killed"] else []
    notes += row["drift"]["differences"]
    if row["drift"]["status"] == "unknown" and row["state"] != MISSING:
        notes.append(f"drift unknown: {row['drift']['reason']}")
    return [
        row["service"],
        Text(row["state"], style="green" if is_well else "red"),
        "" if row["health"] == "none" else row["health"],
        age(datetime.fromisoformat(since), now) if since and row["state"] != "created" else "",
        str(row["restart_count"]),
        row["image"] or "",
        "; ".join(notes),
    ]


def logs(
    session: "Session",
    names: ServiceNames,
    lines: LinesOption = 50,
    follow: FollowOption = False,
    since: SinceOption = None,
    grep: GrepOption = None,
) -> Outcome:
    """The newest log lines of services, in the order of their times.

    With --grep, the newest that match. With -f they go on, through restarts, until Ctrl-C; --json then prints a line
    of JSON for each.

    Example: [bold]opsctl logs bot api -n 20 --since 1h[/bold]
    """
    from opsctl.services.log_lines import read_lines

    if follow:
        session.stream_lines()
    pattern = _pattern(grep)
    start = parse_since(since, session.clock()) if since else None
    found = [service for name in dict.fromkeys(names) for service in session.services.named(name)]
    past = list(read_lines(session.runtime, found, tail=lines, since=start, pattern=pattern))
    shown = _Shown(found)
    if follow:
        return _follow(session, found, past, shown, pattern)
    return Outcome(
        {"lines": [_line_result(line) for line in past]},
        [shown.text(line) for line in past],
        fields={"services": ",".join(names), "lines": len(past)},
    )


def _follow(
    session: "Session",
    found: "list[Service]",
    past: "list[LogLine]",
    shown: "_Shown",
    pattern: "re.Pattern[str] | None",
) -> Outcome:
    from opsctl.services.log_lines import Follower, stamp_of

    for line in past:
        session.output.line(_line_result(line), shown.text(line))
    begun = stamp_of(session.started_at)
    after = {service.id: begun for service in found}
    for line in past:
        after.update({service.id: line.stamp for service in found if service.container == line.container})
    count = len(past)
    try:
        for line in Follower(session.runtime, session.services.now, found, after):
            if pattern is None or pattern.search(line.text):
                session.output.line(_line_result(line), shown.text(line))
                count += 1
    except KeyboardInterrupt as error:
        if type(error) is not KeyboardInterrupt:
            raise  # SIGTERM, SIGHUP
    ended = Interrupted("Interrupted.", exit_code=ExitCode.INTERRUPTED)
    return Outcome(None, error=ended, fields={"lines": count})


def _pattern(grep: str | None) -> "re.Pattern[str] | None":
    try:
        return re.compile(grep) if grep is not None else None
    except re.error as error:
        raise UsageError(
            f"--grep {grep!r} is not a regular expression: {error}.", hint="For example 'error|timeout'."
        ) from None


def _line_result(line: "LogLine") -> dict[str, Any]:
    from opsctl.telemetry.redact import jsonable

    return {
        "service": line.service,
        "container": line.container,
        "at": jsonable(line.at),
        "stream": line.stream,
        "text": line.text,
    }


class _Shown:
    """Log lines for people: the time, whose line it is, each service in a colour of its own."""

    def __init__(self, found: "list[Service]") -> None:
        names = [service.name for service in found]
        is_scaled = len(set(names)) < len(names)
        self._is_scaled = is_scaled
        labels = list(dict.fromkeys(service.container if is_scaled else service.name for service in found))
        self._styles = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
        self._width = max(map(len, labels), default=0)

    def text(self, line: "LogLine") -> "Text":
        """Colours the service itself wrote stay; whatever else would drive a terminal goes."""
        from rich.text import Text

        label = line.container if self._is_scaled else line.service
        shown = Text(f"{line.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} ", style="dim")
        shown.append(f"{label:{self._width}} | ", style=self._styles.get(label, ""))
        written = Text.from_ansi(line.text)
        written.plain = CONTROL.sub("", written.plain)
        return shown.append_text(written)


def restart(session: "Session", name: ServiceName, recreate: RecreateOption = False, yes: YesOption = None) -> Outcome:
    """Restart a service and wait until it is healthy, or runs and stays so where nothing checks its health.

    Before that its newest log lines and its description are saved. How often it may be restarted is limited.

    Example: [bold]opsctl restart bot --yes bot[/bold]
    """
    from opsctl.services.capture import take_capture
    from opsctl.services.restart import restart as restart_service

    found = session.services.named(name)
    settings = session.config.service(name)
    budget, key = _budget(session, name), _budget_key(found[0])
    budget.check(key, session.clock())
    drift = _drift(session, found[0])
    for remark in _drift_remarks(drift, recreate=recreate):
        session.output.show(remark)
    session.confirm(name, yes, doing="the restart")
    capture = take_capture(
        session.runtime,
        found,
        session.config.state_path / "captures",
        now=session.clock(),
        redact=session.redactor.deep,
    )
    budget.spend(key, session.clock())

    def act() -> None:
        timeout = settings.stop_timeout_seconds
        if recreate:
            session.runtime.recreate(found, stop_timeout_seconds=timeout, compose_file=settings.compose_file)
        else:
            session.runtime.restart(found, stop_timeout_seconds=timeout)

    restarted = restart_service(
        found,
        act=act,
        look=lambda: session.services.now(name),
        stable_seconds=settings.stable_seconds,
        ready_timeout_seconds=settings.ready_timeout_seconds,
    )
    if recreate and restarted.after:
        drift = _drift(session, restarted.after[0])
    return _restart_outcome(session, name, restarted, capture, drift)


def _budget(session: "Session", name: str) -> "RestartBudget":
    from opsctl.services.budget import RestartBudget

    settings = session.config.service(name)
    window = timedelta(minutes=settings.restart_budget_minutes)
    return RestartBudget(session.config.state_path / "restarts.json", settings.restart_budget, window)


def _budget_key(service: "Service") -> str:
    """The same service under whatever name it is configured."""
    return f"{service.project}/{service.compose_service}" if service.project else service.container


def _drift_remarks(drift: "Drift", *, recreate: bool) -> list[str]:
    if drift.status != "found" or recreate:
        return []
    return [f"A restart does not apply what has changed: {'; '.join(drift.differences)}. --recreate does."]


def _restart_outcome(session: "Session", name: str, restarted: "Restarted", capture: "Path", drift: "Drift") -> Outcome:
    result = {
        "service": name,
        "before": [_described(service) for service in restarted.before],
        "after": [_described(service) for service in restarted.after],
        "capture": str(capture),
        "duration_seconds": round(restarted.duration_seconds, 3),
        "drift": _drift_result(drift),
    }
    fields = {"service": name, "capture": str(capture)}
    if drift.status == "found":
        session.log().warning("restart.drift", differences=list(drift.differences), **fields)
    if restarted.failure is not None:
        error = ServiceFailed(
            f"{name} did not come up: {restarted.failure}.",
            hint=f"`opsctl logs {name}` shows what it writes; {capture} has what it wrote before the restart.",
        )
        return Outcome(result, error=error, fields=fields)
    return Outcome(result, _restarted_text(name, restarted, capture, drift), fields=fields)


def _restarted_text(name: str, restarted: "Restarted", capture: "Path", drift: "Drift") -> "list[RenderableType]":
    lines: list[RenderableType] = [f"Restarted {name} in {duration(restarted.duration_seconds)}."]
    for label, states in (("before", restarted.before), ("now", restarted.after)):
        lines += [f"  {label}: {each.container} {_told(each)}" for each in states]
    lines += [f"  not applied: {each} (--recreate applies it)" for each in drift.differences]
    lines.append(f"  how it was before: {capture}")
    return lines


def _told(service: "Service") -> str:
    from opsctl.services.docker import told

    return told(service.state)
