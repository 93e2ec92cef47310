import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.files import whole_file
from opsctl.cli.output import Later, Outcome, PlainTable, age, duration, size
from opsctl.documents import backup_entry, incomplete_entry
from opsctl.errors import BackupDamaged, ExitCode, NoSuchBackup, OpsctlError, RepositoryUnreachable, UsageError
from opsctl.times import format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from opsctl.catalog import Backup, Catalog, StoredBackup
    from opsctl.cli.session import Session
    from opsctl.manifest import Manifest
    from opsctl.repository import Repository

BackupId = Annotated[
    str, typer.Argument(metavar="ID", help="A backup's id or its beginning, latest, or latest:DATABASE.")
]
OptionalDatabase = Annotated[str | None, typer.Argument(metavar="DATABASE", help="Only this database's backups.")]
RepositoryOption = Annotated[
    str | None, typer.Option("--repository", "-r", metavar="NAME", help="Ask this repository only.")
]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of stdout.")]


def read_catalog(session: "Session", databases: list[str] | None = None, *, repository: str | None = None) -> "Catalog":
    """All repositories' backups; a repository that does not answer is named on stderr."""
    from opsctl.catalog import merged

    return merged(*read_catalogs(session, databases, repository=repository))


def read_catalogs(
    session: "Session", databases: list[str] | None = None, *, repository: str | None = None
) -> "tuple[dict[str, Catalog], dict[str, RepositoryUnreachable]]":
    """The same, each repository's apart."""
    from opsctl.repository import read_each

    asked = session.repositories.values() if repository is None else [session.repository(repository)]
    catalogs, unreachable = read_each(asked, databases or [])
    for name, error in unreachable.items():
        session.log().warning("repository.unreachable", repository=name, message=error.message)
    return catalogs, unreachable


def choose_backup(
    session: "Session", wanted: str, *, before: str | None = None, passing_over_damaged: bool = False
) -> "Backup":
    """The one backup that ``wanted`` means. Raises NoSuchBackup, and BackupDamaged for one whose manifest is.

    ``passing_over_damaged``: ``latest`` is then the newest that no verification has found damaged.
    """
    return choose_from(session, read_catalog(session), wanted, before=before, passing_over_damaged=passing_over_damaged)


def choose_from(
    session: "Session",
    catalog: "Catalog",
    wanted: str,
    *,
    before: str | None = None,
    passing_over_damaged: bool = False,
) -> "Backup":
    """The same, out of what was read before."""
    from opsctl.cli.session import parse_time
    from opsctl.manifest import choose

    limit = parse_time(before) if before else None
    now = session.clock()
    try:
        chosen = choose(catalog.backups, wanted, now=now, before=limit)
        if passing_over_damaged and chosen.failed and wanted.startswith("latest"):
            session.log().warning("backup.passed_over", backup_id=chosen.id, message="a verification found it damaged")
            intact = [backup for backup in catalog.backups if not backup.failed]
            chosen = choose(intact, f"latest:{chosen.database}", now=now, before=limit)
        return chosen
    except NoSuchBackup:
        for incomplete in catalog.incomplete:
            if incomplete.id == wanted:
                raise BackupDamaged(
                    f"{wanted} in {incomplete.repository} is no whole backup: {incomplete.reason}",
                    hint="`opsctl list` shows the whole ones.",
                ) from None
        raise


def readable_copy(session: "Session", backup: "Backup") -> tuple["Repository", "StoredBackup"]:
    """The copy to read from: trusted and not known to be damaged if there is one, in the configuration's order.

    Its manifest is the one that lies there now: what this host remembers of it is for lists. Raises what keeps it from
    being read when that is so everywhere.
    """
    by_name = {copy.repository: copy for copy in backup.copies}
    candidates: list[tuple[Repository, StoredBackup]] = []
    errors: list[OpsctlError] = []
    for name, repository in session.repositories.items():
        if name in by_name:
            try:
                _, manifest = repository.reread(by_name[name].manifest)
                candidates.append((repository, replace(by_name[name], manifest=manifest)))
            except (BackupDamaged, RepositoryUnreachable) as error:
                errors.append(error)
    if not candidates:
        raise errors[0]
    return min(candidates, key=lambda each: (not session.keys.trusts(each[0], each[1].manifest), each[1].failed))


