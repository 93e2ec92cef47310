from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import choose_from, read_catalog
from opsctl.cli.output import Outcome, age, counted, duration, size
from opsctl.cli.plan_text import plan_text
from opsctl.cli.restore_source import RestoreSource, part_of, require_backup, source_of_backup, source_of_file
from opsctl.cli.roles import create_missing_roles
from opsctl.cli.run_report import concern, remember_restore
from opsctl.cli.undo import forget, undo_restore
from opsctl.errors import ExitCode, HistoryUnavailable, NoSuchBackup, Refused, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.catalog import Backup, Catalog
    from opsctl.cli.session import Session
    from opsctl.dumps.selection import Selection
    from opsctl.history import MeasuredRestore
    from opsctl.postgres.server import Server
    from opsctl.restore import Restore, Restored
    from opsctl.restore_plan import RestoreOptions, RestorePlan

OptionalBackupId = Annotated[
    str | None,
    typer.Argument(
        metavar="ID|FILE",
        help="A backup's id or its beginning, latest, latest:DATABASE, or a dump: a file or folder of pg_dump's."
        " Asks if left out. With --undo: a database.",
    ),
]
BeforeOption = Annotated[
    str | None, typer.Option("--before", metavar="TIME", help="With latest: the newest backup taken before this time.")
]
IntoOption = Annotated[
    str | None, typer.Option("--into", metavar="NAME", help="Restore into a new database beside the live one.")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="NAME", help="With a file: the configured database it belongs to.")
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Show what would happen, change nothing. Exit 0: would work, 16: would not.")
]
UndoOption = Annotated[bool, typer.Option("--undo", help="Put back the database the last restore replaced.")]
ForgetOption = Annotated[bool, typer.Option("--forget-previous", help="Drop the databases that restores replaced.")]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        max=64,
        help="Sessions that load; several use a temporary file. Default: as many as pay off.",
    ),
]
YesOption = Annotated[
    str | None, typer.Option("--yes", metavar="DATABASE", help="Confirm by naming the database that is replaced.")
]


ToOption = Annotated[
    str | None, typer.Option("--to", metavar="URL", help="Restore on another server, as the database this URL names.")
]
InPlaceOption = Annotated[
    bool, typer.Option("--in-place", help="Overwrite the live database in one transaction. There is no undo.")
]
GlobalsOption = Annotated[
    bool, typer.Option("--globals", help="Create the roles of the backup that are missing, and nothing else.")
]
NoOwnerOption = Annotated[bool, typer.Option("--no-owner", help="Leave every object to the login that restores.")]
NoPrivilegesOption = Annotated[bool, typer.Option("--no-privileges", help="Restore no grants.")]
RoleOption = Annotated[str | None, typer.Option("--role", metavar="ROLE", help="Restore as this role (SET ROLE).")]
AcceptDiskOption = Annotated[
    bool, typer.Option("--accept-unknown-disk", help="Go on although the server's free disk cannot be seen.")
]


TableOption = Annotated[
    list[str] | None,
    typer.Option("--table", "-t", metavar="PATTERN", help="With --into: only these tables, as in pg_dump: billing.*"),
]
SchemaOption = Annotated[
    list[str] | None, typer.Option("--schema", "-n", metavar="PATTERN", help="With --into: only these schemas.")
]
ExcludeTableOption = Annotated[
    list[str] | None, typer.Option("--exclude-table", "-T", metavar="PATTERN", help="With --into: not these tables.")
]
SchemaOnlyOption = Annotated[bool, typer.Option("--schema-only", help="With --into: definitions without rows.")]
DataOnlyOption = Annotated[
    bool, typer.Option("--data-only", help="With --into: rows without definitions, into empty tables that exist.")
]


