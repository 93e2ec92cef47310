from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import read_catalogs
from opsctl.cli.files import whole_file
from opsctl.cli.output import Outcome, PlainTable, age, size
from opsctl.errors import ExitCode, OpsctlError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from rich.console import RenderableType

    from opsctl.cli.session import Session
    from opsctl.prune import Line, Place, PrunePlan

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be kept and removed, and why.")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="Remove nothing; write what would be done to this file.")
]
ApplyFile = Annotated[
    Path | None,
    typer.Option("--apply", metavar="FILE", help="Remove only what this file says, and only what is still due."),
]


def prune(
    session: "Session", dry_run: DryRun = False, plan_file: PlanFile = None, apply_file: ApplyFile = None
) -> Outcome:
    """Apply the retention: remove the backups no rule keeps, and what interrupted backups left behind.

    The newest good backup and the newest proven ones stay, whatever the rules, or a plan file, say.

    Example: [bold]opsctl prune --dry-run[/bold]
    """
    from opsctl.prune import Pruned, execute, narrowed, plan, sparing_locked, without_skewed, written_plan

    if plan_file and apply_file:
        raise UsageError("--plan writes a plan, --apply carries one out: use one of them.")
    agreed = _agreed(session, apply_file) if apply_file else None
    catalogs, unreachable = read_catalogs(session)
    catalogs, skewed = without_skewed(catalogs, session.repositories.values(), session.clock)
    now = session.clock()
    decided = plan(catalogs, session.policies, now=now)
    if agreed is not None:
        decided = narrowed(decided, agreed, catalogs, now)
    decided = sparing_locked(decided, session.repositories.values(), now)
    only_shown = dry_run or plan_file is not None
    pruned = Pruned() if only_shown else execute(decided, session.repositories.values())
    withdrawn = [line for line in decided.keep if agreed and line.place in agreed]
    result = {
        "keep": _lines(decided.keep),
        "remove": _lines(decided.remove if only_shown else pruned.removed),
        "failures": [{"id": e.id, "repository": e.repository, "error": error.message} for e, error in pruned.failures],
        "denied": [
            {"repository": each.repository, "ids": [line.id for line in each.due], "error": each.error.message}
            for each in pruned.denials
        ],
        "not_pruned": [{"repository": name, "reason": problem} for name, problem in skewed.items()],
        "dry_run": only_shown,
        "plan_file": str(plan_file) if plan_file else None,
    }
    text: list[RenderableType] = [_table(decided, now, dry_run=only_shown)]
    text += [f"Kept {e.id} in {e.repository}, which {apply_file} removes: {', '.join(e.reasons)}" for e in withdrawn]
    for line, error in pruned.failures:
        text.append(f"Could not remove {line.id} from {line.repository}: {error.message}")
        session.log().error("prune.failed", backup_id=line.id, repository=line.repository, message=error.message)
    for name, problem in skewed.items():
        text.append(f"Not pruned: {problem}.")
        session.log().error("clock.skew", repository=name, message=problem)
    for denial in pruned.denials:
        text.append(denial.message)
        session.log().warning("prune.denied", repository=denial.repository, message=denial.error.message)
    if plan_file:
        _write(plan_file, written_plan(decided, made_at=now))
        text.append(f"Written to {plan_file}; `opsctl prune --apply {plan_file}` carries it out.")
    needs_attention = unreachable or skewed or withdrawn or pruned.failures or pruned.denials
    code = ExitCode.ATTENTION if needs_attention else ExitCode.DONE
    return Outcome(result, text, code, fields={"kept": len(decided.keep), "removed": len(pruned.removed)})


def _agreed(session: "Session", path: Path) -> "frozenset[Place]":
    """What a plan file removes. Raises UsageError."""
    from opsctl.prune import read_plan

    try:
        agreed = read_plan(path.read_bytes(), where=str(path))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", hint="`opsctl prune --plan` writes one."
        ) from error
    unknown = sorted({repository for repository, _ in agreed} - set(session.repositories))
    if unknown:
        raise UsageError(
            f"{path} names the repository {unknown[0]!r}, which is not configured.",
            hint="Apply a plan with the configuration it was made with, or make it anew.",
        )
    return agreed


def _write(path: Path, data: bytes) -> None:
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise OpsctlError(f"{path} cannot be written: {error.strerror}.", hint="Name another file.") from error


def _lines(lines: "Iterable[Line]") -> list[dict[str, Any]]:
    return [{"id": line.id, "repository": line.repository, "reasons": list(line.reasons)} for line in lines]


def _table(decided: "PrunePlan", now: "datetime", *, dry_run: bool) -> "RenderableType":
    if not decided.keep and not decided.remove:
        return "There are no backups yet."
    table = PlainTable()
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
