"""Apply retention to repositories: plan (nothing is touched), show, execute."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from opsctl.catalog import Catalog, Incomplete, StoredBackup
from opsctl.errors import OpsctlError, RemovalRefused, RepositoryUnreachable, UsageError
from opsctl.repository import CLOCK_LIMIT, Repository
from opsctl.retention import Policy, candidate, plan_prune
from opsctl.storage import locked_text
from opsctl.times import format_time

PLAN_SCHEMA = "opsctl.prune-plan/1"


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

    @property
    def place(self) -> "Place":
        return self.repository, self.id


Place = tuple[str, str]
"""A repository, and the id of what is in it."""


@dataclass(frozen=True)
class PrunePlan:
    """Newest first."""

    keep: tuple[Line, ...]
    remove: tuple[Line, ...]


@dataclass(frozen=True)
class Denial:
    """A repository whose credentials may not delete, and what is due there: a supported set-up, not a fault."""

    repository: str
    due: tuple[Line, ...]
    error: RemovalRefused

    @property
    def message(self) -> str:
        things = "1 backup is" if len(self.due) == 1 else f"{len(self.due)} backups are"
        return f"{things} due in {self.repository}, where nothing could be removed: {self.error.message}"


@dataclass(frozen=True)
class Pruned:
    removed: tuple[Line, ...] = ()
    failures: tuple[tuple[Line, OpsctlError], ...] = ()
    denials: tuple[Denial, ...] = ()


def plan(
    catalogs: Mapping[str, Catalog],
    policies: Mapping[str, Policy],
    *,
    now: datetime,
    databases: Sequence[str] = (),
) -> PrunePlan:
    """Decide for every repository by its own policy; each database on its own, and each server's backups apart."""
    lines: list[tuple[bool, Line]] = []
    copies: dict[str, list[StoredBackup]] = {}
    for catalog in catalogs.values():
        for backup in catalog.backups:
            copies.setdefault(backup.id, []).extend(backup.copies)
    for repository, catalog in catalogs.items():
        stored = [copy for backup in catalog.backups for copy in backup.copies]
        for database in sorted({each.manifest.database for each in stored}):
            if databases and database not in databases:
                continue
            mine = {each.manifest.id: each for each in stored if each.manifest.database == database}
            candidates = [candidate(each, copies[identifier]) for identifier, each in mine.items()]
            decisions = plan_prune(candidates, policies[repository], now=now)
            lines += [(each.keep, _line(mine[each.id], each.reasons)) for each in decisions]
        lines += [(False, _orphan_line(each, now)) for each in catalog.incomplete if each.is_orphan(now)]
    lines.sort(key=lambda each: (each[1].created_at, each[1].id), reverse=True)
    return PrunePlan(
        keep=tuple(line for keep, line in lines if keep), remove=tuple(line for keep, line in lines if not keep)
    )


def without_skewed(
    catalogs: Mapping[str, Catalog], repositories: Iterable[Repository], clock: Callable[[], datetime]
) -> tuple[dict[str, Catalog], dict[str, str]]:
    """The catalogs whose times mean something, and why the others are left alone.

    Their service's clock is far off, or cannot be asked for any more.
    """
    by_name = {repository.name: repository for repository in repositories}
    sound, problems = {}, {}
    for name, catalog in catalogs.items():
        try:
            skew = by_name[name].clock_skew(clock)
        except RepositoryUnreachable as error:
            problems[name] = f"the clock of the repository {name} could not be asked for: {error.message.rstrip('.')}"
            continue
        if skew <= CLOCK_LIMIT:
            sound[name] = catalog
        else:
            problems[name] = (
                f"the clocks of this host and of the repository {name} are {skew.total_seconds():.0f} s apart;"
                " nothing was pruned there"
            )
    return sound, problems


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


