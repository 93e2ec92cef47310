from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import choose_backup, read_catalog
from opsctl.cli.output import Outcome
from opsctl.errors import BackupDamaged, ExitCode, NoSuchBackup, UsageError
from opsctl.manifest import EVIDENCE_LEVELS, choose

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.repository import Backup, Catalog, Incomplete
    from opsctl.verify import Verification

BackupIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Backups to verify; the newest of each database by default."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Verify every backup.")]


def verify(session: "Session", backup_ids: BackupIds = None, all_backups: AllOption = False) -> Outcome:
    """Read backups back: every file's digest, then the dump decoded and its rows counted. Needs no server.

    A damaged backup is named, and the rest is verified all the same.

    Example: [bold]opsctl verify --all[/bold]
    """
    if backup_ids and all_backups:
        raise UsageError("Name backups, or use --all, not both.")
    backups, damaged = _chosen(session, backup_ids, all_backups=all_backups)
    results = [_unreadable(each) for each in damaged]
    results += [_verify(session, backup) for backup in backups]
    text = [f"{each['outcome']:7} {each['id']}  {_told(each)}" for each in results]
    fields = {"verified": len(results), "failed": sum(each["outcome"] == "fail" for each in results)}
    outcomes = {each["outcome"] for each in results}
    if "fail" in outcomes:
        names = ", ".join(each["id"] for each in results if each["outcome"] == "fail")
        error = BackupDamaged(f"Damaged: {names}.", hint="Take a new backup; restore from an intact one only.")
        return Outcome({"backups": results}, text, error=error, fields=fields)
    code = ExitCode.ATTENTION if "unknown" in outcomes else ExitCode.DONE
    return Outcome({"backups": results}, text, code, fields=fields)


def _chosen(
    session: "Session", backup_ids: list[str] | None, *, all_backups: bool
) -> tuple[list["Backup"], list["Incomplete"]]:
    """The backups to verify, and the ones whose manifest cannot be read: those are damaged for certain."""
    if backup_ids:
        return [choose_backup(session, each) for each in backup_ids], []
    catalog = read_catalog(session)
    damaged = [each for each in catalog.incomplete if each.reason != "interrupted"]
    backups = catalog.backups
    if not all_backups:
        backups = _newest(session, catalog)
        newest = {backup.database: backup.id for backup in backups}  # ids of one database sort by time
        damaged = [each for each in damaged if each.id >= newest.get(each.database, "")]
    if not backups and not damaged:
        raise NoSuchBackup("There is no backup yet.", hint="`opsctl backup` takes one.")
    return backups, damaged


def _newest(session: "Session", catalog: "Catalog") -> list["Backup"]:
    databases = {backup.database for backup in catalog.backups}
    return [choose(catalog.backups, f"latest:{name}", now=session.clock()) for name in sorted(databases)]


def _verify(session: "Session", backup: "Backup") -> dict[str, Any]:
    """Verify every copy of a backup; the worst outcome counts."""
    from opsctl.verify import verify_backup

    found: list[Verification] = []
    for copy in backup.copies:
        verification = verify_backup(
            copy.manifest,
            session.repositories[copy.repository],
            session.tools_of(backup.database),
            session.keys,
            clock=session.clock,
            start_progress=lambda doing, total: session.progress(f"{backup.id}: {doing}", total),
        )
        session.output.stop_progress()
        found.append(verification)
        if verification.outcome != "pass":
            session.log().error(
                "verify.failed" if verification.outcome == "fail" else "verify.unknown",
                backup_id=backup.id,
                repository=copy.repository,
                problems=list(verification.problems),
            )
    outcomes = [each.outcome for each in found]
    levels = [each.evidence for each in found]
    return {
        "id": backup.id,
        "outcome": next((each for each in ("fail", "unknown") if each in outcomes), "pass"),
        "evidence": None if None in levels else min(levels, key=lambda level: EVIDENCE_LEVELS.index(str(level))),
        "problems": [f"{each.repository}: {problem}" for each in found for problem in each.problems],
        "notes": [f"{each.repository}: {note}" for each in found for note in each.notes],
        "restore_seconds": None,
        "repositories": [{"name": each.repository, "outcome": each.outcome} for each in found],
    }


def _unreadable(incomplete: "Incomplete") -> dict[str, Any]:
    return {
        "id": incomplete.id,
        "outcome": "fail",
        "evidence": None,
        "problems": [f"{incomplete.repository}: {incomplete.reason}"],
        "notes": [],
        "restore_seconds": None,
        "repositories": [{"name": incomplete.repository, "outcome": "fail"}],
    }


def _told(result: dict[str, Any]) -> str:
    return "; ".join(result["problems"] or [str(result["evidence"]), *result["notes"]])