def restore(
    session: "Session",
    backup_id: OptionalBackupId = None,
    before: BeforeOption = None,
    database: DatabaseOption = None,
    into: IntoOption = None,
    table: TableOption = None,
    schema: SchemaOption = None,
    exclude_table: ExcludeTableOption = None,
    schema_only: SchemaOnlyOption = False,
    data_only: DataOnlyOption = False,
    to: ToOption = None,
    plan: PlanOption = False,
    undo: UndoOption = False,
    forget_previous: ForgetOption = False,
    restore_globals: GlobalsOption = False,
    in_place: InPlaceOption = False,
    no_owner: NoOwnerOption = False,
    no_privileges: NoPrivilegesOption = False,
    role: RoleOption = None,
    jobs: JobsOption = None,
    accept_unknown_disk: AcceptDiskOption = False,
    yes: YesOption = None,
) -> Outcome:
    """Restore a backup: into a staging database, checked, then swapped with the live one in one transaction.

    The old database is kept until --forget-previous; --undo puts it back. A dump that pg_dump made by hand (plain
    SQL, custom, directory or tar format, also with gzip or zstd) is read to its end first, and goes the same way.

    Example: [bold]opsctl restore latest --plan[/bold]
    """
    from opsctl.dumps.file import is_meant_as_file
    from opsctl.dumps.selection import Selection
    from opsctl.restore_plan import RestoreOptions
    from opsctl.restore_time import expected_time

    if sum((undo, forget_previous, restore_globals, in_place, into is not None)) > 1:
        raise UsageError("--undo, --forget-previous, --globals, --in-place and --into exclude each other.")
    part = Selection(tuple(table or ()), tuple(schema or ()), tuple(exclude_table or ()), schema_only, data_only)
    _require_beside(part, into)
    if undo or forget_previous:
        if before or plan or to:
            raise UsageError("--undo and --forget-previous take no --before, --plan or --to.")
        return (undo_restore if undo else forget)(session, backup_id, yes)
    if backup_id is not None and is_meant_as_file(backup_id):
        require_backup(backup_id, ("--before", before is not None), ("--globals", restore_globals))
        named = database or (yes if yes in session.config.databases else None)
        elsewhere = session.server_at(to).database if to else None
        source = source_of_file(session, Path(backup_id), named=named, elsewhere=elsewhere)
    else:
        if database is not None:
            raise UsageError("--database goes with a file; a backup knows its database.")
        catalog = read_catalog(session)
        source = source_of_backup(session, _chosen(session, catalog, backup_id, before), catalog)
    server = session.server_at(to) if to else session.server(source.database)
    if restore_globals and source.backup:
        return create_missing_roles(session, source.backup, server, plan_only=plan)
    options = RestoreOptions(
        into=into is not None,
        in_place=in_place,
        no_owner=no_owner,
        no_privileges=no_privileges,
        role=role,
        jobs=jobs or 0,
        accept_unknown_disk=accept_unknown_disk,
        data_only=data_only,
    )
    wanted = _asked_for(session, source, server, into, options, is_configured=to is None)
    wanted = replace(wanted, part=part_of(session, source, part))
    last = _last_restore(session, source.database, server)
    expected = expected_time(wanted.manifest, source.others, session.repositories, last)
    wanted = replace(wanted, expected=expected)
    concern(session, [source.database])
    planned = wanted.plan(session.clock())
    fields = {**source.fields, "database": source.database, **({"into": into} if into is not None else {})}
    text = plan_text(planned, source.proven, session.clock())
    if plan:
        return Outcome(_result(source, planned, None), text, error=planned.refusal, fields=fields)
    for renderable in text:
        session.output.show(renderable)
    if planned.refusal:
        return Outcome(_result(source, planned, None), error=planned.refusal, fields=fields)
    if planned.replaces:
        session.confirm(server.database if to else source.database, yes, doing="the restore")
    planned, restored = wanted.execute(
        clock=session.clock,
        start_progress=lambda doing, total: session.progress(f"{doing.capitalize()} {wanted.database}", total),
    )
    session.output.stop_progress()
    _remember(session, source, wanted, restored)
    for warning in restored.warnings:
        session.log().warning("restore.warning", message=warning, **fields)
    code = ExitCode.ATTENTION if restored.warnings else ExitCode.DONE
    return Outcome(_result(source, planned, restored), _restored_text(restored, source.database), code, fields=fields)


def _require_beside(part: "Selection", into: str | None) -> None:
    if not part.is_empty and into is None:
        raise UsageError(
            "A part of a backup is restored into a database beside: --into NAME.",
            hint="Copy from there what you need; a live database is never mixed with a backup.",
        )
    if part.schema_only and part.data_only:
        raise UsageError("--schema-only and --data-only exclude each other.")