def sparing_locked(plan: PrunePlan, repositories: Iterable[Repository], now: datetime) -> PrunePlan:
    """The same plan without what nobody can remove yet: it is kept, and until when is its reason."""
    by_name = {repository.name: repository for repository in repositories}
    keep, remove = list(plan.keep), []
    for line in plan.remove:
        until = _locked_until(line, by_name[line.repository])
        if until is not None and until > now:
            keep.append(replace(line, reasons=(locked_text(until), *line.reasons)))
        else:
            remove.append(line)
    keep.sort(key=lambda line: (line.created_at, line.id), reverse=True)
    return PrunePlan(tuple(keep), tuple(remove))


def _locked_until(line: Line, repository: Repository) -> datetime | None:
    try:
        return repository.locked_until(line.backup.manifest) if line.backup is not None else None
    except RepositoryUnreachable:
        return None  # the removal looks again, and says why it cannot


def execute(plan: PrunePlan, repositories: Iterable[Repository]) -> Pruned:
    """Remove what the plan says, oldest first; one that cannot be removed does not stop the others."""
    by_name = {repository.name: repository for repository in repositories}
    removed: list[Line] = []
    failures: list[tuple[Line, OpsctlError]] = []
    denied: dict[str, Denial] = {}
    for line in reversed(plan.remove):
        if line.repository in denied:  # what may not delete one may not delete the others either
            denial = denied[line.repository]
            denied[line.repository] = replace(denial, due=(*denial.due, line))
            continue
        try:
            _remove(line, by_name[line.repository])
            removed.append(line)
        except RemovalRefused as error:
            if error.locked_until is None:
                denied[line.repository] = Denial(line.repository, (line,), error)
            else:
                failures.append((line, error))
        except OpsctlError as error:
            failures.append((line, error))
    return Pruned(tuple(reversed(removed)), tuple(failures), tuple(denied.values()))


def _remove(line: Line, repository: Repository) -> None:
    if line.backup is not None:
        repository.remove(line.backup.manifest)
    elif line.orphan is not None:
        repository.remove_orphan(line.orphan)


# A plan as a file: looked at by a person, and applied later


def written_plan(plan: PrunePlan, *, made_at: datetime) -> bytes:
    """The plan as a JSON document."""
    entries = {
        part: [{"id": line.id, "repository": line.repository, "reasons": list(line.reasons)} for line in lines]
        for part, lines in (("keep", plan.keep), ("remove", plan.remove))
    }
    document = {"schema": PLAN_SCHEMA, "made_at": format_time(made_at), **entries}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def read_plan(data: bytes, *, where: str) -> frozenset[Place]:
    """What such a document would remove. Raises UsageError that names it."""
    try:
        return _removals(json.loads(data))
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{where} is no plan of opsctl prune ({type(error).__name__}: {error}).",
            hint="`opsctl prune --plan FILE` writes one.",
        ) from error


def _removals(document: Any) -> frozenset[Place]:
    if document["schema"] != PLAN_SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r}")
    removals = frozenset((each["repository"], each["id"]) for each in document["remove"])
    if not all(isinstance(name, str) for place in removals for name in place):
        raise ValueError("its entries are no names")
    return removals


def narrowed(plan: PrunePlan, agreed: frozenset[Place], catalogs: Mapping[str, Catalog], now: datetime) -> PrunePlan:
    """Of a plan made now, what was agreed to before. What else is due stays, and says so."""
    due = {line.place for line in plan.remove}
    others = [
        replace(line, reasons=("not in the plan file", *line.reasons))
        for line in plan.remove
        if line.place not in agreed
    ]
    revived = [
        replace(_orphan_line(each, now), reasons=(_why_no_orphan(each),))
        for catalog in catalogs.values()
        for each in catalog.incomplete
        if (each.repository, each.id) in agreed - due
    ]
    keep = sorted((*plan.keep, *others, *revived), key=lambda line: (line.created_at, line.id), reverse=True)
    return PrunePlan(keep=tuple(keep), remove=tuple(line for line in plan.remove if line.place in agreed))


def _why_no_orphan(incomplete: Incomplete) -> str:
    return "incomplete, and written to since" if incomplete.reason == "interrupted" else incomplete.reason
