import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import read_catalogs
from opsctl.cli.dump_files import database_of, examine_file
from opsctl.cli.output import Outcome, counted, size
from opsctl.cli.run_report import concern
from opsctl.errors import ExitCode, OpsctlError
from opsctl.times import format_time

if TYPE_CHECKING:
    from opsctl.adopt import Adopted, Adoption
    from opsctl.catalog import Backup
    from opsctl.cli.session import Session
    from opsctl.manifest import Manifest

Files = Annotated[
    list[str], typer.Argument(metavar="FILE", help="Dumps of pg_dump or pg_dumpall: files, or folders of its own.")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="NAME", help="The configured database they belong to.")
]
PlanOption = Annotated[bool, typer.Option("--plan", help="Read them, say what would be imported, store nothing.")]

DATED_BY = {"name": "by its name", "header": "by what pg_dump wrote in it", "modified": "by the file's own time"}


@dataclass(frozen=True)
class _Done:
    """What became of one file."""

    entry: dict[str, Any]
    text: list[str]
    needs_attention: bool = False
    error: OpsctlError | None = None


def import_dumps(
    session: "Session", files: Files, database: DatabaseOption = None, plan: PlanOption = False
) -> Outcome:
    """Adopt dumps that were made without opsctl: into the repositories, as backups like any other.

    Each is read to its end first: one that is cut or damaged is no backup. What a dump does not tell (the values of
    sequences, the database's owner and settings) stays unknown. Its time comes from its name, such as
    saasdb_20251101_030000.sql, else from its head, else from the file. What the retention would remove is pinned.

    Example: [bold]opsctl import /var/backups/saasdb_*.sql.gz --plan[/bold]
    """
    done: list[_Done] = []
    for name in files:
        try:
            done.append(_import(session, Path(name), database, plan_only=plan))
        except OpsctlError as error:
            if len(files) > 1:
                session.log().error("import.failed", file=name, code=error.code, message=error.message)
            done.append(
                _Done(
                    _failure(name, error), [f"[failed] {name}: {error.message.removeprefix(f'{name}: ')}"], error=error
                )
            )
    databases = sorted({each.entry["database"] for each in done if each.entry["database"]})
    concern(session, databases)
    result = {"imports": [each.entry for each in done]}
    text = [line for each in done for line in each.text]
    errors = [each.error for each in done if each.error]
    fields = {"database": ",".join(databases)}
    if len(errors) == len(done):
        return Outcome(result, text if len(done) > 1 else (), error=errors[0], fields=fields)
    attention = bool(errors) or any(each.needs_attention for each in done)
    return Outcome(result, text, ExitCode.ATTENTION if attention else ExitCode.DONE, fields=fields)


def _import(session: "Session", path: Path, named: str | None, *, plan_only: bool) -> _Done:
    from opsctl.adopt import Adoption
    from opsctl.catalog import merged
    from opsctl.dumps.examine import describe
    from opsctl.stream import Compression

    examined = examine_file(session, path)
    database = database_of(session, examined, named, by_content=True)
    settings = session.config.database(database)
    url_name = session.server(database).database
    manifest = describe(
        examined,
        database=database,
        section=examined.choose_section([database, url_name]),
        backup_id="",
        host=socket.gethostname(),
        now=session.clock(),
    )
    adoption = Adoption(
        examined,
        manifest,
        session.repositories_of(database),
        Compression(settings.compression_level, settings.compression_threads),
        session.recipients,
        session.signing_key,
    )
    known = adoption.known(merged(*read_catalogs(session, [database])).backups)
    if known is not None:
        return _already(path, known)
    if plan_only:
        entry = {**_entry(path, manifest), "status": "planned"}
        return _Done(entry, [f"Would import {path} as a backup of {database}", *_details(manifest)])
    try:
        adopted = adoption.execute(
            clock=session.clock, advance=session.progress(f"Importing {path}", examined.file.bytes)
        )
    finally:
        session.output.stop_progress()
    return _imported(session, path, adopted, adoption)


