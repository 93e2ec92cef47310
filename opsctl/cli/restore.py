from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import choose_backup, read_catalog, readable_copy
from opsctl.cli.output import Outcome, age, duration, size
from opsctl.errors import ExitCode, NoSuchBackup, Refused, UsageError
from opsctl.manifest import format_time

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.repository import Backup
    from opsctl.restore import Restore, Restored, RestorePlan, Undo

OptionalBackupId = Annotated[
    str | None,
    typer.Argument(metavar="ID", help="A backup's id or its beginning, latest, or latest:DATABASE. Asks if left out."),
]
BeforeOption = Annotated[
    str | None, typer.Option("--before", metavar="TIME", help="With latest: the newest backup taken before this time.")
]
IntoOption = Annotated[
    str | None, typer.Option("--into", metavar="NAME", help="Restore into a new database beside the live one.")
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Show what would happen, change nothing. Exit 0: would work, 16: would not.")
]
UndoOption = Annotated[bool, typer.Option("--undo", help="Put back the database the last restore replaced.")]
ForgetOption = Annotated[bool, typer.Option("--forget-previous", help="Drop the databases that restores replaced.")]
JobsOption = Annotated[
    int, typer.Option("--jobs", "-j", min=1, max=64, help="Load with several sessions, from a temporary file.")
]
YesOption = Annotated[
    str | None, typer.Option("--yes", metavar="DATABASE", help="Confirm by naming the database that is replaced.")
]


def restore(
    session: "Session",
    backup_id: OptionalBackupId = None,
    before: BeforeOption = None,
    into: IntoOption = None,
    plan: PlanOption = False,
    undo: UndoOption = False,
    forget_previous: ForgetOption = False,
    jobs: JobsOption = 1,
    yes: YesOption = None,
) -> Outcome:
    """Restore a backup: into a staging database, checked, then swapped with the live one in one transaction.

    The old database is kept until --forget-previous; --undo puts it back.

    Example: [bold]opsctl restore latest --plan[/bold]
    """
    if undo and forget_previous:
        raise UsageError("--undo and --forget-previous exclude each other.")
    if undo or forget_previous:
        if into or before or plan:
            raise UsageError("--undo and --forget-previous take no --into, --before or --plan.")
        return (_undo if undo else _forget)(session, backup_id, yes)
    backup = _chosen(session, backup_id, before)
    wanted = _asked_for(session, backup, into, jobs)
    planned = wanted.plan(session.clock())
    fields = {"backup_id": backup.id, "database": wanted.database}
    if plan:
        return _planned(planned, fields)
    for renderable in _plan_text(planned):
        session.output.show(renderable)
    if planned.blockers:
        error = Refused(f"The restore would not work: {planned.blockers[0]}.", hint="Nothing was changed.")
        return Outcome(_result(planned, None), error=error, fields=fields)
    if planned.swaps:
        session.confirm(backup.database, yes, doing="the restore")
    planned, restored = wanted.execute(
        clock=session.clock,
        start_progress=lambda doing, total: session.progress(f"{doing.capitalize()} {wanted.database}", total),
    )
    session.output.stop_progress()
    for warning in restored.warnings:
        session.log().warning("restore.warning", message=warning, **fields)
    code = ExitCode.ATTENTION if restored.warnings else ExitCode.DONE
    return Outcome(_result(planned, restored), _restored_text(restored, backup.database), code, fields=fields)


def _chosen(session: "Session", backup_id: str | None, before: str | None) -> "Backup":
    if backup_id is not None:
        return choose_backup(session, backup_id, before=before)
    if before is not None:
        return choose_backup(session, "latest", before=before)
    if not session.is_interactive:
        raise UsageError("Name the backup to restore.", hint="`opsctl restore latest`, or an id of `opsctl list`.")
    backups = read_catalog(session).backups[:20]
    if not backups:
        raise NoSuchBackup("There is no backup yet.", hint="`opsctl backup` takes one.")
    now = session.clock()
    for number, backup in enumerate(backups, 1):
        proven = f", {backup.proven.level}" if backup.proven else ""
        rows = f", {backup.manifest.facts.rows:,} rows" if backup.manifest.facts.rows is not None else ""
        size_text = size(backup.manifest.dump.bytes)
        session.output.show(f"{number:3}  {backup.id}  {age(backup.created_at, now)}, {size_text}{rows}{proven}")
    answer = session.ask(f"Which one? [1-{len(backups)}]")
    if not answer.isdecimal() or not 1 <= int(answer) <= len(backups):
        raise Refused("No backup was chosen; nothing was changed.")
    return backups[int(answer) - 1]


def _asked_for(session: "Session", backup: "Backup", into: str | None, jobs: int) -> "Restore":
    from opsctl.restore import Restore

    repository, copy = readable_copy(session, backup)
    server = session.server(backup.database)
    if into == server.database:
        raise UsageError(f"--into {into} is the live database.", hint="Leave --into out to replace it, with undo.")
    return Restore(
        manifest=copy.manifest,
        repository=repository,
        server=server,
        database=into or server.database,
        into=into is not None,
        tools=session.tools,
        state_path=session.config.state_path,
        jobs=jobs,
    )


