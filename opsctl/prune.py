"""Apply retention to repositories: plan (nothing is touched), show, execute."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from opsctl.errors import OpsctlError
from opsctl.repository import Catalog, Incomplete, Repository, StoredBackup
from opsctl.retention import Policy, candidate, plan_prune


@dataclass(frozen=True)
class Line:
    """What happens to one copy of a backup, or to an incomplete one, and why."""

    id: str
    database: str
    repository: str
    created_at: datetime
    stored_bytes: int
    reasons: tuple[str, ...]
    backup: StoredBackup | None = None
    orphan: Incomplete | None = None


@dataclass(frozen=True)
class PrunePlan:
    """Newest first."""

    keep: tuple[Line, ...]
    remove: tuple[Line, ...]


@dataclass(frozen=True)
class Pruned:
    removed: tuple[Line, ...]
    failures: dict[str, OpsctlError]


def plan(
    catalogs: Mapping[str, Catalog],
    policies: Mapping[str, Policy],
    *,
    now: datetime,
    databases: Sequence[str] = (),
) -> PrunePlan:
    """Decide for every repository by its own policy; each database on its own, and each server's backups apart."""
    lines: list[tuple[bool, Line]] = []
    for repository, catalog in catalogs.items():
        stored = [copy for backup in catalog.backups for copy in backup.copies]
        for database in sorted({each.manifest.database for each in stored}):
            if databases and database not in databases:
                continue
            mine = {each.manifest.id: each for each in stored if each.manifest.database == database}
            decisions = plan_prune(map(candidate, mine.values()), policies[repository], now=now)
            lines += [(each.keep, _line(mine[each.id], each.reasons)) for each in decisions]
        lines += [(False, _orphan_line(each, now)) for each in catalog.incomplete if each.is_orphan(now)]
    lines.sort(key=lambda each: (each[1].created_at, each[1].id), reverse=True)
    return PrunePlan(
        keep=tuple(line for keep, line in lines if keep), remove=tuple(line for keep, line in lines if not keep)
    )


def _line(stored: StoredBackup, reasons: tuple[str, ...]) -> Line:
    manifest = stored.manifest
    return Line(
        manifest.id,
        manifest.database,
        stored.repository,
        manifest.created_at,
        manifest.stored_bytes,
        reasons,
        backup=stored,
    )


def _orphan_line(orphan: Incomplete, now: datetime) -> Line:
    hours = (now - orphan.modified_at).total_seconds() / 3600
    reason = f"incomplete, and not written to for {hours:.0f} hours"
    return Line(
        orphan.id, orphan.database, orphan.repository, orphan.modified_at, orphan.bytes, (reason,), orphan=orphan
    )


def execute(plan: PrunePlan, repositories: Iterable[Repository]) -> Pruned:
    """Remove what the plan says, oldest first; one that cannot be removed does not stop the others."""
    by_name = {repository.name: repository for repository in repositories}
    removed: list[Line] = []
    failures: dict[str, OpsctlError] = {}
    for line in reversed(plan.remove):
        try:
            if line.backup is not None:
                by_name[line.repository].remove(line.backup.manifest)
            elif line.orphan is not None:
                by_name[line.repository].remove_orphan(line.orphan)
            removed.append(line)
        except OpsctlError as error:
            failures[line.id] = error
    return Pruned(tuple(reversed(removed)), failures)