def _already(path: Path, known: "Backup") -> _Done:
    manifest = known.manifest
    entry = {**_entry(path, manifest), "status": "present", "stored_bytes": manifest.stored_bytes}
    entry["repositories"] = [{"name": name, "status": "stored", "error": None} for name in known.repositories]
    return _Done(entry, [f"{path} is there already, as {known.id}"])


def _imported(session: "Session", path: Path, adopted: "Adopted", adoption: "Adoption") -> _Done:
    manifest = adopted.manifest
    for name, error in adopted.failures.items():
        session.log().error("repository.failed", repository=name, database=manifest.database, message=error.message)
    pinned, problems = _pin_what_would_go(session, adopted, adoption)
    repositories = [{"name": name, "status": "stored", "error": None} for name in adopted.stored_in]
    repositories += [{"name": n, "status": "failed", "error": e.message} for n, e in adopted.failures.items()]
    repositories += [{"name": n, "status": "failed", "error": "it did not keep up"} for n in adopted.slow]
    entry = {**_entry(path, manifest), "status": "imported", "stored_bytes": manifest.stored_bytes}
    entry |= {"repositories": repositories, "pinned": pinned}
    text = [f"Imported {path} as {manifest.id}", *_details(manifest), f"  stored in {', '.join(adopted.stored_in)}"]
    text += [f"  NOT stored in {each['name']}: {each['error']}" for each in repositories if each["error"]]
    text += [f"  pinned in {name}: its retention would remove it at once (opsctl unpin)" for name in pinned]
    text += [f"  {problem}" for problem in problems]
    return _Done(entry, text, needs_attention=bool(adopted.failures or adopted.slow or problems))


def _pin_what_would_go(session: "Session", adopted: "Adopted", adoption: "Adoption") -> tuple[list[str], list[str]]:
    """Old dumps are what a retention removes: whoever imports one wants to keep it, until they say otherwise."""
    from opsctl.prune import plan

    manifest = adopted.manifest
    pinned, problems = [], []
    try:
        catalogs, _ = read_catalogs(session, [manifest.database])
        planned = plan(catalogs, session.policies, now=session.clock(), databases=[manifest.database])
        going = {line.repository for line in planned.remove if line.id == manifest.id}
        for repository in adoption.repositories:
            if repository.name in going:
                repository.pin(manifest, now=session.clock())
                pinned.append(repository.name)
    except OpsctlError as error:
        problems.append(f"it could not be pinned: {error.message}")
    return pinned, problems


def _entry(path: Path, manifest: "Manifest") -> dict[str, Any]:
    return {
        "file": str(path),
        "id": manifest.id or None,
        "database": manifest.database,
        "created_at": format_time(manifest.created_at),
        "dated_by": manifest.imported.dated_by if manifest.imported else None,
        "format": manifest.format,
        "bytes": manifest.dump.bytes,
        "stored_bytes": None,
        "rows": manifest.facts.rows,
        "tables": len(manifest.facts.tables),
        "server_version": manifest.server_version or None,
        "repositories": [],
        "pinned": [],
        "warnings": list(manifest.warnings),
        "error": None,
    }


def _failure(name: str, error: OpsctlError) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("id", "database", "created_at", "dated_by", "format", "bytes", "stored_bytes", "rows", "tables")
    )
    details = {"code": error.code, "message": error.message, "hint": error.hint}
    lists: dict[str, Any] = {"server_version": None, "repositories": [], "pinned": [], "warnings": []}
    return {"file": name, **empty, **lists, "status": "failed", "error": details}


def _details(manifest: "Manifest") -> list[str]:
    facts, imported = manifest.facts, manifest.imported
    rows = f"{counted(facts.rows, 'row')} in " if facts.rows is not None else ""
    holds = f"{rows}{counted(len(facts.tables), 'table')}"
    version = f" of PostgreSQL {manifest.server_version}" if manifest.server_version else ""
    dated = DATED_BY[imported.dated_by] if imported else ""
    lines = [
        f"  {manifest.format} format{version}, {size(manifest.dump.bytes)}, {holds}",
        f"  taken at {format_time(manifest.created_at)}, {dated}",
    ]
    return [*lines, *(f"  note: {warning}" for warning in manifest.warnings)]
