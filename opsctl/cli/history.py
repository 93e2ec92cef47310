import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from opsctl.cli.output import Outcome, PlainTable, duration, size
from opsctl.cli.session import parse_since
from opsctl.errors import HistoryUnavailable, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.history import Run

DatabaseArgument = Annotated[str | None, typer.Argument(metavar="DATABASE", help="Only this database's runs.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="At most so many, the newest.")]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Begun since this time: 2h30m, 7d, or a point in time."),
]
CommandOption = Annotated[
    str | None, typer.Option("--command", metavar="COMMAND", help="Only runs of this command, such as backup.")
]
OutcomeOption = Annotated[
    str | None,
    typer.Option(
        "--outcome", metavar="OUTCOME", help="done, attention, failed, refused, interrupted, lost or running."
    ),
]
STYLES = {"failed": "red", "lost": "red", "attention": "yellow", "interrupted": "yellow"}


def history(
    session: "Session",
    database: DatabaseArgument = None,
    limit: LimitOption = 30,
    since: SinceOption = None,
    command: CommandOption = None,
    outcome: OutcomeOption = None,
) -> Outcome:
    """Show what opsctl did on this host, newest first: every run that did something, and how it ended.

    A run that was killed is "lost": it began, and nothing is known of its end.

    Example: [bold]opsctl history saasdb --outcome failed --since 7d[/bold]
    """
    from opsctl.documents import run_entry
    from opsctl.history import RunOutcome

    if outcome is not None and outcome not in get_args(RunOutcome):
        raise UsageError(f"{outcome!r} is no outcome of a run.", hint=f"One of {', '.join(get_args(RunOutcome))}.")
    with suppress(HistoryUnavailable):  # another user's: to be read, not to be written
        session.history.notice_lost(at=session.clock(), host=socket.gethostname())
    begun = parse_since(since, session.clock()) if since else None
    found = session.history.runs(limit=limit, since=begun, command=command, database=database, outcome=outcome)
    result = {"runs": [run_entry(run) for run in found]}
    nothing = "No run fits." if database or since or command or outcome else "Nothing was run here yet."
    text: list[RenderableType] = [_table(found) if found else nothing]
    return Outcome(result, text)


def _table(runs: "tuple[Run, ...]") -> "RenderableType":
    table = PlainTable()
    for column in ("Begun", "Command", "Database", "Outcome"):
        table.add_column(column, no_wrap=True)
    table.add_column("Took", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for run in runs:
        seconds = run.duration_seconds
        table.add_row(
            f"{run.started_at:%Y-%m-%d %H:%M:%S}",
            run.command,
            run.database or "-",
            run.outcome,
            "" if seconds is None else duration(seconds),
            _remark(run),
            style=STYLES.get(run.outcome),
        )
    return table


def _remark(run: "Run") -> str:
    """What else a person wants to know at once."""
    if run.outcome == "running":
        return f"pid {run.pid} on {run.host}"
    stored = f", {size(run.stored_bytes)}" if run.stored_bytes is not None else ""
    return run.message or (f"{run.backup_id}{stored}" if run.backup_id else "")