def _chosen(session: "Session", catalog: "Catalog", backup_id: str | None, before: str | None) -> "Backup":
    if backup_id is not None or before is not None:
        return choose_from(session, catalog, backup_id or "latest", before=before, passing_over_damaged=True)
    if not session.is_interactive:
        raise UsageError("Name the backup to restore.", hint="`opsctl restore latest`, or an id of `opsctl list`.")
    backups = catalog.backups[:20]
    if not backups:
        raise NoSuchBackup("There is no backup yet.", hint="`opsctl backup` takes one.")
    now = session.clock()
    for number, backup in enumerate(backups, 1):
        proven = ", DAMAGED" if backup.failed else f", {backup.proven.level}" if backup.proven else ""
        rows = f", {counted(backup.manifest.facts.rows, 'row')}" if backup.manifest.facts.rows is not None else ""
        size_text = size(backup.manifest.dump.bytes)
        session.output.show(f"{number:3}  {backup.id}  {age(backup.created_at, now)} ago, {size_text}{rows}{proven}")
    answer = session.ask(f"Which one? [1-{len(backups)}]")
    if not answer.isdecimal() or not 1 <= int(answer) <= len(backups):
        raise Refused("No backup was chosen; nothing was changed.")
    return backups[int(answer) - 1]


def _asked_for(
    session: "Session",
    source: RestoreSource,
    server: "Server",
    into: str | None,
    options: "RestoreOptions",
    *,
    is_configured: bool,
) -> "Restore":
    from opsctl.postgres.swap import NAME_BYTES
    from opsctl.restore import Restore, SwapSettings
    from opsctl.staging import Staging

    if into == server.database:
        raise UsageError(f"--into {into} is the live database.", hint="Leave --into out to replace it, with undo.")
    if into is not None and len(into.encode()) > NAME_BYTES:
        raise UsageError(f"--into: the name has {len(into.encode())} bytes, and PostgreSQL cuts names at {NAME_BYTES}.")
    return Restore(
        manifest=source.manifest,
        repository=source.source,
        server=server,
        database=into or server.database,
        options=options,
        tools=session.tools_of(source.database) if is_configured else session.tools,
        state_path=session.config.state_path,
        staging=Staging(session.config.staging_path),
        keys=session.keys,
        is_checked=source.file is not None,
        remarks=source.remarks,
        packing=source.packing,
        # The hooks and standbys of the configuration are those of the configured server.
        swap_settings=session.swap_settings(source.database) if is_configured else SwapSettings(),
    )


def _last_restore(session: "Session", database: str, server: "Server") -> "MeasuredRestore | None":
    try:
        return session.history.last_restore(database, _identity(server))
    except HistoryUnavailable:
        return None  # the drills are left to tell


def _remember(session: "Session", source: RestoreSource, wanted: "Restore", restored: "Restored") -> None:
    """How long a whole backup took, for the next plan; a part of one says nothing about that."""
    from opsctl.history import MeasuredRestore

    if wanted.part is None and restored.seconds is not None:
        measured = MeasuredRestore(wanted.manifest.id, wanted.manifest.plain_bytes, restored.seconds, session.clock())
        remember_restore(session, source.database, _identity(wanted.server), measured)


def _identity(server: "Server") -> str:
    return server.info.system_identifier or server.address


def _restored_text(restored: "Restored", name: str) -> list["RenderableType"]:
    took = duration(restored.seconds or 0)
    lines: list[RenderableType] = [
        f"Restored {restored.backup_id} as {restored.database} ({restored.evidence}) in {took}."
    ]
    if restored.swapped:
        lines.append(f"  swapped in; clients waited {duration(restored.outage_seconds or 0)}")
        lines.append(f"  the old database is kept as {restored.previous_database}")
        lines.append(f"  back: opsctl restore --undo --yes {name}")
    lines += [f"  warning: {warning}" for warning in restored.warnings]
    lines += [f"  removed {each}, left by an interrupted restore" for each in restored.removed_leftovers]
    return lines


def _result(source: RestoreSource, planned: "RestorePlan", restored: "Restored | None") -> dict[str, Any]:
    from dataclasses import asdict

    from opsctl.telemetry.redact import jsonable

    return {
        "backup_id": source.backup_id,
        "file": source.file,
        "database": planned.database,
        "previous_database": restored.previous_database if restored else None,
        "swapped": restored.swapped if restored else False,
        "outage_seconds": restored.outage_seconds if restored else None,
        "evidence": restored.evidence if restored else None,
        "restore_seconds": restored.seconds if restored else None,
        "warnings": list(restored.warnings) if restored else [],
        "plan": {
            **jsonable(asdict(planned)),
            "swaps": planned.swaps,
            "lost_rows": planned.lost_rows,
            "blockers": list(planned.blockers),
            "would_work": planned.would_work,
        },
    }