def list_backups(session: "Session", database: OptionalDatabase = None, repository: RepositoryOption = None) -> Outcome:
    """List the backups, newest first, with what is proven about each.

    Example: [bold]opsctl list saasdb[/bold]
    """
    catalog = read_catalog(session, [database] if database else None, repository=repository)
    now = session.clock()
    result = Later(
        lambda: {
            "backups": [backup_entry(backup) for backup in catalog.backups],
            "incomplete": [incomplete_entry(each) for each in catalog.incomplete],
            "unreachable": sorted(catalog.unreachable),
        }
    )
    return Outcome(result, _listed(catalog, now), ExitCode.ATTENTION if catalog.unreachable else ExitCode.DONE)


def _listed(catalog: "Catalog", now: Any) -> "Iterator[RenderableType]":
    yield _table(catalog, now) if catalog.backups else "There are no backups yet."
    if catalog.incomplete:
        yield "\nNot backups (interrupted, being written, hidden, or damaged):"
    for each in catalog.incomplete:
        yield f"  {each.id} in {each.repository}: {size(each.bytes)}, {age(each.modified_at, now)} ago, {each.reason}"


def _table(catalog: "Catalog", now: Any) -> "RenderableType":
    table = PlainTable()
    table.add_column("Backup", no_wrap=True, overflow="fold")
    for column in ("Age", "Stored"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("Proven", no_wrap=True)
    table.add_column("In", overflow="fold")
    for backup in catalog.backups:
        proven = backup.proven
        damaged = [copy.repository for copy in backup.copies if copy.failed]
        worth = f"{proven.level} {age(proven.at, now)}" if proven else "-"
        if damaged:
            worth = "DAMAGED" if len(damaged) == len(backup.copies) > 1 else f"DAMAGED in {', '.join(damaged)}"
        table.add_row(
            backup.id,
            age(backup.created_at, now),
            size(backup.manifest.stored_bytes),
            worth,
            ", ".join(backup.repositories) + _remarks(backup),
            style="red" if damaged else None,
        )
    return table


def _remarks(backup: "Backup") -> str:
    """What else a glance at the list should tell."""
    remarks = [*(["encrypted"] if backup.manifest.encryption else []), *(["pinned"] if backup.pinned else [])]
    return f" ({', '.join(remarks)})" if remarks else ""


def show(session: "Session", backup_id: BackupId) -> Outcome:
    """Show everything a backup's manifest records.

    Example: [bold]opsctl show latest[/bold]
    """
    from dataclasses import asdict

    from opsctl.telemetry.redact import jsonable

    backup = choose_backup(session, backup_id)
    manifest = backup.manifest
    result = {**backup_entry(backup), "manifest": jsonable(asdict(manifest))}
    return Outcome(result, _details(backup), fields={"backup_id": backup.id, "database": backup.database})


def _details(backup: "Backup") -> list["RenderableType"]:
    from rich.table import Table

    manifest = backup.manifest
    facts = manifest.facts
    about = Table.grid(padding=(0, 2))
    for key, value in (
        ("Backup", manifest.id),
        ("Database", f"{manifest.database}, owner {facts.database.owner or 'unknown'}, {facts.database.encoding}"),
        ("Taken", _taken(manifest)),
        ("Server", f"PostgreSQL {manifest.server_version}, dumped by pg_dump {manifest.pg_dump_version}"),
        *_imported(manifest),
        ("In", ", ".join(backup.repositories) + (" (pinned)" if backup.pinned else "")),
        ("Proven", f"{backup.proven.level} at {format_time(backup.proven.at)}" if backup.proven else "nothing yet"),
        ("Encrypted to", "\n".join(manifest.encryption.recipients) if manifest.encryption else "nobody"),
        ("Signed by", manifest.signature.public_key if manifest.signature else "nobody"),
        ("Extensions", ", ".join(f"{each.name} {each.version or ''}".rstrip() for each in facts.extensions) or "none"),
        ("Roles", ", ".join(facts.roles) or "none"),
        ("By hand", manifest.restore_command),
    ):
        about.add_row(f"{key}:", value)
    files = PlainTable()
    for column in ("File", "Plain", "Stored", "SHA-256 (as stored)"):
        files.add_column(column, overflow="fold")
    for file in manifest.files:
        files.add_row(file.name, size(file.bytes), size(file.stored_bytes), file.sha256)
    tables = PlainTable()
    tables.add_column("Table", overflow="fold")
    tables.add_column("Rows", justify="right")
    for table in facts.tables:
        tables.add_row(f"{table.schema}.{table.name}", "?" if table.rows is None else f"{table.rows:,}")
    warnings = [f"warning: {warning}" for warning in manifest.warnings]
    return [about, "", files, "", tables, *warnings]


def _taken(manifest: "Manifest") -> str:
    at = format_time(manifest.started_at)
    return at if manifest.imported else f"{at} on {manifest.host}, in {duration(manifest.duration_seconds)}"


def _imported(manifest: "Manifest") -> list[tuple[str, str]]:
    """Where a dump comes from that opsctl did not take, and what it does not tell."""
    imported = manifest.imported
    if imported is None:
        return []
    return [
        (
            "Imported",
            f"on {manifest.host}, from {imported.file} at {format_time(imported.at)}, {manifest.format} format",
        ),
        ("Not known", ", ".join(imported.unknown)),
    ]


def export(session: "Session", backup_id: BackupId, output: OutputFile = None) -> Outcome:
    """Write a backup's plain dump (custom format; tar format with jobs; as it was, if imported), checked meanwhile.

    Example: [bold]opsctl export latest -o saasdb.dump[/bold]
    """
    backup = choose_backup(session, backup_id)
    to_stdout = output is None or str(output) == "-"
    if to_stdout and session.options.json:
        raise UsageError("The dump and the JSON document cannot both go to stdout.", hint="Name a file with -o.")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("A dump does not belong on a terminal.", hint="Name a file with -o, or pipe it on.")
    fields = {"backup_id": backup.id, "database": backup.database}
    repository, copy = readable_copy(session, backup)
    session.keys.require(repository, copy.manifest)
    if output is None or to_stdout:
        _write_dump(session, repository, copy.manifest, sys.stdout.buffer)
        return Outcome(None, fields=fields)
    try:
        with whole_file(output) as file:
            _write_dump(session, repository, copy.manifest, file)
    except OSError as error:
        raise OpsctlError(
            f"{output} cannot be written: {error.strerror}.", hint="Name another file with -o."
        ) from error
    count = backup.manifest.dump.bytes
    result = {"id": backup.id, "file": str(output), "bytes": count}
    return Outcome(result, [f"Exported {backup.id} to {output} ({size(count)})."], fields=fields)


def _write_dump(session: "Session", repository: "Repository", manifest: "Manifest", sink: Any) -> None:
    from opsctl.stream import load

    advance = session.progress(f"Exporting {manifest.id}", manifest.dump.bytes)
    identities = session.keys.identities if manifest.encryption else None
    with (
        repository.open(manifest, manifest.dump) as stored,
        closing(load(manifest.dump, stored, advance, identities)) as chunks,
    ):
        for chunk in chunks:
            sink.write(chunk)
        sink.flush()


def pin(session: "Session", backup_id: BackupId) -> Outcome:
    """Keep a backup whatever the retention says.

    Example: [bold]opsctl pin latest[/bold]
    """
    return _set_pin(session, backup_id, pinned=True)


def unpin(session: "Session", backup_id: BackupId) -> Outcome:
    """Let the retention decide about a backup again.

    Example: [bold]opsctl unpin latest[/bold]
    """
    return _set_pin(session, backup_id, pinned=False)


def _set_pin(session: "Session", backup_id: str, *, pinned: bool) -> Outcome:
    backup = choose_backup(session, backup_id)
    for copy in backup.copies:
        repository = session.repositories[copy.repository]
        if pinned:
            repository.pin(copy.manifest, now=session.clock())
        else:
            repository.unpin(copy.manifest)
    result = {"id": backup.id, "pinned": pinned, "repositories": backup.repositories}
    words = "Pinned" if pinned else "Unpinned"
    return Outcome(
        result, [f"{words} {backup.id} in {', '.join(backup.repositories)}."], fields={"backup_id": backup.id}
    )
