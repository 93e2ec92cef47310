from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import read_catalogs
from opsctl.cli.output import Outcome, age, plain_table, size
from opsctl.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.prune import Line, PrunePlan

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be kept and removed, and why.")]


def prune(session: "Session", dry_run: DryRun = False) -> Outcome:
    """Apply the retention: remove the backups no rule keeps, and what interrupted backups left behind.

    The newest good backup and the newest proven ones stay, whatever the rules say.

    Example: [bold]opsctl prune --dry-run[/bold]
    """
    from opsctl.prune import execute, plan

    catalogs, unreachable = read_catalogs(session)
    now = session.clock()
    decided = plan(catalogs, session.policies, now=now)
    result: dict[str, Any] = {"keep": _lines(decided.keep), "remove": _lines(decided.remove), "dry_run": dry_run}
    text: list[RenderableType] = [_table(decided, now, dry_run=dry_run)]
    code = ExitCode.ATTENTION if unreachable else ExitCode.DONE
    if not dry_run:
        pruned = execute(decided, session.repositories.values())
        result["remove"] = _lines(pruned.removed)
        result["failures"] = [{"id": key, "error": error.message} for key, error in pruned.failures.items()]
        text += [f"Could not remove {key}: {error.message}" for key, error in pruned.failures.items()]
        for key, error in pruned.failures.items():
            session.log().error("prune.failed", backup_id=key, message=error.message)
        code = ExitCode.ATTENTION if pruned.failures else code
    return Outcome(result, text, code, fields={"kept": len(decided.keep), "removed": len(result["remove"])})


def _lines(lines: "Iterable[Line]") -> list[dict[str, Any]]:
    return [{"id": line.id, "repository": line.repository, "reasons": list(line.reasons)} for line in lines]


def _table(decided: "PrunePlan", now: "datetime", *, dry_run: bool) -> "RenderableType":
    if not decided.keep and not decided.remove:
        return "There are no backups yet."
    table = plain_table()
    for column in ("", "Backup", "In", "Age", "Stored", "Why"):
        table.add_column(column, no_wrap=column == "Backup", overflow="fold")
    remove = "would remove" if dry_run else "removed"
    lines = [(line, "keep", None) for line in decided.keep] + [(line, remove, "red") for line in decided.remove]
    lines.sort(key=lambda each: (each[0].created_at, each[0].id), reverse=True)
    for line, word, style in lines:
        why = ", ".join(line.reasons)
        table.add_row(
            word, line.id, line.repository, age(line.created_at, now), size(line.stored_bytes), why, style=style
        )
    return table
