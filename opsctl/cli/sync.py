from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import read_catalogs
from opsctl.cli.output import Outcome, size
from opsctl.errors import ExitCode, OpsctlError

if TYPE_CHECKING:
    from opsctl.catalog import Catalog
    from opsctl.cli.session import Session
    from opsctl.sync import Copied, Failure, Synced

Databases = Annotated[
    list[str] | None, typer.Argument(metavar="DATABASE", help="Only these databases; all of them by default.")
]


def sync(session: "Session", databases: Databases = None) -> Outcome:
    """Copy the backups that a repository lacks from one that has them.

    What a repository's own retention would not keep is not copied there. No database server is needed.

    Example: [bold]opsctl sync[/bold]
    """
    from opsctl.sync import Failure, Synced

    catalogs, unreachable = read_catalogs(session, databases)
    synced = synchronise(session, _homes(session, databases, catalogs), catalogs)
    missing = [Failure(None, None, name, error) for name, error in unreachable.items()]
    synced = Synced(synced.copied, (*synced.failures, *missing))
    text = described(synced) or ["Nothing is missing anywhere."]
    fields = {"copied": len(synced.copied), "bytes": sum(each.bytes for each in synced.copied)}
    return Outcome(
        {"copied": [copied_entry(each) for each in synced.copied], "failures": [_entry(e) for e in synced.failures]},
        text,
        ExitCode.ATTENTION if synced.failures else ExitCode.DONE,
        fields=fields,
    )


def _homes(
    session: "Session", databases: list[str] | None, catalogs: "Mapping[str, Catalog]"
) -> dict[str, Collection[str]]:
    """The repositories that each database's backups belong in.

    What the configuration no longer knows stays where it is, since it says nothing about where that may go; but with no
    database in it at all, as on a host that is there for a restore, everything belongs everywhere.
    """
    config = session.config
    found = sorted({backup.database for catalog in catalogs.values() for backup in catalog.backups})
    if not config.databases:
        return {name: list(config.repositories) for name in databases or found}
    if databases:
        return {name: config.repositories_of(name) for name in databases}
    homes: dict[str, Collection[str]] = {}
    for name in found:
        try:
            homes[name] = config.repositories_of(name)
        except OpsctlError:
            session.log().info("sync.passed_over", database=name, message="it is not configured")
    return homes


def synchronise(
    session: "Session", homes: Mapping[str, Collection[str]], catalogs: "Mapping[str, Catalog]"
) -> "Synced":
    """Plan and copy; shown on a terminal while it lasts, logged in the end."""
    from opsctl.sync import Synced, execute, plan

    now = session.clock()
    missing = plan(catalogs, session.policies, homes, now=now)
    if not missing:
        return Synced()
    many = f"{len(missing)} backups" if len(missing) > 1 else f"{missing[0].backup.id} to {missing[0].to}"
    advance = session.progress(f"Copying {many}", sum(each.stored_bytes for each in missing))
    try:
        synced = execute(missing, session.repositories, now=now, advance=advance)
    finally:
        session.output.stop_progress()
    for each in synced.failures:
        session.log().error("sync.failed", backup_id=each.id, repository=each.to, message=each.error.message)
    return synced


def described(synced: "Synced") -> list[str]:
    lines = [f"Copied {each.id} from {each.source} to {each.to} ({size(each.bytes)})" for each in synced.copied]
    lines += [f"Could not copy {each.id or 'anything'} to {each.to}: {each.error.message}" for each in synced.failures]
    return lines


def copied_entry(copied: "Copied") -> dict[str, Any]:
    return {
        "id": copied.id,
        "from": copied.source,
        "to": copied.to,
        "database": copied.database,
        "bytes": copied.bytes,
    }


def _entry(failure: "Failure") -> dict[str, Any]:
    return {"id": failure.id, "database": failure.database, "to": failure.to, "error": failure.error.message}