def _planned(planned: "RestorePlan", fields: dict[str, Any]) -> Outcome:
    error = None
    if planned.blockers:
        error = Refused(f"The restore would not work: {planned.blockers[0]}.", hint="Remove what stands in the way.")
    return Outcome(_result(planned, None), _plan_text(planned), error=error, fields=fields)


def _plan_text(planned: "RestorePlan") -> list["RenderableType"]:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    rows = f", {planned.rows:,} rows" if planned.rows is not None else ""
    table.add_row("Restore", f"{planned.backup_id} ({size(planned.dump_bytes)}{rows})")
    if planned.swaps:
        table.add_row("Replaces", f"{planned.database}, which is kept as {planned.previous_database}")
        table.add_row("Sessions", f"{planned.sessions} of the live database will be ended at the swap")
    else:
        table.add_row("Creates", f"database {planned.database}")
    free = size(planned.free_bytes) if planned.free_bytes is not None else "unknown"
    table.add_row("Disk", f"needs about {size(planned.database_bytes)}, free {free}")
    for loss in planned.losses:
        lost = loss.live_rows - loss.backup_rows
        name = f"{loss.schema}.{loss.name}"
        table.add_row("Loses", f"{lost:,} rows of {name} ({loss.live_rows:,} now, {loss.backup_rows:,} in the backup)")
    for warning in planned.warnings:
        table.add_row("Note", warning)
    for blocker in planned.blockers:
        table.add_row(Text("Blocked", style="bold red"), blocker)
    return [table]


def _restored_text(restored: "Restored", name: str) -> list["RenderableType"]:
    lines: list[RenderableType] = [f"Restored {restored.backup_id} as {restored.database} ({restored.evidence})."]
    if restored.swapped:
        lines.append(f"  swapped in; clients waited {duration(restored.outage_seconds or 0)}")
        lines.append(f"  the old database is kept as {restored.previous_database}")
        lines.append(f"  back: opsctl restore --undo --yes {name}")
    lines += [f"  warning: {warning}" for warning in restored.warnings]
    lines += [f"  removed {each}, left by an interrupted restore" for each in restored.removed_leftovers]
    return lines


def _result(planned: "RestorePlan | None", restored: "Restored | None") -> dict[str, Any]:
    from dataclasses import asdict

    from opsctl.telemetry.redact import jsonable

    plan = None
    if planned is not None:
        plan = {**jsonable(asdict(planned)), "would_work": planned.would_work}
    return {
        "backup_id": planned.backup_id if planned else None,
        "database": restored.database if restored else planned.database if planned else None,
        "previous_database": restored.previous_database if restored else None,
        "swapped": restored.swapped if restored else False,
        "outage_seconds": restored.outage_seconds if restored else None,
        "evidence": restored.evidence if restored else None,
        "warnings": list(restored.warnings) if restored else [],
        "plan": plan,
    }


def _one_database(session: "Session", named: str | None) -> str:
    """The database an undo is about: the only one configured, or the one that was named."""
    names = session.database_names([named] if named else None)
    if len(names) > 1:
        raise UsageError("There are several databases.", hint=f"Name one: {', '.join(names)}.")
    return names[0]


def _undo_of(session: "Session", name: str) -> "Undo":
    from opsctl.restore import Undo

    server = session.server(name)
    return Undo(server=server, database=server.database, state_path=session.config.state_path)


def _undo(session: "Session", named: str | None, yes: str | None) -> Outcome:
    from opsctl.restore import require_previous

    name = _one_database(session, named)
    undo = _undo_of(session, name)
    back = require_previous(undo.previous(), name)[0]
    session.output.show(f"Undo: {back} becomes {undo.database} again; the one in its place now is kept aside.")
    session.confirm(name, yes, doing="the undo")
    restored = undo.execute(clock=session.clock)
    text = [
        f"Undone: {restored.database} is again what was {back}.",
        f"  clients waited {duration(restored.outage_seconds or 0)}",
        f"  the undone database is kept as {restored.previous_database}",
    ]
    return Outcome(_result(None, restored), text, fields={"database": name})


def _forget(session: "Session", named: str | None, yes: str | None) -> Outcome:
    from opsctl.restore import require_previous

    name = _one_database(session, named)
    undo = _undo_of(session, name)
    previous = require_previous(undo.previous(), name)
    session.output.show(f"Drop for ever: {', '.join(previous)}")
    session.confirm(name, yes, doing="forgetting the previous databases")
    dropped = undo.forget(clock=session.clock)
    result = {"database": name, "forgotten": dropped, "forgotten_at": format_time(session.clock())}
    return Outcome(result, [f"Dropped {each}." for each in dropped], fields={"database": name})
